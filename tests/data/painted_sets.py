"""Small data sets of painted rectangles: each class has its own colour, so pixels tell what a box must hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ullage.data.index import DetectionSet

BACKGROUND = (40, 40, 40)
COLOURS = ((250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20))
NAMES = ("red", "green", "blue", "yellow")

Box = tuple[float, float, float, float, int]  # corners, class


def paint(size_hw: tuple[int, int], boxes: Sequence[Box], background: tuple[int, int, int] = BACKGROUND) -> np.ndarray:
    """Paint boxes with whole-pixel corners; a later one covers an earlier one."""
    image = np.empty((*size_hw, 3), np.uint8)
    image[...] = background
    for left, top, right, bottom, class_id in boxes:
        image[int(top) : int(bottom), int(left) : int(right)] = COLOURS[class_id]
    return image


def make_set(
    sizes_hw: Sequence[tuple[int, int]],
    boxes: Sequence[Sequence[Box]],
    *,
    paths: Sequence[str | Path] | None = None,
    crowd: Sequence[bool] | None = None,
) -> DetectionSet:
    """Build a set in memory; without paths there are no files behind it."""
    rows = np.array([box for each in boxes for box in each], np.float64).reshape(-1, 5)
    return DetectionSet(
        names=NAMES,
        paths=tuple(str(path) for path in paths) if paths else tuple(f"{i}.png" for i in range(len(sizes_hw))),
        sizes_hw_I2=np.array(sizes_hw, np.int32).reshape(-1, 2),
        offsets=np.concatenate(([0], np.cumsum([len(each) for each in boxes]))).astype(np.int64),
        boxes_xyxy_px_N4=rows[:, :4].astype(np.float32),
        class_ids_N=rows[:, 4].astype(np.int32),
        crowd_N=np.zeros(len(rows), bool) if crowd is None else np.array(crowd, bool),
        image_ids=tuple(range(len(sizes_hw))),
        category_ids=(0, 1, 2, 3),
    )


def random_boxes(rng: np.random.Generator, size_hw: tuple[int, int], count: int) -> list[Box]:
    """Draw boxes that do not touch each other."""
    found: list[Box] = []
    for _ in range(count * 10):
        width, height = rng.integers(8, 30, 2)
        left, top = rng.integers(0, max(size_hw[1] - width, 1)), rng.integers(0, max(size_hw[0] - height, 1))
        box = (float(left), float(top), float(left + width), float(top + height), int(rng.integers(4)))
        apart = all(
            box[2] + 3 < other[0] or other[2] + 3 < box[0] or box[3] + 3 < other[1] or other[3] + 3 < box[1]
            for other in found
        )
        if apart and len(found) < count and box[2] <= size_hw[1] and box[3] <= size_hw[0]:
            found.append(box)
    return found


def write_set(folder: Path, *, count: int = 11, seed: int = 0, suffix: str = ".jpg") -> DetectionSet:
    """Write painted images of several shapes; every fourth has no box, and one box in the set is a crowd."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [((96, 128), (128, 80), (100, 100), (150, 70), (60, 160))[i % 5] for i in range(count)]
    boxes = [[] if i % 4 == 3 else random_boxes(rng, size, 4) for i, size in enumerate(sizes)]
    paths = [folder / f"{i:03d}{suffix}" for i in range(count)]
    for path, size, each in zip(paths, sizes, boxes, strict=True):
        image = paint(size, each, tuple(int(part) for part in rng.integers(30, 90, 3)))
        assert cv2.imwrite(str(path), image[..., ::-1])
    total = sum(len(each) for each in boxes)
    return make_set(sizes, boxes, paths=paths, crowd=[i == 0 for i in range(total)])
