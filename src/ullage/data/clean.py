"""From what the labels say to what training uses: images that exist, boxes inside them, each once.

Shape letters: I images, N boxes of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ullage.data.index import DetectionSet, Problem
from ullage.data.outlines import Outlines
from ullage.data.packed import Texts, pack_ids
from ullage.data.probe import Watch, probe_images
from ullage.data.raw import RawBoxes, RawImage, RawSplit
from ullage.errors import DataError

Array = np.ndarray[Any, Any]

# A box may overhang this much from rounding alone; it is clipped without a word.
_ROUNDING_PX = 1.0
# Thinner boxes have no area: float32 would not tell their sides apart in a large image.
_EMPTY_PX = 0.01
# Coordinates beyond this are absurd anyway; the limit keeps arithmetic finite.
_FAR_PX = 1e12
# Multipliers that make equal sums of different rows unlikely; they need not be anything else.
_ODD_7 = np.random.default_rng(0).integers(1, 2**63, 7, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


@dataclass(frozen=True)
class _Columns:
    image_N: Array
    class_N: Array
    xyxy_N4: Array
    crowd_N: Array
    line_N: Array
    area_N: Array
    row_N: Array  # in what was read

    def select(self, rows_N: Array) -> _Columns:
        return _Columns(
            self.image_N[rows_N], self.class_N[rows_N], self.xyxy_N4[rows_N],
            self.crowd_N[rows_N], self.line_N[rows_N], self.area_N[rows_N], self.row_N[rows_N],
        )  # fmt: skip


def clean(
    raw: RawSplit,
    *,
    origin: str,
    names: tuple[str, ...],
    category_ids: tuple[int, ...],
    missing_images: Literal["leave_out", "keep"] = "leave_out",
    watch: Watch | None = None,
) -> DetectionSet:
    """Check every image and box; leave out or clip what cannot be used, and report it.

    Args:
        raw: One split as it is written.
        origin: What the user named; used in messages.
        names: Class names.
        category_ids: COCO category id of each class.
        missing_images: ``"keep"`` keeps images that are missing but whose size the labels state (to judge predictions).
        watch: Hears how far it is.

    Raises:
        DataError: No image is left.
    """
    problems = list(raw.problems)
    sizes = _check_images(raw, missing_images, problems, watch)
    kept = [index for index, size in enumerate(sizes) if size is not None]
    if not kept:
        first = next((p for p in problems if p.action == "image_left_out"), None)
        raise DataError(
            f"data set '{origin}': none of its {len(raw.images)} images can be used; {first or 'no images'}"
        )
    new_index_I = np.full(len(sizes), -1, np.int64)
    new_index_I[kept] = np.arange(len(kept))
    sizes_I2 = np.array([sizes[index] for index in kept], np.int32).reshape(-1, 2)
    columns = _columns(raw.boxes)
    columns = columns.select(new_index_I[columns.image_N] >= 0)
    if raw.unit == "unit":
        columns = _to_pixels(columns, sizes_I2[new_index_I[columns.image_N]])
    report = _Reporter(raw.images, problems)
    columns = _check_boxes(columns, sizes_I2[new_index_I[columns.image_N]], names, raw.unit, report)
    order_N = np.argsort(new_index_I[columns.image_N], kind="stable")
    columns = columns.select(order_N)
    counts_I = np.bincount(new_index_I[columns.image_N], minlength=len(kept))
    areas_N = columns.area_N if np.isfinite(columns.area_N).any() else None
    if areas_N is not None:
        sides_N2 = columns.xyxy_N4[:, 2:] - columns.xyxy_N4[:, :2]
        areas_N = np.where(np.isfinite(areas_N), areas_N, sides_N2.prod(1))
    return DetectionSet(
        names=names,
        paths=Texts.of(raw.images[index].path for index in kept),
        sizes_hw_I2=sizes_I2,
        offsets=np.concatenate(([0], np.cumsum(counts_I))).astype(np.int64),
        boxes_xyxy_px_N4=columns.xyxy_N4.astype(np.float32),
        class_ids_N=columns.class_N.astype(np.int32),
        crowd_N=columns.crowd_N,
        image_ids=pack_ids([raw.images[index].image_id for index in kept]),
        category_ids=category_ids,
        problems=tuple(problems),
        areas_px2_N=areas_N,
        outlines=_outlines(raw, columns, sizes_I2[new_index_I[columns.image_N]]),
    )


def _outlines(raw: RawSplit, columns: _Columns, sizes_N2: Array) -> Outlines | None:
    """Return the polygons of the boxes that are left, inside their boxes; None when no object has one.

    A polygon that spans less than half of its box in either direction says something else than the box: it is not used.
    """
    if not raw.boxes.rings:
        return None
    objects: list[list[Array]] = []
    for row, corners_4, size_hw in zip(columns.row_N.tolist(), columns.xyxy_N4, sizes_N2, strict=True):
        scale_2 = size_hw[::-1] if raw.unit == "unit" else 1
        rings = [np.array(ring, np.float64).reshape(-1, 2) * scale_2 for ring in raw.boxes.rings.get(row, ())]
        rings = [ring.clip(corners_4[:2], corners_4[2:]) for ring in rings if np.isfinite(ring).all()]
        points_P2 = np.concatenate([np.zeros((0, 2)), *rings])
        fills = len(points_P2) > 0 and (2 * np.ptp(points_P2, axis=0) >= corners_4[2:] - corners_4[:2]).all()
        objects.append(rings if fills else [])
    return Outlines.of(objects)


class _Reporter:
    """Turns rows of boxes into problems with file and line."""

    def __init__(self, images: Sequence[RawImage], problems: list[Problem]) -> None:
        self.images = images
        self.problems = problems

    def add(self, kind: Any, action: Any, rows: _Columns, says: Any) -> None:
        for row in range(len(rows.image_N)):
            image = self.images[int(rows.image_N[row])]
            message = says(row)
            if image.label_file == image.source[0]:
                message = f"{message}, in image '{image.path}'"
            self.problems.append(Problem(kind, image.label_file, int(rows.line_N[row]), message, action))


def _check_images(
    raw: RawSplit, missing_images: str, problems: list[Problem], watch: Watch | None
) -> list[tuple[int, int] | None]:
    """Return the size of each image, None for those to leave out."""
    sizes: list[tuple[int, int] | None] = []
    unknown = [image.path for image in raw.images if image.path not in raw.looked_at]
    looked_at = raw.looked_at | dict(zip(unknown, probe_images(unknown, watch=watch), strict=True))
    for image in raw.images:
        found = looked_at[image.path]
        file, line = image.source
        if found == "missing" and missing_images == "keep" and image.declared_hw:
            problems.append(Problem("missing_image", file, line, f"no image '{image.path}'", "kept"))
            sizes.append(image.declared_hw)
        elif found == "missing":
            problems.append(Problem("missing_image", file, line, f"no image '{image.path}'", "image_left_out"))
            sizes.append(None)
        elif isinstance(found, str):
            problems.append(Problem("corrupt_image", image.path, None, found, "image_left_out"))
            sizes.append(None)
        else:
            sizes.append(found)
            if image.declared_hw not in (None, found):
                height, width = image.declared_hw or found
                message = f"'{image.path}' is {found[1]}x{found[0]} pixels; the labels say {width}x{height}"
                problems.append(Problem("size_mismatch", image.label_file, line, message, "kept"))
    return sizes


def _columns(boxes: RawBoxes) -> _Columns:
    return _Columns(
        np.array(boxes.image, np.int64),
        np.array(boxes.class_id, np.int64),
        np.array(boxes.corners, np.float64).reshape(-1, 4).clip(-_FAR_PX, _FAR_PX),
        np.array(boxes.crowd, bool),
        np.array(boxes.line, np.int64),
        np.array(boxes.area_px2, np.float64),
        np.arange(len(boxes)),
    )


def _to_pixels(columns: _Columns, sizes_N2: Array) -> _Columns:
    scale_N4 = sizes_N2[:, [1, 0, 1, 0]].astype(np.float64)
    return replace(columns, xyxy_N4=columns.xyxy_N4 * scale_N4)


def _check_boxes(columns: _Columns, sizes_N2: Array, names: tuple[str, ...], unit: str, report: _Reporter) -> _Columns:
    """Leave out what is no box, clip what overhangs, keep one of equal boxes."""
    bad_N = (columns.class_N < 0) | (columns.class_N >= len(names))
    rows = columns.select(bad_N)
    report.add(
        "class_out_of_range", "box_left_out", rows,
        lambda row: f"class {rows.class_N[row]} is out of range: {len(names)} names, 0 to {len(names) - 1}",
    )  # fmt: skip
    columns, sizes_N2 = columns.select(~bad_N), sizes_N2[~bad_N]

    wanted_N2 = columns.xyxy_N4[:, 2:] - columns.xyxy_N4[:, :2]
    empty_N = np.asarray((wanted_N2 < _EMPTY_PX).any(1))
    empty = columns.select(empty_N)
    report.add("box_empty", "box_left_out", empty, lambda row: f"box {_text(empty, row)} has no area")
    columns, sizes_N2, wanted_N2 = columns.select(~empty_N), sizes_N2[~empty_N], wanted_N2[~empty_N]

    limits_N4 = np.concatenate((np.zeros_like(sizes_N2), sizes_N2[:, ::-1]), 1)
    over_N = np.asarray(
        np.maximum(limits_N4[:, :2] - columns.xyxy_N4[:, :2], columns.xyxy_N4[:, 2:] - limits_N4[:, 2:]).max(1)
    )
    clipped_N4 = columns.xyxy_N4.clip(0, np.concatenate((limits_N4[:, 2:], limits_N4[:, 2:]), 1))
    sides_N2 = clipped_N4[:, 2:] - clipped_N4[:, :2]
    # What is left of an overhanging box must be more than a rounding error, unless the box was that thin all along.
    thin_N = (sides_N2 < np.minimum(_ROUNDING_PX, wanted_N2 / 2)).any(1)
    outside_N = np.asarray((sides_N2 < _EMPTY_PX).any(1) | ((over_N >= _ROUNDING_PX) & thin_N))
    hint = "; YOLO boxes are fractions of the image, not pixels" if unit == "unit" else ""
    outside, sizes_out = columns.select(outside_N), sizes_N2[outside_N]
    report.add(
        "box_outside", "box_left_out", outside,
        lambda row: f"box {_text(outside, row)} is outside the image of {_size(sizes_out[row])}{hint}",
    )  # fmt: skip
    clip_N = ~outside_N & (over_N >= _ROUNDING_PX)
    overhang, sizes_over = columns.select(clip_N), sizes_N2[clip_N]
    report.add(
        "box_outside", "box_clipped", overhang,
        lambda row: f"box {_text(overhang, row)} overhangs the image of {_size(sizes_over[row])}",
    )  # fmt: skip
    return _drop_duplicates(replace(columns, xyxy_N4=clipped_N4).select(~outside_N), report)


def _drop_duplicates(columns: _Columns, report: _Reporter) -> _Columns:
    """Keep the first of boxes that are equal (to a thousandth of a pixel) in the same image, class and crowd flag."""
    if not len(columns.image_N):
        return columns
    keys_N7 = np.column_stack(
        (columns.image_N, columns.class_N, columns.crowd_N, np.round(columns.xyxy_N4 * 1000)),
    ).astype(np.int64)
    # Equal rows have equal sums; only those few are sorted as rows, which takes a hundred times longer.
    sums_N = (keys_N7.astype(np.uint64) * _ODD_7).sum(1)
    _, group_N, counts = np.unique(sums_N, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(counts[group_N] > 1)
    _, first = np.unique(keys_N7[alike], axis=0, return_index=True)
    again_N = np.zeros(len(columns.image_N), bool)
    again_N[alike] = True
    again_N[alike[first]] = False
    again = columns.select(again_N)
    report.add("duplicate_box", "box_left_out", again, lambda row: f"box {_text(again, row)} is there twice")
    return columns.select(~again_N)


def _text(rows: _Columns, row: int) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in rows.xyxy_N4[row]) + ")"


def _size(size_hw: Array) -> str:
    return f"{size_hw[1]}x{size_hw[0]} pixels"
