"""Pixels and boxes go to the same place: painted rectangles are found again under their boxes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_sets import BACKGROUND, COLOURS, make_set, paint, random_boxes

from ullage.config.augment import AugmentSettings
from ullage.data.augment import map_boxes, recipe_labels, sample_recipe, visible_boxes
from ullage.data.mosaic import MAX_FORESHORTENING, View, place_mosaic, place_single, sample_view
from ullage.data.recipe import Recipe, Tile
from ullage.data.render import render
from ullage.geometry.letterbox import PAD_GREY, fit

PLAIN = AugmentSettings(hsv_h=0, hsv_s=0, hsv_v=0, mosaic=0)
SIZES = ((96, 128), (128, 80), (100, 100), (48, 150))


def painted(seed: int, per_image: int = 4):
    rng = np.random.default_rng(seed)
    boxes = [random_boxes(rng, size, per_image) for size in SIZES]
    images = [paint(size, each) for size, each in zip(SIZES, boxes, strict=True)]
    return make_set(SIZES, boxes), images


def is_colour(pixels: np.ndarray, class_id: int, tolerance: int = 40) -> np.ndarray:
    return (np.abs(pixels.astype(int) - COLOURS[class_id]) <= tolerance).all(-1)


def draw(dataset, images, chosen: AugmentSettings, *, index=0, seed=0, size_hw=(128, 128)):
    recipe = sample_recipe(dataset, index=index, size_hw=size_hw, settings=chosen, seed=seed, epoch=0)
    canvas, labels = render(recipe, dataset=dataset, load=images.__getitem__)
    return recipe, canvas, labels


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), mosaic=st.booleans(), flips=st.booleans(), scale=st.sampled_from([0.0, 0.5, 0.8]))
def test_upright_boxes_lie_exactly_on_their_pixels(seed, mosaic, flips, scale):
    dataset, images = painted(seed)
    chosen = PLAIN.model_copy(
        update={"mosaic": float(mosaic), "scale": scale, "flipud": 0.5 * flips, "fliplr": 0.5 * flips}
    )
    recipe, canvas, labels = draw(dataset, images, chosen, seed=seed)
    # Every box holds its colour, to within a pixel of its sides ...
    for box, class_id in zip(labels.boxes_xyxy_px_G4, labels.class_ids_G, strict=True):
        left, top = np.ceil(box[:2] + 1).astype(int)
        right, bottom = np.floor(box[2:] - 1).astype(int)
        assert is_colour(canvas[top:bottom, left:right], class_id).all()
    # ... and no colour is found outside of the boxes, those too small to train on included.
    free = np.ones(canvas.shape[:2], bool)
    for tile in recipe.layers[0]:
        boxes, _ = visible_boxes(map_boxes(tile.matrix_33(), dataset.labels(tile.index).boxes_xyxy_px_G4), (128, 128))
        for box in boxes:
            left, top = np.floor(box[:2] - 1).astype(int).clip(0)
            right, bottom = np.ceil(box[2:] + 1).astype(int)
            free[top:bottom, left:right] = False
    assert np.isin(canvas[free], [*BACKGROUND, PAD_GREY]).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), mosaic=st.booleans())
def test_boxes_follow_rotation_shear_and_perspective(seed, mosaic):
    dataset, images = painted(seed)
    chosen = PLAIN.model_copy(
        update={"mosaic": float(mosaic), "degrees": 180.0, "shear": 20.0, "perspective": 0.001, "fliplr": 0.5}
    )
    recipe, canvas, labels = draw(dataset, images, chosen, seed=seed)
    for box, class_id in zip(labels.boxes_xyxy_px_G4, labels.class_ids_G, strict=True):
        assert box.min() >= 0
        assert box.max() <= 128
        inside = canvas[int(box[1]) : int(np.ceil(box[3])), int(box[0]) : int(np.ceil(box[2]))]
        if min(box[2:] - box[:2]) > 8:
            assert is_colour(inside, class_id, 60).any()
    # The centre of every painted object lands where its matrix says, unless that is off the canvas.
    for tile in recipe.layers[0]:
        for box, class_id in zip(
            dataset.labels(tile.index).boxes_xyxy_px_G4, dataset.labels(tile.index).class_ids_G, strict=True
        ):
            x, y, w = tile.matrix_33() @ [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 1]
            size = map_boxes(tile.matrix_33(), box[None])[0]
            if 0 <= x / w < 128 and 0 <= y / w < 128 and min(size[2:] - size[:2]) > 8:
                assert is_colour(canvas[int(y / w), int(x / w)], class_id, 60)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), mosaic=st.booleans(), degrees=st.sampled_from([0.0, 20.0]),
    perspective=st.sampled_from([0.0, 0.001]), scale=st.sampled_from([0.0, 0.5, 0.9]),
)  # fmt: skip
def test_no_object_that_can_be_seen_is_lost(seed, mosaic, degrees, perspective, scale):
    """Each image shows one object of each colour; what there is of a colour on the canvas has its box."""
    rng = np.random.default_rng(seed)
    size = (96, 128)
    boxes = [[(*box[:4], place) for place, box in enumerate(random_boxes(rng, size, 4))] for _ in range(4)]
    images = [paint(size, each) for each in boxes]
    dataset = make_set([size] * 4, boxes)
    chosen = PLAIN.model_copy(
        update={"mosaic": float(mosaic), "degrees": degrees, "perspective": perspective, "scale": scale}
    )
    recipe, canvas, labels = draw(dataset, images, chosen, seed=seed)
    for tile in recipe.layers[0]:
        corners = map_boxes(tile.matrix_33(), dataset.labels(tile.index).boxes_xyxy_px_G4)
        for whole, class_id in zip(corners, dataset.labels(tile.index).class_ids_G, strict=True):
            left, top, right, bottom = np.round(whole).astype(int)
            seen = is_colour(canvas[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)], int(class_id))
            rows, columns = seen.any(1).sum(), seen.any(0).sum()
            if min(rows, columns) > 4 and seen.sum() > 0.2 * (right - left) * (bottom - top):
                same = labels.boxes_xyxy_px_G4[labels.class_ids_G == class_id]
                middle = np.array([whole[:2].clip(0, 128), whole[2:].clip(0, 128)]).mean(0)
                inside = (same[:, :2] - 1 <= middle) & (middle <= same[:, 2:] + 1)
                assert inside.all(1).any()


@pytest.mark.parametrize("degrees", [0, 7])
@pytest.mark.parametrize("seed", range(6))
def test_tiles_leave_no_seam_and_do_not_overlap(seed, degrees):
    size_hw = (128, 128)
    dataset = make_set([(90, 90)] * 4, [[]] * 4)
    shades = (10, 70, 130, 190)
    images = [np.full((90, 90, 3), shade, np.uint8) for shade in shades]
    rng = np.random.default_rng(seed)
    meet = (float(rng.uniform(64, 192)), float(rng.uniform(64, 192)))
    view = View(centre_xy=(128.0, 128.0), degrees=degrees, gain=1.5).matrix(size_hw)
    tiles = tuple(
        Tile(i, tuple((view @ place_mosaic((90, 90), size_hw, quarter=i, meet_xy=meet)).ravel().tolist()))
        for i in range(4)
    )
    forwards, _ = render(Recipe(size_hw, (tiles,)), dataset=dataset, load=images.__getitem__)
    backwards, _ = render(Recipe(size_hw, (tiles[::-1],)), dataset=dataset, load=images.__getitem__)
    assert set(np.unique(forwards)) <= set(shades)
    np.testing.assert_array_equal(forwards, backwards)


@pytest.mark.parametrize("source_hw", [(480, 640), (333, 77), (20, 31)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_view_can_be_undone(source_hw, flip):
    rng = np.random.default_rng(3)
    view = View((64.0, 48.0), 0.7, 33.0, (5.0, -8.0), (0.0004, -0.0007), (0.45, 0.6), flip, not flip)
    matrix = view.matrix((96, 128)) @ place_single(source_hw, (96, 128))
    points = np.concatenate((rng.uniform(0, source_hw[::-1], (20, 2)), np.ones((20, 1))), 1)
    there = points @ matrix.T
    back = (there / there[:, 2:]) @ np.linalg.inv(matrix).T
    np.testing.assert_allclose(back[:, :2] / back[:, 2:], points[:, :2], atol=1e-8)


def test_flipping_twice_changes_nothing_and_once_mirrors():
    dataset, images = painted(5)
    straight, mirrored = (
        draw(dataset, images, PLAIN.model_copy(update={"fliplr": chance, "scale": 0.3, "mosaic": 1.0}), seed=2)
        for chance in (0.0, 1.0)
    )
    difference = np.abs(straight[1][:, ::-1].astype(int) - mirrored[1])
    assert np.quantile(difference, 0.99) <= 1
    flipped = straight[2].boxes_xyxy_px_G4[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [128, 0, 128, 0]
    np.testing.assert_allclose(flipped, mirrored[2].boxes_xyxy_px_G4, atol=1e-4)


def test_without_augmentation_an_image_is_letterboxed():
    dataset, images = painted(1)
    chosen = PLAIN.model_copy(update={"scale": 0.0, "translate": 0.0, "fliplr": 0.0})
    _, canvas, labels = draw(dataset, images, chosen, index=0, size_hw=(256, 256))
    letterbox = fit((96, 128), (256, 256))
    expected = letterbox.apply(images[0])
    assert np.abs(canvas.astype(int) - expected).mean() < 1
    np.testing.assert_allclose(
        labels.boxes_xyxy_px_G4, letterbox.forward(dataset.labels(0).boxes_xyxy_px_G4), atol=1e-4
    )


def test_strong_shrinking_averages():
    fine = np.indices((256, 256)).sum(0) % 2 * 255  # a checkerboard: sampled without averaging it would flicker
    image = np.repeat(fine[..., None], 3, 2).astype(np.uint8)
    tile = Tile(0, tuple(np.diag([0.23, 0.23, 1.0]).ravel().tolist()))
    canvas, _ = render(Recipe((32, 32), ((tile,),)), dataset=make_set([(256, 256)], [[]]), load=lambda _: image)
    assert np.abs(canvas.astype(int) - 127).max() <= 2


def test_images_at_any_size_give_the_same_picture():
    dataset, images = painted(7)
    enlarged = [np.kron(image, np.ones((2, 2, 1), np.uint8)) for image in images]
    recipe, canvas, _ = draw(dataset, images, PLAIN.model_copy(update={"mosaic": 1.0}), seed=4)
    again, _ = render(recipe, dataset=dataset, load=enlarged.__getitem__)
    assert np.quantile(np.abs(canvas.astype(int) - again), 0.9) <= 1


def test_only_images_that_show_are_read():
    dataset, images = painted(2)
    asked: list[int] = []

    def load(index: int) -> np.ndarray:
        asked.append(index)
        return images[index]

    aside = Tile(1, (1.0, 0.0, 500.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    here = Tile(2, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    render(Recipe((64, 64), ((aside, here),)), dataset=dataset, load=load)
    assert asked == [2]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), mosaic=st.booleans(), size=st.sampled_from([64, 640, 2048]))
def test_perspective_never_brings_the_scene_behind_the_viewer(seed, mosaic, size):
    rng = np.random.default_rng(seed)
    size_hw = (size, size)
    view = sample_view(rng, settings=PLAIN.model_copy(update={"perspective": 0.001}), size_hw=size_hw, mosaic=mosaic)
    reach = 1.5 if mosaic else 0.5
    corners = np.array([(x, y) for x in (-reach, reach) for y in (-reach, reach)]) * size + view.centre_xy
    depths = np.c_[corners, np.ones(4)] @ view.matrix(size_hw)[2]
    assert depths.min() >= 1 - MAX_FORESHORTENING - 1e-9


def test_mosaic_of_the_field_has_its_distribution():
    """The meeting point, the gain and the shift are uniform over the documented ranges."""
    dataset = make_set([(100, 100)], [[]])
    chosen = PLAIN.model_copy(update={"mosaic": 1.0, "scale": 0.5, "translate": 0.1, "fliplr": 0.0})
    gains, meets = [], []
    for seed in range(400):
        recipe = sample_recipe(dataset, index=0, size_hw=(200, 200), settings=chosen, seed=seed, epoch=0)
        matrices = [tile.matrix_33() for tile in recipe.layers[0]]
        gains.append(matrices[0][0, 0] / 2)  # images of 100 px are placed at 200
        meets.append(np.max([m[:2, 2] for m in matrices], 0))  # the left top corner of the lower right tile
    assert 0.5 <= min(gains) < 0.52
    assert 1.48 < max(gains) <= 1.5
    # Where the four meet: (u - 1) * 200 * gain + (0.5 + t) * 200, u in [.5, 1.5], t in [-.1, .1].
    normal = (np.array(meets) / 200 - 0.5) / np.array(gains)[:, None]
    assert np.abs(normal.mean(0)).max() < 0.06
    assert 0.45 < np.abs(normal).max() <= 0.5 + 0.1 / 0.5


def test_crowds_are_never_targets():
    boxes = [[(10, 10, 40, 40, 0), (50, 50, 80, 80, 1)]]
    dataset = make_set([(96, 96)], boxes, crowd=[True, False])
    for mosaic in (0.0, 1.0):
        recipe = sample_recipe(
            dataset, index=0, size_hw=(96, 96), settings=PLAIN.model_copy(update={"mosaic": mosaic}), seed=1, epoch=0
        )
        assert set(recipe_labels(dataset, recipe).class_ids_G.tolist()) == {1}
