"""YOLO labels: one text file an image, one line a box: ``class x_centre y_centre width height`` in fractions.

A polygon (``class x1 y1 x2 y2 x3 y3 ...``) counts as the box around it. The label of ``.../images/a.jpg`` is
``.../labels/a.txt``; without a folder named ``images`` it lies beside the image. No label file means that the image
shows nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from ullage.data.index import DetectionSet, Problem, Split
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
    used = {box.class_id for split in spec.split_names() for box in read(spec, split).boxes}
    if not used or max(used) < 0:
        raise DataError(f"data set '{spec.origin}' names no classes and has no boxes; add 'names: [...]' to its YAML")
    return tuple(str(number) for number in range(max(used) + 1))


def read(spec: SourceSpec, split: Split) -> RawSplit:
    """Read the labels of one split.

    Raises:
        DataError: There are no images, or none of them has a label file.
    """
    listed, problems = list_images(spec, split)
    raw = RawSplit("unit", problems=problems)
    missing: list[tuple[str, str]] = []
    owners: dict[str, str] = {}
    for item in listed:
        label = label_path(item.path)
        if label in owners:
            message = f"images '{owners[label]}' and '{item.path}' share this label file; both get its boxes"
            raw.problems.append(Problem("duplicate_label", label, None, message, "kept"))
        owners.setdefault(label, item.path)
        rows = read_label_file(label, len(raw.images), raw.problems)
        if rows is None and not os.path.exists(label):
            missing.append((item.path, label))
        elif rows is None:
            continue
        raw.boxes += rows or []
        stem = os.path.splitext(os.path.basename(item.path))[0]
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
    raw.problems += _orphans([item.path for item in listed])
    return raw


def read_label_file(path: str, image: int, problems: list[Problem]) -> list[RawBox] | None:
    """Read one label file; None when it is missing or no text. Lines that cannot be read are reported, left out."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        problems.append(Problem("corrupt_label", path, None, f"cannot be read: {error.strerror}", "image_left_out"))
        return None
    except UnicodeDecodeError:
        problems.append(Problem("corrupt_label", path, None, "not a text file", "image_left_out"))
        return None
    rows: list[RawBox] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        row = _parse_line(line, image, number)
        if isinstance(row, str):
            problems.append(Problem("corrupt_label", path, number, row, "box_left_out"))
        else:
            rows.append(row)
    return rows


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
    return RawBox(image, int(values[0]), *corners, False, number)


def _orphans(images: Sequence[str]) -> list[Problem]:
    """Report label files without image, in folders of labels only: beside images, a .txt may be anything."""
    folders = {os.path.dirname(label_path(image)): os.path.dirname(image) for image in images}
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
