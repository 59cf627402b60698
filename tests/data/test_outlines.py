"""Polygons: read with the boxes, kept with them, cut out along, and boxes as tight as what is seen of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_sets import BACKGROUND, COLOURS, make_set, random_boxes
from sources_kit import make_coco, make_yolo

from ullage.config.augment import AugmentSettings
from ullage.data import index_cache
from ullage.data.augment import layer_labels, map_boxes, sample_recipe
from ullage.data.convert import convert
from ullage.data.index import DetectionSet
from ullage.data.outlines import Outlines, seen_boxes
from ullage.data.render import render
from ullage.data.source import open_dataset, take_boxes, take_images

SIZE_HW = (120, 160)
CANVAS_HW = (128, 128)
TURNING = AugmentSettings(degrees=45, shear=10, scale=0.4, translate=0.3, mosaic=0.5, hsv_h=0, hsv_s=0, hsv_v=0)


def ellipse(box: tuple[float, float, float, float], points: int = 40) -> np.ndarray:
    """A polygon that fills a box as a disc does."""
    angles = np.arange(points) / points * 2 * math.pi
    left, top, right, bottom = box[:4]
    x, y = (
        (left + right) / 2 + (right - left) / 2 * np.cos(angles),
        (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles),
    )
    return np.stack((x, y), 1).astype(np.float32)


def discs(seed: int, count: int = 4) -> tuple[DetectionSet, list[np.ndarray]]:
    """Images of discs on grey, each of the colour of its class, and their outlines."""
    rng = np.random.default_rng(seed)
    boxes = [random_boxes(rng, SIZE_HW, 4) for _ in range(count)]
    images = []
    for each in boxes:
        image = np.full((*SIZE_HW, 3), BACKGROUND, np.uint8)
        for box in each:
            points = np.rint((ellipse(box[:4]) - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(image, [points], COLOURS[box[4]], shift=4)
        images.append(image)
    outlines = Outlines.of([[ellipse(box[:4])] for each in boxes for box in each])
    return replace(make_set([SIZE_HW] * count, boxes), outlines=outlines), images


def turn(degrees: float, gain: float, x: float, y: float, lean: float = 0.0) -> np.ndarray:
    a, b = gain * math.cos(math.radians(degrees)), gain * math.sin(math.radians(degrees))
    return np.array([[a, -b, x], [b, a, y], [lean, 0, 1]])


POINTS = st.lists(st.tuples(st.floats(-80, 200), st.floats(-80, 200)), min_size=3, max_size=9)


@settings(max_examples=150, deadline=None)
@given(rings=st.lists(POINTS, min_size=1, max_size=2), degrees=st.floats(-180, 180), gain=st.floats(0.4, 2))
def test_seen_boxes_are_those_of_the_pixels(rings, degrees, gain):
    """Against a picture of the mapped polygon, drawn much larger than the canvas."""
    matrix = turn(degrees, gain, 64, 64)
    arrays = [np.array(ring, np.float32) for ring in rings]
    mapped = [(np.column_stack((ring, np.ones(len(ring)))) @ matrix.T)[:, :2] for ring in arrays]
    whole, shown = seen_boxes(Outlines.of([arrays]), matrix[None], CANVAS_HW)
    np.testing.assert_allclose(whole[0, :2], np.concatenate(mapped).min(0), atol=0.01)
    np.testing.assert_allclose(whole[0, 2:], np.concatenate(mapped).max(0), atol=0.01)
    picture = np.zeros((CANVAS_HW[0] * 4, CANVAS_HW[1] * 4), np.uint8)
    far = [np.rint((ring * 4 - 0.5) * 16).clip(-(2**20), 2**20).astype(np.int32) for ring in mapped]
    cv2.fillPoly(picture, far, 1, shift=4)  # even and odd, as the corners are counted
    ys, xs = np.nonzero(picture)
    if np.isnan(shown[0]).any():
        assert len(xs) <= 12  # a point that touches the border
    elif len(xs):
        found = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 4
        np.testing.assert_allclose(shown[0], found, atol=0.8)


def test_a_canvas_inside_an_object_shows_all_of_it_and_of_nothing_else():
    around = np.array([[-50, -50], [300, -50], [300, 300], [-50, 300]], np.float32)
    away = around + 1000
    _, shown = seen_boxes(Outlines.of([[around], [away], []]), np.array([np.eye(3)] * 3), CANVAS_HW)
    np.testing.assert_array_equal(shown[0], [0, 0, 128, 128])
    assert np.isnan(shown[1:]).all()


def test_rows_are_picked_with_their_rings():
    rng = np.random.default_rng(0)
    objects = [
        [rng.random((rng.integers(3, 9), 2)).astype(np.float32) for _ in range(rng.integers(0, 3))] for _ in range(30)
    ]
    outlines = Outlines.of(objects)
    assert outlines.have(np.arange(30)).tolist() == [len(rings) > 0 for rings in objects]
    for rows in (np.array([7, 3, 29, 3, 0]), np.arange(30) % 3 == 0, np.zeros(0, np.int64)):
        picked = outlines.select(rows)
        wanted = [objects[row] for row in (np.flatnonzero(rows) if rows.dtype == bool else rows)]
        assert len(picked) == len(wanted)
        for row, rings in enumerate(wanted):
            assert len(picked.rings(row)) == len(rings)
            assert all((a == b).all() for a, b in zip(picked.rings(row), rings, strict=True))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), perspective=st.sampled_from([0.0, 0.001]))
def test_boxes_of_turned_objects_fit_their_pixels(seed, perspective):
    """No box without its pixels, and none of its pixels outside; the boxes around turned corners are looser."""
    dataset, images = discs(seed)
    chosen = TURNING.model_copy(update={"perspective": perspective})
    recipe = sample_recipe(dataset, index=0, size_hw=CANVAS_HW, settings=chosen, seed=seed, epoch=0)
    canvas, labels = render(recipe, dataset=dataset, load=images.__getitem__)
    corners = layer_labels(replace(dataset, outlines=None), recipe.layers[0], CANVAS_HW)
    assert len(labels) <= len(corners)
    for box, class_id in zip(labels.boxes_xyxy_px_G4, labels.class_ids_G, strict=True):
        near = np.abs(canvas.astype(int) - COLOURS[class_id]).max(2) < 90
        left, top, right, bottom = box
        inside = near[max(int(top), 0) : math.ceil(bottom), max(int(left), 0) : math.ceil(right)]
        assert inside.any()
        if min(right - left, bottom - top) >= 8:
            ys, xs = np.nonzero(inside)
            found = (xs.min() + int(left), ys.min() + int(top), xs.max() + 1 + int(left), ys.max() + 1 + int(top))
            np.testing.assert_allclose(found, box, atol=2.0)


def test_turned_boxes_are_tighter_than_corners_say():
    dataset, _ = discs(3)
    matrices = np.array([turn(45, 0.8, 60, -10)] * len(dataset.class_ids_N))
    assert dataset.outlines is not None
    whole, _ = seen_boxes(dataset.outlines, matrices, (1000, 1000))
    corners = map_boxes(matrices, dataset.boxes_xyxy_px_N4)
    ratio = (whole[:, 2:] - whole[:, :2]) / (corners[:, 2:] - corners[:, :2])
    assert (ratio < 0.85).all()


@pytest.mark.parametrize("degrees", [0, 30])
def test_objects_are_pasted_without_what_lies_around_them(degrees):
    """Discs on a background of their own: pasted by outline, none of it comes along; by box it does."""
    dataset, images = discs(5, count=2)
    donor = images[1].copy()
    donor[(donor == BACKGROUND).all(2)] = (255, 0, 255)
    chosen = AugmentSettings(mosaic=0, copy_paste=1, degrees=degrees, hsv_h=0, hsv_s=0, hsv_v=0)
    brought = {}
    for name, source in (("outline", dataset), ("box", replace(dataset, outlines=None))):
        brought[name] = pasted = 0
        for epoch in range(20):
            recipe = sample_recipe(
                source, index=0, size_hw=(160, 160), settings=chosen, seed=0, epoch=epoch, partners=[1]
            )
            canvas, labels = render(recipe, dataset=source, load=[images[0], donor].__getitem__)
            pasted += sum(tile.box is not None for tile in recipe.layers[0])
            assert len(labels) >= sum(tile.box is not None for tile in recipe.layers[0])
            brought[name] += int(((canvas[..., 0] > 200) & (canvas[..., 1] < 40) & (canvas[..., 2] > 200)).sum())
        assert pasted > 10
    assert brought["outline"] < 0.05 * brought["box"]


def test_objects_in_company_are_pasted_where_they_have_outlines():
    boxes = [[(10.0, 10.0, 60.0, 60.0, 0), (30.0, 30.0, 90.0, 90.0, 1)]] * 2
    plain = make_set([SIZE_HW] * 2, boxes)
    outlined = replace(plain, outlines=Outlines.of([[ellipse(box[:4])] for each in boxes for box in each]))
    chosen = AugmentSettings(mosaic=0, copy_paste=1)
    for dataset, expected in ((plain, False), (outlined, True)):
        recipes = [
            sample_recipe(dataset, index=0, size_hw=CANVAS_HW, settings=chosen, seed=0, epoch=epoch)
            for epoch in range(30)
        ]
        assert any(tile.box is not None for recipe in recipes for tile in recipe.layers[0]) == expected


def test_yolo_polygons(tmp_path: Path):
    yaml = make_yolo(tmp_path, {"a": "1 .5 .5 .2 .2\n0 .1 .1 .5 .1 .5 .6\n", "b": ""})
    data = open_dataset(yaml, split="train")
    plain, polygon = data.rings(0)
    assert plain == []
    np.testing.assert_allclose(polygon[0], [[6, 4], [30, 4], [30, 24]], atol=1e-4)  # of 60 x 40 pixels
    assert data.rings(1) == []
    assert open_dataset(make_yolo(tmp_path / "plain", {"a": "0 .5 .5 .1 .1"}), split="train").outlines is None


SEGMENTATIONS = {
    "two rings": ([[10, 10, 20, 10, 20, 20], [22, 12, 30, 12, 30, 20, 22, 20]], 2),
    "outside its box": ([[-50, 10, 500, 10, 30, 20]], 1),
    "a mask": ({"counts": [0, 2400], "size": [40, 60]}, 0),
    "too short": ([[10, 10, 20, 20]], 0),
    "odd": ([[10, 10, 20, 10, 20, 20, 1]], 0),
    "no number": ([[10, 10, None, 10, 20, 20]], 0),
    "not a number": ([[10, 10, float("nan"), 10, 20, 20]], 0),
    "somewhere else": ([[50, 30, 52, 30, 52, 32]], 0),
    "nothing": ([], 0),
}


@pytest.mark.parametrize("name", SEGMENTATIONS)
def test_coco_polygons(tmp_path: Path, name: str):
    segmentation, rings = SEGMENTATIONS[name]
    entry = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 10], "segmentation": segmentation}
    data = open_dataset(make_coco(tmp_path, annotations=[entry]), split="train")
    assert [len(each) for each in data.rings(0)] == [rings]
    for ring in data.rings(0)[0]:
        assert ring.min(0).tolist() >= [10, 10]
        assert (ring.max(0) <= [30, 20]).all()


def test_outlines_stay_with_their_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = {f"{n}": f"0 .{n}1 .1 .{n}9 .1 .{n}5 .9\n1 .5 .5 .{n + 1} .2\n" for n in range(4)}
    yaml = make_yolo(tmp_path / "set", lines)
    data = open_dataset(yaml, split="train")
    some = take_images(data, np.array([3, 1]))
    np.testing.assert_array_equal(some.rings(0)[0][0], data.rings(3)[0][0])
    np.testing.assert_array_equal(some.rings(1)[0][0], data.rings(1)[0][0])
    assert [len(each) for each in take_boxes(data, data.class_ids_N == 1).rings(2)] == [0]
    out = convert(yaml, to="coco", out=tmp_path / "coco")
    again = open_dataset(out.path, split="train")
    np.testing.assert_allclose(again.rings(2)[0][0], data.rings(2)[0][0], atol=1e-4)
    assert (
        "segmentation" not in json.loads((out.path / "annotations/instances_train.json").read_text())["annotations"][1]
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "kept.index"
    assert index_cache.save_index(file, data, whole=[], others=[])
    opened = index_cache.load_index(file)
    assert opened is not None
    np.testing.assert_array_equal(opened.rings(1)[0][0], data.rings(1)[0][0])
    assert opened.rings(1)[1] == []
