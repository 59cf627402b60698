"""What a format's reader hands to cleaning: images and boxes as they are written, in columns."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ullage.data.index import Problem

_NOT_STATED = array("d", (math.nan,))


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

    ``area_px2`` is the object's area where the labels state it, else None. ``rings`` are its polygons, each x, y, x, y
    and so on, in the unit of the corners.
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
    rings: tuple[Sequence[float], ...] = ()


class RawBoxes:
    """Boxes in columns: ten million of them as objects would take gigabytes."""

    def __init__(self) -> None:
        self.image, self.class_id, self.line = array("q"), array("q"), array("q")
        self.corners = array("d")  # four a box
        self.crowd = array("b")
        self.area_px2 = array("d")  # NaN where it is not stated
        self.rings: dict[int, tuple[Sequence[float], ...]] = {}  # of the boxes that have polygons

    def __len__(self) -> int:
        return len(self.image)

    def __iter__(self) -> Iterator[RawBox]:
        for row, area in enumerate(self.area_px2):
            left, top, right, bottom = self.corners[4 * row : 4 * row + 4]
            image, class_id, line, crowd = self.image[row], self.class_id[row], self.line[row], bool(self.crowd[row])
            stated = None if math.isnan(area) else area
            yield RawBox(image, class_id, left, top, right, bottom, crowd, line, stated, self.rings.get(row, ()))

    def append(self, box: RawBox) -> None:
        """Add one box."""
        if box.rings:
            self.rings[len(self)] = tuple(array("f", ring) for ring in box.rings)
        self.image.append(box.image)
        self.class_id.append(box.class_id)
        self.corners.extend(box[2:6])
        self.crowd.append(box.crowd)
        self.line.append(box.line)
        self.area_px2.append(math.nan if box.area_px2 is None else box.area_px2)

    def extend(
        self,
        image: int,
        class_ids: Sequence[int],
        corners: Sequence[float],
        lines: Iterable[int],
        rings: Mapping[int, tuple[Sequence[float], ...]],
    ) -> None:
        """Add the boxes of one image; their corners lie one behind the other, none is a crowd or states an area."""
        count = len(class_ids)
        if rings:
            self.rings.update({len(self) + place: each for place, each in rings.items()})
        self.image.extend(array("q", (image,)) * count)
        self.class_id.extend(class_ids)
        self.corners.extend(corners)
        self.crowd.frombytes(bytes(count))
        self.line.extend(lines)
        self.area_px2.extend(_NOT_STATED * count)


@dataclass
class RawSplit:
    """One split as it is written.

    Attributes:
        unit: Whether the boxes are in pixels or in fractions of the image's width and height.
        images: All images, those that cannot be read included.
        boxes: Corners; ``image`` is an index into ``images``. Boxes that cannot be read are not among them.
        problems: What reading the labels found.
        looked_at: The sizes of images that were looked at already, or in words why they cannot be read.
    """

    unit: Literal["px", "unit"]
    images: list[RawImage] = field(default_factory=list)
    boxes: RawBoxes = field(default_factory=RawBoxes)
    problems: list[Problem] = field(default_factory=list)
    looked_at: dict[str, tuple[int, int] | str] = field(default_factory=dict)
