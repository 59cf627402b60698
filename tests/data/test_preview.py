"""Pictures of batches and labels are written, show what they should, and fail in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from painted_sets import COLOURS, NAMES, make_set, write_set

from ullage.config.augment import AugmentSettings
from ullage.data.batch import Batch
from ullage.data.decode import read_image
from ullage.data.index import DetectionSet
from ullage.data.loader import EvalLoader, TrainLoader
from ullage.data.preview import draw_batch, save_labels_picture, save_train_batch
from ullage.errors import StorageError
from ullage.geometry.drawing import class_colour
from ullage.geometry.targets import Targets


def test_a_sheet_shows_images_and_boxes():
    images = torch.full((3, 64, 96, 3), 60, dtype=torch.uint8).permute(0, 3, 1, 2)
    targets = Targets(torch.tensor([1]), torch.tensor([2]), torch.tensor([[20.0, 10, 70, 50]]), 3)
    batch = Batch(images, targets, (0, 1, 2))
    with_box = draw_batch(batch, names=NAMES)
    without = draw_batch(Batch(images, Targets.empty(3), (0, 1, 2)), names=NAMES)
    assert with_box.shape == without.shape
    assert with_box.dtype == np.uint8
    changed = (with_box != without).any(-1)
    # Only the second of two columns, in the first row, has a box: in the colour of its class.
    assert changed[:, changed.shape[1] // 2 :].any()
    assert not changed[:, : changed.shape[1] // 2].any()
    assert not changed[changed.shape[0] // 2 :].any()
    distance = np.abs(with_box[changed].astype(int) - class_colour(2)).max(-1)
    assert (distance < 30).mean() > 0.3


def test_no_more_images_than_asked(tmp_path):
    images = torch.zeros(5, 32, 32, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    batch = Batch(images, Targets.empty(5), tuple(range(5)))
    one = draw_batch(batch, names=NAMES, max_images=1)
    four = draw_batch(batch, names=NAMES, max_images=4)
    assert four.shape[0] > 1.5 * one.shape[0]


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_batches_are_saved_as_jpeg(tmp_path, kind):
    dataset = write_set(tmp_path / "images", count=5)
    if kind == "train":
        loader = TrainLoader(dataset, batch=4, imgsz=96, augment=AugmentSettings(), workers=0)
        batch = next(iter(loader.epoch(0, epochs=9)))
    else:
        batch = next(iter(EvalLoader(dataset, imgsz=96, batch=4, workers=0)))
    save_train_batch(batch, path=tmp_path / "train_batch0.jpg", names=NAMES)
    assert (tmp_path / "train_batch0.jpg").read_bytes().startswith(b"\xff\xd8\xff")
    picture = read_image(tmp_path / "train_batch0.jpg").astype(int)
    assert any((np.abs(picture - colour).max(-1) < 60).sum() > 50 for colour in COLOURS)


@pytest.mark.parametrize(("classes", "boxes"), [(1, 0), (4, 1), (12, 300), (90, 300)])
def test_the_label_chart(tmp_path, classes, boxes):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 50, (boxes, 2))
    dataset = DetectionSet(
        names=tuple(f"$class_{i}" for i in range(classes)),
        paths=("a.jpg", "b.jpg"),
        sizes_hw_I2=np.array([[100, 100], [100, 100]], np.int32),
        offsets=np.array([0, boxes // 2, boxes]),
        boxes_xyxy_px_N4=np.concatenate((corners, corners + rng.uniform(1, 50, (boxes, 2))), 1).astype(np.float32),
        class_ids_N=rng.integers(0, classes, boxes).astype(np.int32),
        crowd_N=np.zeros(boxes, bool),
        image_ids=("a", "b"),
        category_ids=tuple(range(classes)),
    )
    save_labels_picture(dataset, path=tmp_path / "labels.png")
    picture = read_image(tmp_path / "labels.png")
    assert picture.shape[0] > 600
    assert picture.std() > 5


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    batch = Batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), Targets.empty(1), (0,))
    with pytest.raises(StorageError, match=r"absent.*x\.jpg"):
        save_train_batch(batch, path=tmp_path / "absent" / "x.jpg", names=NAMES)
    with pytest.raises(StorageError, match=r"absent.*labels\.png"):
        save_labels_picture(make_set([(9, 9)], [[]]), path=tmp_path / "absent" / "labels.png")
