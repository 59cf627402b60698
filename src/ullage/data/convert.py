"""``ullage data convert``: write a data set in another format, cleaned."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ullage.data import coco_json, csv_table, voc_xml, yolo_txt
from ullage.data.decode import read_file
from ullage.data.index import DetectionSet, Format, Split
from ullage.data.places import is_plain
from ullage.data.source import dataset_info, open_dataset
from ullage.data.spec import absolute
from ullage.errors import ConfigError, DataError, StorageError, nearest

_FORMATS = ("yolo", "coco", "voc", "csv")


@dataclass(frozen=True)
class Conversion:
    """A data set that was written; usable as a path to its folder.

    Attributes:
        path: The folder; it holds a ``data.yaml``.
        images: Number of images of each split.
        boxes: Number of boxes of each split, crowd regions included.
        notes: What was left out or renamed, one sentence each.
    """

    path: Path
    images: dict[Split, int]
    boxes: dict[Split, int]
    notes: tuple[str, ...]

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        parts = [f"{split} {count} images, {self.boxes[split]} boxes" for split, count in self.images.items()]
        return "\n".join([f"{self.path}: {'; '.join(parts)}", *(f"note: {note}" for note in self.notes)])


def convert(data: str | Path, *, to: Format, out: str | Path, images: Literal["copy", "link"] = "copy") -> Conversion:
    """Write the cleaned data set in another format; it appears under ``out`` at once, or not at all.

    Args:
        data: YAML, COCO JSON, CSV, folder, or ``"demo"``.
        to: ``"yolo"``, ``"coco"``, ``"voc"`` or ``"csv"``.
        out: New folder, or an empty one.
        images: Copy the image files, or make hard links (same disk only).

    Raises:
        ConfigError: ``to`` or ``images`` is unknown.
        DataError: The data set cannot be read, or ``to`` cannot express its class names.
        StorageError: ``out`` is not empty or cannot be written.
    """
    if to not in _FORMATS:
        raise ConfigError(f"to={to!r} is unknown; allowed: {', '.join(_FORMATS)}.{nearest(str(to), _FORMATS)}")
    if images not in ("copy", "link"):
        raise ConfigError(f"images={images!r} is unknown; allowed: copy, link")
    target = absolute(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StorageError(f"out='{target}' is not an empty folder; name a new one: nothing is overwritten")
    info = dataset_info(data)
    sets: dict[Split, DetectionSet] = {split: open_dataset(data, split=split) for split in info.splits}
    if to in ("voc", "csv"):
        _check_names(info.names, to)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise StorageError(f"cannot write to '{target.parent}': {error.strerror or error}") from None
    try:
        notes = _write(partial, sets, to, images)
        partial.chmod(0o777 & ~_umask())
        if target.exists():
            target.rmdir()
        partial.replace(target)
    except OSError as error:
        place = f" '{error.filename}'" if error.filename else ""
        raise StorageError(f"cannot write the data set to '{target}':{place} {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    left_out = {problem for one in sets.values() for problem in one.problems if problem.action != "kept"}
    if left_out:
        notes.append(f"{len(left_out)} problems were cleaned away; 'ullage data check' lists them")
    return Conversion(
        path=target,
        images={split: len(one) for split, one in sets.items()},
        boxes={split: len(one.class_ids_N) for split, one in sets.items()},
        notes=tuple(notes),
    )


def _write(out: Path, sets: dict[Split, DetectionSet], to: Format, how: str) -> list[str]:
    """Write images, labels and ``data.yaml``; return notes."""
    notes: list[str] = []
    names = _file_names(sets)
    renamed = sum(os.path.basename(path) != name for path, name in names.items())
    if renamed:
        notes.append(f"{renamed} images got a new name: theirs was there already")
    files = {split: [names[path] for path in one.paths] for split, one in sets.items()}
    crowds = 0
    for split, one in sets.items():
        folder = out / ("JPEGImages" if to == "voc" else f"images/{split}")
        folder.mkdir(parents=True, exist_ok=True)
        for path, name in zip(one.paths, files[split], strict=True):
            _place(path, folder / name, how)
        if to == "yolo":
            crowds += yolo_txt.write(out, split, one, files[split])
        elif to == "coco":
            coco_json.write(out, split, one, files[split])
        elif to == "voc":
            voc_xml.write(out, split, one, files[split])
    if to == "csv":
        rows: dict[str, tuple[DetectionSet, Sequence[str]]] = {
            split: (one, [f"images/{split}/{name}" for name in files[split]]) for split, one in sets.items()
        }
        csv_table.write(out, rows)
    if crowds:
        notes.append(f"{crowds} crowd regions were left out: YOLO files cannot mark them")
    (out / "data.yaml").write_text(yaml.safe_dump(_yaml(sets, to), sort_keys=False, allow_unicode=True), "utf-8")
    return notes


def _yaml(sets: dict[Split, DetectionSet], to: Format) -> dict[str, Any]:
    content: dict[str, Any] = {"format": to, "path": "."}
    if to == "voc":
        content |= {"images": "JPEGImages", "annotations": "Annotations"}
        content |= {split: f"ImageSets/Main/{split}.txt" for split in sets}
    elif to == "csv":
        content["annotations"] = "labels.csv"
    else:
        content |= {split: f"images/{split}" for split in sets}
    if to == "coco":
        content["annotations"] = {split: f"annotations/instances_{split}.json" for split in sets}
    return content | {"names": dict(enumerate(next(iter(sets.values())).names))}


def _file_names(sets: dict[Split, DetectionSet]) -> dict[str, str]:
    """Give every image file a name of its own, by stem: label files are named after it."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(path for one in sets.values() for path in one.paths):
        stem, suffix = os.path.splitext(os.path.basename(path))
        unique, number = stem, 2
        while unique.lower() in taken:
            unique, number = f"{stem}_{number}", number + 1
        taken.add(unique.lower())
        names[path] = unique + suffix
    return names


def _place(source: str, target: Path, how: str) -> None:
    if target.exists():
        return  # an image of two splits, in a format that keeps all images together
    if not is_plain(source):
        target.write_bytes(read_file(source))  # there is no file to link to
    elif how == "link":
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def _check_names(names: Sequence[str], to: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"format {to} tells classes by name, and two are named '{twice[0]}'; rename one")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
