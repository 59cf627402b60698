"""Augmentation is drawn from (seed, epoch, index) alone, written down, and made again exactly."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_sets import COLOURS, make_set, paint, random_boxes

from ullage.config.augment import AugmentSettings
from ullage.data.augment import (
    MAX_COVERED,
    layer_labels,
    map_boxes,
    recipe_labels,
    sample_recipe,
    settings_at,
    visible_boxes,
)
from ullage.data.recipe import Hsv, Recipe
from ullage.data.render import render, shift_colours
from ullage.errors import DataError
from ullage.geometry.boxes import area_xyxy
from ullage.geometry.letterbox import PAD_GREY

EVERYTHING = AugmentSettings(
    degrees=10, shear=5, perspective=0.0005, flipud=0.5, mosaic=0.7, mixup=0.5, copy_paste=0.6, scale=0.7
)
SIZE_HW = (96, 128)


@pytest.fixture(scope="module")
def painted():
    rng = np.random.default_rng(8)
    boxes = [random_boxes(rng, SIZE_HW, count) for count in (4, 0, 6, 1, 5)]
    images = [paint(SIZE_HW, each) for each in boxes]
    return make_set([SIZE_HW] * 5, boxes), images


def sample(dataset, index=0, seed=0, epoch=0, chosen=EVERYTHING, size_hw=(128, 128)) -> Recipe:
    return sample_recipe(dataset, index=index, size_hw=size_hw, settings=chosen, seed=seed, epoch=epoch)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 1000), index=st.integers(0, 4))
def test_a_recipe_survives_json_and_replays_exactly(painted, seed, epoch, index):
    dataset, images = painted
    recipe = sample(dataset, index, seed, epoch)
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    first, labels = render(recipe, dataset=dataset, load=images.__getitem__)
    second, labels_again = render(again, dataset=dataset, load=images.__getitem__)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(labels.boxes_xyxy_px_G4, labels_again.boxes_xyxy_px_G4)
    assert labels.boxes_xyxy_px_G4.dtype == np.float32
    np.testing.assert_array_equal(labels.class_ids_G, labels_again.class_ids_G)


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '{"layers": 3}', json.dumps({"layers": [[{"index": 1}]]})])
def test_what_is_no_recipe_is_refused(text):
    with pytest.raises(DataError, match="no augmentation recipe"):
        Recipe.from_json(text)


def test_a_sample_depends_on_seed_epoch_and_index_alone(painted):
    dataset, _ = painted
    base = sample(dataset, 1, 2, 3)
    assert sample(dataset, 1, 2, 3) == base
    assert len({base, sample(dataset, 2, 2, 3), sample(dataset, 1, 3, 3), sample(dataset, 1, 2, 4)}) == 4


def test_drawing_leaves_numpys_global_state_alone(painted):
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    sample(painted[0])
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_one_draw_serves_every_size(painted):
    dataset, _ = painted
    chosen = AugmentSettings(mixup=0.0, copy_paste=0.0)
    small, large = (sample(dataset, 0, 5, chosen=chosen, size_hw=(side, side)) for side in (64, 320))
    for a, b in zip(small.layers[0], large.layers[0], strict=True):
        assert a.index == b.index
        np.testing.assert_allclose(np.diag([5, 5, 1]) @ a.matrix_33(), b.matrix_33(), atol=1e-9)


@pytest.mark.parametrize(
    ("close", "epochs", "with_mosaic"), [(10, 30, 20), (0, 30, 30), (10, 10, 0), (10, 4, 0), (1, 3, 2)]
)
def test_close_mosaic(close, epochs, with_mosaic):
    chosen = AugmentSettings(close_mosaic=close, mixup=0.2, copy_paste=0.1)
    used = [settings_at(chosen, epoch=epoch, epochs=epochs) for epoch in range(epochs)]
    assert [each.mosaic for each in used] == [1.0] * with_mosaic + [0.0] * (epochs - with_mosaic)
    assert all(each == chosen for each in used[:with_mosaic])
    assert all(each.mixup == each.copy_paste == 0 and each.scale == chosen.scale for each in used[with_mosaic:])


@pytest.mark.parametrize(("name", "layers"), [("mosaic", 1), ("mixup", 2)])
def test_probabilities_are_kept(painted, name, layers):
    dataset, _ = painted
    chosen = AugmentSettings(mosaic=0, mixup=0).model_copy(update={name: 0.3})
    recipes = [sample(dataset, 0, seed, chosen=chosen) for seed in range(500)]
    share = np.mean([len(r.layers) == 2 if layers == 2 else len(r.layers[0]) == 4 for r in recipes])
    assert 0.24 < share < 0.36


def test_mixup_blends_pictures_and_joins_boxes(painted):
    dataset, images = painted
    chosen = AugmentSettings(mosaic=0, mixup=1, hsv_h=0, hsv_s=0, hsv_v=0)
    recipe = sample(dataset, 0, 3, chosen=chosen)
    parts = [
        render(Recipe(recipe.size_hw, (layer,)), dataset=dataset, load=images.__getitem__) for layer in recipe.layers
    ]
    blended, labels = render(recipe, dataset=dataset, load=images.__getitem__)
    expected = parts[0][0] * recipe.blend + parts[1][0] * (1 - recipe.blend)
    assert np.abs(blended - expected).max() <= 1
    assert len(labels) == len(parts[0][1]) + len(parts[1][1])
    blends = [sample(dataset, 0, seed, chosen=chosen).blend for seed in range(300)]
    assert abs(np.mean(blends) - 0.5) < 0.02
    assert 0.05 < np.std(blends) < 0.075  # Beta(32, 32): 0.062


def test_pasted_objects_hide_little_and_bring_their_labels():
    rng = np.random.default_rng(2)
    sizes = [(160, 160)] * 6
    boxes = [random_boxes(rng, size, 12) for size in sizes]
    images = [paint(size, each) for size, each in zip(sizes, boxes, strict=True)]
    dataset = make_set(sizes, boxes)
    chosen = AugmentSettings(mosaic=0, copy_paste=1, hsv_h=0, hsv_s=0, hsv_v=0, scale=0.3)
    pasted = 0
    for seed in range(40):
        recipe = sample(dataset, seed % 6, seed, chosen=chosen, size_hw=(160, 160))
        whole, *objects = recipe.layers[0]
        assert whole.box is None
        below = layer_labels(dataset, (whole,), recipe.size_hw)
        above = layer_labels(dataset, tuple(objects), recipe.size_hw) if objects else below.select(slice(0, 0))
        canvas, labels = render(recipe, dataset=dataset, load=images.__getitem__)
        assert len(labels) == len(below) + len(objects) == len(below) + len(above)
        covered = np.zeros(recipe.size_hw, bool)
        for box, class_id in zip(above.boxes_xyxy_px_G4, above.class_ids_G, strict=True):
            left, top, right, bottom = np.round(box).astype(int)
            covered[top:bottom, left:right] = True
            centre = canvas[(top + bottom) // 2, (left + right) // 2]
            if len(objects) == 1:  # nothing pasted later can hide it
                assert np.abs(centre.astype(int) - COLOURS[class_id]).max() < 40
        for box in below.boxes_xyxy_px_G4:
            left, top, right, bottom = np.round(box).astype(int)
            hidden = covered[top:bottom, left:right].sum()
            assert hidden <= MAX_COVERED * area_xyxy(box) + 2 * (right - left + bottom - top)  # rounding of the sides
        pasted += len(objects)
    assert pasted > 40


def test_objects_in_company_are_not_pasted():
    """A rectangle that also shows part of another object, or of a crowd, would bring it without its label."""
    boxes = [[(10, 10, 50, 50, 0), (35, 35, 90, 90, 1), (100, 100, 130, 130, 2)], []]
    dataset = make_set([(160, 160)] * 2, boxes)
    crowded = make_set([(160, 160)] * 2, [[*boxes[0], (95, 95, 135, 135, 3)], []], crowd=[False] * 3 + [True])
    chosen = AugmentSettings(mosaic=0, copy_paste=1)
    rows = {
        tile.box for seed in range(60) for tile in sample(dataset, 1, seed, chosen=chosen, size_hw=(160, 160)).layers[0]
    }
    assert rows == {None, 2}
    rows = {
        tile.box for seed in range(60) for tile in sample(crowded, 1, seed, chosen=chosen, size_hw=(160, 160)).layers[0]
    }
    assert rows == {None}


def test_colours_follow_the_hsv_definition():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    before = image.copy()
    same = shift_colours(image, Hsv(0.0, 1.0, 1.0))
    assert np.abs(same.astype(int) - image).max() <= 6  # 8-bit HSV and back
    np.testing.assert_array_equal(image, before)  # it may be shared with other processes
    third = shift_colours(np.full((4, 4, 3), (250, 0, 0), np.uint8), Hsv(1 / 3, 1.0, 1.0))
    np.testing.assert_array_equal(third, np.full((4, 4, 3), (0, 250, 0), np.uint8))
    dark = shift_colours(np.full((4, 4, 3), 100, np.uint8), Hsv(0.2, 1.7, 0.5))
    np.testing.assert_array_equal(dark, np.full((4, 4, 3), 50, np.uint8))
    pale = shift_colours(np.full((4, 4, 3), (200, 100, 100), np.uint8), Hsv(0.0, 0.5, 1.0))
    assert int(cv2.cvtColor(pale, cv2.COLOR_RGB2HSV)[0, 0, 1]) == pytest.approx(64, abs=2)
    bright = shift_colours(np.full((4, 4, 3), 200, np.uint8), Hsv(0.0, 1.0, 1.4))
    np.testing.assert_array_equal(bright, np.full((4, 4, 3), 255, np.uint8))


@pytest.mark.parametrize("chosen", [{"scale": 0.5}, {"degrees": 20, "copy_paste": 1.0}, {"mixup": 1.0, "flipud": 0.5}])
def test_colours_change_in_every_tile_and_nowhere_else(chosen):
    """Tiles of one colour, drawn larger, smaller, turned, pasted and blended: all change alike, the grey stays grey."""
    boxes = [[(20.0, 20.0, 60.0, 60.0, 0)]] * 5
    dataset = make_set([SIZE_HW] * 5, boxes)
    red, size_hw = np.full((*SIZE_HW, 3), (180, 90, 60), np.uint8), (160, 160)
    images = [red.copy() for _ in range(5)]
    for epoch in range(12):
        plain = sample(dataset, 0, 0, epoch, AugmentSettings(mosaic=0.6, hsv_h=0, hsv_s=0, hsv_v=0, **chosen), size_hw)
        drawn, _ = render(plain, dataset=dataset, load=images.__getitem__)
        hsv = Hsv(0.01, 1.4, 0.7)
        coloured, _ = render(replace(plain, hsv=hsv), dataset=dataset, load=images.__getitem__)
        covered, margin = (drawn == red[0, 0]).all(2), (drawn == PAD_GREY).all(2)
        assert covered.any()
        assert (coloured[covered] == shift_colours(red[:1, :1], hsv)[0, 0]).all()
        assert (coloured[margin] == PAD_GREY).all()
    np.testing.assert_array_equal(images[0], red)


def test_boxes_that_are_kept():
    boxes = np.array(
        [
            [10, 10, 30, 30],  # whole
            [-90, 10, 9, 30],  # 9 % visible
            [-90, 10, 12, 30],  # 12 % visible
            [10, 10, 12, 30],  # 2 px wide
            [10, 10, 12.1, 30],
            [10, 10, 13, 400],  # clipped to the canvas: 3 x 90, visible 23 %
            [200, 10, 230, 30],  # outside
        ],
        np.float64,
    )
    clipped, keep = visible_boxes(boxes, (100, 100))
    assert keep.tolist() == [True, False, True, False, True, True, False]
    assert clipped.min() >= 0
    assert clipped.max() <= 100
    _, keep = visible_boxes(np.array([[10.0, 10, 13, 309], [10, 10, 13, 311]]), (400, 400))
    assert keep.tolist() == [True, False]  # aspect ratio 100


def test_mapped_boxes_hold_their_mapped_corners():
    matrix = np.array([[0, -2, 100], [2, 0, 5], [0, 0, 1.0]])  # a quarter turn and twice the size
    boxes = map_boxes(matrix, np.array([[10, 20, 14, 30]], np.float32))
    np.testing.assert_allclose(boxes, [[40, 25, 60, 33]])
    assert map_boxes(matrix, np.zeros((0, 4), np.float32)).shape == (0, 4)


@pytest.mark.parametrize("chosen", [EVERYTHING, AugmentSettings(mosaic=0)])
def test_sets_without_any_box_and_of_one_image(chosen):
    dataset = make_set([(50, 70)], [[]])
    for seed in range(20):
        recipe = sample(dataset, 0, seed, chosen=chosen)
        canvas, labels = render(recipe, dataset=dataset, load=lambda _: np.zeros((50, 70, 3), np.uint8))
        assert canvas.shape == (128, 128, 3)
        assert labels.boxes_xyxy_px_G4.shape == (0, 4)
        assert len(recipe_labels(dataset, recipe)) == 0
