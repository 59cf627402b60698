"""A data set in memory: columns, not objects, so that a million images stay small."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ullage.geometry.labels import Labels

ProblemKind = Literal[
    "missing_image", "corrupt_image", "missing_label", "corrupt_label", "box_outside", "box_empty", "duplicate_box",
    "duplicate_image", "class_out_of_range", "orphan_label", "unsupported",
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a data set, and what reading it did about it.

    Attributes:
        kind: What sort of problem.
        file: The file it is in.
        line: 1-based line (or 0-based annotation number in JSON and XML), None when it is about the whole file.
        message: What was found, in words.
        action: What training does: leave the box out, leave the image out, change the box, or keep all as it is.
    """

    kind: ProblemKind
    file: str
    line: int | None
    message: str
    action: Literal["box_left_out", "image_left_out", "box_clipped", "kept"]

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.message} ({self.action.replace('_', ' ')})"


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
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    sizes_hw_I2: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    boxes_xyxy_px_N4: np.ndarray[Any, Any]
    class_ids_N: np.ndarray[Any, Any]
    crowd_N: np.ndarray[Any, Any]
    image_ids: tuple[int | str, ...]
    category_ids: tuple[int, ...]
    problems: tuple[Problem, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self, index: int) -> Labels:
        """Return the boxes of one image."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Labels(self.boxes_xyxy_px_N4[rows], self.class_ids_N[rows], self.crowd_N[rows])

    def size_hw(self, index: int) -> tuple[int, int]:
        """Return height and width of one image."""
        height, width = self.sizes_hw_I2[index]
        return int(height), int(width)
