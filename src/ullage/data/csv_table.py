"""CSV: one row a box, ``image,xmin,ymin,xmax,ymax,label[,split][,crowd]`` in pixels.

A row with the image alone says that it shows nothing. Without a ``split`` column, images are dealt out by hash.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ullage.data.index import DetectionSet, Problem, Split
from ullage.data.raw import RawBox, RawImage, RawSplit
from ullage.data.spec import SPLIT_ALIASES, SPLITS, SourceSpec, absolute, read_text, split_of
from ullage.errors import DataError, nearest

COLUMNS = ("image", "xmin", "ymin", "xmax", "ymax", "label", "split", "crowd")
_REQUIRED = COLUMNS[:6]
_ALIASES = {
    "filename": "image",
    "file_name": "image",
    "file": "image",
    "path": "image",
    "class": "label",
    "name": "label",
}


class Row(NamedTuple):
    """One row: its 1-based line, and its cells by column."""

    line: int
    cells: dict[str, str]


def load(file: Path) -> list[Row]:
    """Read a table.

    Raises:
        DataError: It is missing, empty, or lacks a column.
    """
    reader = csv.reader(io.StringIO(read_text(file, what="CSV"), newline=""), strict=False)
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        columns = [cell if cell in COLUMNS else _ALIASES.get(cell, cell) for cell in header]
        missing = [name for name in _REQUIRED if columns.count(name) != 1]
        if missing:
            raise DataError(
                f"'{file}': the first line must name the columns {','.join(_REQUIRED)}[,split]; "
                f"{', '.join(missing)} not found once in '{','.join(header)[:100]}'.{nearest(missing[0], header)}"
            )
        rows = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                padded = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
                rows.append(Row(reader.line_num, dict(zip(columns, padded, strict=False))))
    except csv.Error as error:
        raise DataError(f"'{file}' line {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"'{file}' has no rows below its header")
    return rows


def read_splits(file: Path) -> tuple[Split, ...]:
    """Return the splits that the ``split`` column names, empty when there is no such column.

    Raises:
        DataError: A value is no split.
    """
    rows = load(file)
    if "split" not in rows[0].cells:
        return ()
    for row in rows:
        if split_of(row.cells["split"]) is None:
            allowed = ", ".join(SPLIT_ALIASES)
            raise DataError(f"'{file}' line {row.line}: split '{row.cells['split']}' is unknown; allowed: {allowed}")
    present = {split_of(row.cells["split"]) for row in rows}
    return tuple(split for split in SPLITS if split in present)


def read_names(spec: SourceSpec) -> tuple[str, ...]:
    """Return the class names; without any in the YAML, all labels, sorted.

    Raises:
        DataError: No row has a label.
    """
    if spec.names is not None:
        return spec.names
    files = dict.fromkeys(file for files in (spec.annotations or {}).values() for file in files)
    found = {row.cells["label"] for file in files for row in load(file)} - {""}
    if not found:
        raise DataError(f"data set '{spec.origin}' names no classes and no row has a label")
    return tuple(sorted(found))


def read(spec: SourceSpec, split: Split, *, names: Sequence[str]) -> RawSplit:
    """Read one split."""
    raw = RawSplit("px")
    classes = {name: index for index, name in enumerate(names)}
    annotations = spec.annotations or {}
    index_of: dict[str, int] = {}
    for file in annotations[split] if split in annotations else annotations[""]:
        rows = load(file)
        if split not in annotations and "split" in rows[0].cells:
            rows = [row for row in rows if split_of(row.cells["split"]) == split]
        unnamed = [row for row in rows if not row.cells["image"]]
        for row in unnamed:
            raw.problems.append(Problem("corrupt_label", str(file), row.line, "names no image", "box_left_out"))
        chosen = spec.deal([row.cells["image"] for row in rows if row.cells["image"]], split)
        for row in rows:
            name = row.cells["image"]
            if name not in chosen:
                continue
            if name not in index_of:
                index_of[name] = len(raw.images)
                stem = os.path.splitext(os.path.basename(name))[0]
                raw.images.append(RawImage(_find(name, file, spec), stem, str(file), (str(file), row.line), None))
            _read_box(row, index_of[name], classes, str(file), raw)
    return raw


def write(out: Path, splits: dict[str, tuple[DetectionSet, Sequence[str]]]) -> None:
    """Write ``out / "labels.csv"``: for each split its data and the path of each image below ``out``."""
    with (out / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(COLUMNS)
        for split, (data, files) in splits.items():
            for index, name in enumerate(files):
                labels = data.labels(index)
                rows = zip(labels.boxes_xyxy_px_G4, labels.class_ids_G.tolist(), labels.crowd_G.tolist(), strict=True)
                for corners, kind, crowd in rows:
                    texts = [str(int(value)) if value == int(value) else str(value) for value in corners]
                    table.writerow([name, *texts, data.names[kind], split, int(crowd)])
                if not len(labels):
                    table.writerow([name, "", "", "", "", "", split, ""])


def _find(name: str, file: Path, spec: SourceSpec) -> str:
    folders = spec.images or (file.parent,)
    places = [absolute(folder / name.replace("\\", "/")) for folder in folders]
    return str(next((place for place in places if place.is_file()), places[0]))


def _read_box(row: Row, image: int, classes: dict[str, int], file: str, raw: RawSplit) -> None:
    texts = [row.cells[name] for name in ("xmin", "ymin", "xmax", "ymax")]
    label = row.cells["label"]
    if not any(texts) and not label:
        return
    try:
        corners = [float(text) for text in texts]
    except ValueError:
        corners = [math.nan]
    if not all(map(math.isfinite, corners)):
        message = f"corners '{','.join(texts)}' are not four finite numbers"
        raw.problems.append(Problem("corrupt_label", file, row.line, message, "box_left_out"))
    elif label not in classes:
        message = f"class '{label}' is not among the names.{nearest(label, classes)}"
        raw.problems.append(Problem("class_out_of_range", file, row.line, message, "box_left_out"))
    else:
        left, top, right, bottom = corners
        crowd = row.cells.get("crowd") in ("1", "true", "True")
        raw.boxes.append(RawBox(image, classes[label], left, top, right, bottom, crowd, row.line))
