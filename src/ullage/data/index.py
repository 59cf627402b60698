"""A data set in memory: columns, not objects, so that a million images stay small."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ullage.data.outlines import Outlines
from ullage.data.packed import Numbers, Texts
from ullage.geometry.boxes import area_xyxy
from ullage.geometry.labels import Labels

Split = Literal["train", "val", "test"]
Format = Literal["yolo", "coco", "voc", "csv"]
ProblemKind = Literal[
    "missing_image", "corrupt_image", "missing_label", "corrupt_label", "box_outside", "box_empty", "duplicate_box",
    "duplicate_image", "duplicate_label", "class_out_of_range", "orphan_label", "size_mismatch",
]  # fmt: skip
Action = Literal["box_left_out", "image_left_out", "label_left_out", "box_clipped", "kept"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set, and what reading it did about it.

    Attributes:
        kind: What sort of problem.
        file: The file it is in.
        line: 1-based line (or 0-based annotation number in JSON and XML), None when it is about the whole file.
        message: What was found, in words.
        action: What training does: leave the box, the image or the label file out, clip the box, or keep all as it is.
    """

    kind: ProblemKind
    file: str
    line: int | None
    message: str
    action: Action

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        # What a label file holds is quoted, and it may hold line breaks.
        return " ".join(f"{where}: {self.message} ({self.action.replace('_', ' ')})".splitlines())


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is, before its images are looked at.

    Attributes:
        names: Class names.
        splits: The splits it has.
        format: How its labels are written.
        root: Folder that its paths are relative to.
        category_ids: COCO category id of each class, else 0, 1, 2 ...
        notes: What a user should know about how it was read, one sentence each.
    """

    names: tuple[str, ...]
    splits: tuple[Split, ...]
    format: Format
    root: Path
    category_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DetectionSet:
    """One split of a data set after cleaning. Shape letters: I images, N boxes of all images.

    Attributes:
        names: Class names; ``class_ids_N`` index them.
        paths: Image files.
        sizes_hw_I2: int32, size of each image as it decodes (EXIF orientation applied).
        offsets: int64 of I + 1 entries; the boxes of image i are rows ``offsets[i]:offsets[i + 1]``.
        boxes_xyxy_px_N4: float32, corners in pixels of the original image, clipped to it.
        class_ids_N: int32.
        crowd_N: bool, see ``Labels``.
        image_ids: Identifiers for ``predictions.json``: COCO's ids, else the file's stem.
        category_ids: COCO category id of each class, else 0, 1, 2 ...
        problems: What was wrong and what was done about it.
        areas_px2_N: float64, area of each object where the labels state it (COCO's mask area, which its small, medium
            and large are about), else of its box. None means: of its box.
        outlines: Polygons of the objects, where the labels have any; None means that no object has one.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...] | Texts
    sizes_hw_I2: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    boxes_xyxy_px_N4: np.ndarray[Any, Any]
    class_ids_N: np.ndarray[Any, Any]
    crowd_N: np.ndarray[Any, Any]
    image_ids: tuple[int | str, ...] | Texts | Numbers
    category_ids: tuple[int, ...]
    problems: tuple[Problem, ...] = field(default=())
    areas_px2_N: np.ndarray[Any, Any] | None = None
    outlines: Outlines | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self, index: int) -> Labels:
        """Return the boxes of one image."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Labels(self.boxes_xyxy_px_N4[rows], self.class_ids_N[rows], self.crowd_N[rows])

    def areas_px2(self, index: int) -> np.ndarray[Any, Any]:
        """Return the objects' areas in one image, float64, in the order of its boxes."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        if self.areas_px2_N is not None:
            return self.areas_px2_N[rows]
        return area_xyxy(self.boxes_xyxy_px_N4[rows].astype(np.float64))

    def rings(self, index: int) -> list[list[np.ndarray[Any, Any]]]:
        """Return the polygons of each object in one image, float32 (points, 2); an empty list where it has none."""
        rows = range(int(self.offsets[index]), int(self.offsets[index + 1]))
        return [self.outlines.rings(row) if self.outlines is not None else [] for row in rows]

    def size_hw(self, index: int) -> tuple[int, int]:
        """Return height and width of one image."""
        height, width = self.sizes_hw_I2[index]
        return int(height), int(width)
