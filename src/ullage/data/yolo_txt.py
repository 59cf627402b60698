"""YOLO labels: one text file an image, one line a box: ``class x_centre y_centre width height`` in fractions.

A polygon (``class x1 y1 x2 y2 x3 y3 ...``) gives the box around it, and is kept as the object's outline. The label of
``.../images/a.jpg`` is ``.../labels/a.txt``; without a folder named ``images`` it lies beside the image. No label file
means that the image shows nothing.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from ullage.data.index import DetectionSet, Problem, Split
from ullage.data.probe import Watch, in_threads, read_bytes
from ullage.data.raw import RawBox, RawImage, RawSplit
from ullage.data.spec import IMAGE_SUFFIXES, SourceSpec, list_images, read_text
from ullage.errors import DataError
from ullage.geometry.boxes import scale_boxes, xyxy_to_cxcywh

_LARGEST_CLASS = 10**6
_NOT_LABELS = frozenset(("classes.txt", "obj.names", "readme.txt", "requirements.txt"))


def label_path(image: str) -> str:
    """Return where the labels of an image are: its last folder named ``images`` becomes ``labels``."""
    stem = os.path.splitext(image)[0] + ".txt"
    head, found, tail = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{head}{os.sep}labels{os.sep}{tail}" if found else stem


def read_names(spec: SourceSpec) -> tuple[str, ...]:
    """Return the class names; without any in the YAML or ``classes.txt``, as many numbers as the labels use.

    Raises:
        DataError: There are no labels to tell the classes from.
    """
    if spec.names is not None:
        return spec.names
    for folder in (spec.root, spec.root / "labels"):
        if (folder / "classes.txt").is_file():
            lines = read_text(folder / "classes.txt", what="list of classes").splitlines()
            return tuple(line.strip() for line in lines if line.strip())
    used = {number for split in spec.split_names() for number in read(spec, split).boxes.class_id}
    if not used or max(used) < 0:
        raise DataError(f"data set '{spec.origin}' names no classes and has no boxes; add 'names: [...]' to its YAML")
    return tuple(str(number) for number in range(max(used) + 1))


def read(spec: SourceSpec, split: Split, *, watch: Watch | None = None) -> RawSplit:
    """Read the labels of one split.

    Args:
        spec: The data set.
        split: The split.
        watch: Hears how far it is.

    Raises:
        DataError: There are no images, or none of them has a label file.
    """
    listed, problems = list_images(spec, split)
    raw = RawSplit("unit", problems=problems)
    missing: list[tuple[str, str]] = []
    owners: dict[str, str] = {}
    labels = [label_path(item.path) for item in listed]
    files = in_threads(read_label_file, labels, watch=watch, what=f"labels of {split}")
    for item, label, file in zip(listed, labels, files, strict=True):
        if owners.setdefault(label, item.path) != item.path:
            message = f"images '{owners[label]}' and '{item.path}' share this label file; both get its boxes"
            raw.problems.append(Problem("duplicate_label", label, None, message, "kept"))
        if file.problems:
            raw.problems += file.problems
        if file.state == "missing":
            missing.append((item.path, label))
        elif file.state == "unreadable":
            continue
        raw.boxes.extend(len(raw.images), file.class_ids, file.corners, file.lines, file.rings)
        stem = label[label.rfind(os.sep) + 1 : -len(".txt")]
        raw.images.append(RawImage(item.path, stem, label, (item.file, item.line), None))
    if missing and len(missing) == len(listed):
        raise DataError(
            f"data set '{spec.origin}': none of the {len(listed)} images of split '{split}' has a label file; "
            f"looked for '{missing[0][1]}' for '{missing[0][0]}'"
        )
    raw.problems += [
        Problem("missing_label", image, None, f"no label file '{label}': counts as showing nothing", "kept")
        for image, label in missing
        if os.path.exists(image)
    ]
    raw.problems += _orphans({os.path.dirname(label): os.path.dirname(image) for label, image in owners.items()})
    return raw


class LabelFile(NamedTuple):
    """What a label file says.

    Attributes:
        state: Whether there is such a file, and whether it is text.
        class_ids: Of each box.
        corners: Of all boxes, four each, as fractions of the image.
        rings: The polygon of each box that has one, by its place.
        lines: Of each box, 1-based.
        problems: Lines that cannot be read; they are left out.
    """

    state: Literal["read", "missing", "unreadable"]
    class_ids: Sequence[int] = ()
    corners: Sequence[float] = ()
    lines: Sequence[int] = ()
    rings: Mapping[int, tuple[Sequence[float], ...]] = MappingProxyType({})
    problems: tuple[Problem, ...] = ()


def read_label_file(path: str) -> LabelFile:
    """Read one label file."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return LabelFile("missing")
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        return LabelFile("unreadable", problems=(Problem("corrupt_label", path, None, message, "image_left_out"),))
    return parse_labels(content, path)


def parse_labels(content: bytes, path: str) -> LabelFile:
    """Read the content of a label file; ``path`` is its name, for messages."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        message = "not a text file"
        return LabelFile("unreadable", problems=(Problem("corrupt_label", path, None, message, "image_left_out"),))
    lines = text.splitlines()
    return _parse_plain(lines) or _parse_lines(lines, path)


def _parse_plain(lines: Sequence[str]) -> LabelFile | None:
    """Read a file of boxes and nothing else, many times faster than line by line; None where that is not so."""
    rows = [line.split() for line in lines]
    if not set(map(len, rows)) <= {5}:
        return None
    try:
        values = list(map(float, chain.from_iterable(rows)))
        ids = list(map(int, values[0::5]))
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(sum(values)) or ids != values[0::5] or max(map(abs, ids), default=0) > _LARGEST_CLASS:
        return None
    corners = [
        side
        for x, y, width, height in zip(values[1::5], values[2::5], values[3::5], values[4::5], strict=True)
        for side in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    ]
    return LabelFile("read", ids, corners, range(1, len(rows) + 1))


def _parse_lines(lines: Sequence[str], path: str) -> LabelFile:
    """Read a file line by line; what cannot be read becomes a problem."""
    found: list[RawBox] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _parse_line(line, 0, number)
        if isinstance(row, str):
            problems.append(Problem("corrupt_label", path, number, row, "box_left_out"))
        else:
            found.append(row)
    return LabelFile(
        "read",
        [row.class_id for row in found],
        [side for row in found for side in row[2:6]],
        [row.line for row in found],
        {place: tuple(array("f", ring) for ring in row.rings) for place, row in enumerate(found) if row.rings},
        tuple(problems),
    )


def write(out: Path, split: str, data: DetectionSet, files: Sequence[str]) -> int:
    """Write the labels of one split below ``out / "labels" / split``.

    Args:
        out: Root of the new data set.
        split: Name of the split.
        data: What to write.
        files: File name of each image in the new data set.

    Returns:
        Number of crowd regions left out: YOLO files cannot mark them.
    """
    folder = out / "labels" / split
    folder.mkdir(parents=True)
    crowds = 0
    for index, name in enumerate(files):
        labels, (height, width) = data.labels(index), data.size_hw(index)
        crowds += int(labels.crowd_G.sum())
        labels = labels.select(~labels.crowd_G)
        unit = scale_boxes(xyxy_to_cxcywh(labels.boxes_xyxy_px_G4.astype(float)), (1 / height, 1 / width))
        # Twelve digits give back the same float32 pixels.
        lines = [
            f"{kind} " + " ".join(f"{number:.12g}" for number in box)
            for kind, box in zip(labels.class_ids_G.tolist(), unit.tolist(), strict=True)
        ]
        (folder / f"{os.path.splitext(name)[0]}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return crowds


def _parse_line(line: str, image: int, number: int) -> RawBox | str:
    fields = line.split()
    try:
        values = [float(field) for field in fields]
    except ValueError:
        return f"'{_short(line)}' holds something that is not a number"
    if not all(map(math.isfinite, values)):
        return f"'{_short(line)}' holds a number that is not finite"
    if len(values) < 5 or (len(values) > 5 and (len(values) < 7 or len(values) % 2 == 0)):
        return (
            f"{len(values)} fields in '{_short(line)}'; a box has 5 (class x_centre y_centre width height), "
            "a polygon 1 + 2 a corner"
        )
    if values[0] != int(values[0]) or abs(values[0]) > _LARGEST_CLASS:
        return f"class '{fields[0]}' is not a class number"
    if len(values) == 5:
        x, y, width, height = values[1:]
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        xs, ys = values[1::2], values[2::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    rings = (values[1:],) if len(values) > 5 else ()
    return RawBox(image, int(values[0]), *corners, False, number, None, rings)


def _orphans(folders: Mapping[str, str]) -> list[Problem]:
    """Report label files without image, in folders of labels only: beside images, a .txt may be anything.

    Args:
        folders: For each folder of labels the folder of its images.
    """
    found: list[Problem] = []
    for labels, pictures in folders.items():
        if labels == pictures or not os.path.isdir(labels) or not os.path.isdir(pictures):
            continue
        stems = {
            stem for stem, suffix in map(os.path.splitext, os.listdir(pictures)) if suffix.lower() in IMAGE_SUFFIXES
        }
        for name in sorted(os.listdir(labels)):
            stem, suffix = os.path.splitext(name)
            if suffix == ".txt" and stem not in stems and name.lower() not in _NOT_LABELS:
                message = f"no image '{stem}.*' in '{pictures}'"
                found.append(Problem("orphan_label", os.path.join(labels, name), None, message, "label_left_out"))
    return found


def _short(line: str) -> str:
    text = " ".join(line.split())
    return text if len(text) <= 60 else text[:57] + "..."
