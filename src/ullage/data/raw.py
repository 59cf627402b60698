"""What a format's reader hands to cleaning: images and boxes as they are written, in columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ullage.data.index import Problem


class RawImage(NamedTuple):
    """One image as the labels name it.

    Attributes:
        path: The file, absolute; it need not exist.
        image_id: COCO's id, else the file's stem.
        label_file: The file that its boxes come from.
        source: File and line that name the image.
        declared_hw: Its size as the labels state it, None when they do not.
    """

    path: str
    image_id: int | str
    label_file: str
    source: tuple[str, int | None]
    declared_hw: tuple[int, int] | None


class RawBox(NamedTuple):
    """One box as it is written; ``line`` is a line of a text file or the number of an annotation.

    ``area_px2`` is the object's area where the labels state it, else None.
    """

    image: int
    class_id: int
    x1: float
    y1: float
    x2: float
    y2: float
    crowd: bool
    line: int
    area_px2: float | None = None


@dataclass
class RawSplit:
    """One split as it is written.

    Attributes:
        unit: Whether the boxes are in pixels or in fractions of the image's width and height.
        images: All images, those that cannot be read included.
        boxes: Corners; ``image`` is an index into ``images``. Boxes that cannot be read are not among them.
        problems: What reading the labels found.
    """

    unit: Literal["px", "unit"]
    images: list[RawImage] = field(default_factory=list)
    boxes: list[RawBox] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
