"""The data YAML as users have it: ``path``, ``train``, ``val``, ``test``, ``names`` or ``nc``, and ``format``.

Every split is a folder, a glob, a list file, an image, an annotation file (COCO, CSV), or a list of these; relative
paths start from ``path``, and that from the folder of the YAML. Nothing that a YAML says is ever downloaded or run.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from ullage.data.csv_table import read_splits
from ullage.data.index import Format, Split
from ullage.data.spec import SPLITS, SourceSpec, absolute, as_strings, read_text
from ullage.errors import DataError, nearest

KEYS = ("path", "train", "val", "test", "names", "nc", "format", "images", "annotations")
_FORMATS = ("yolo", "coco", "voc", "csv")
_VAL_NAMES = ("val", "valid", "validation")
# Keys that other tools write; they say nothing about where images and labels are.
_KNOWN_ELSEWHERE = frozenset(
    ("download", "roboflow", "kpt_shape", "flip_idx", "channels", "author", "license", "licence", "version",
     "description", "date", "url", "task", "minival", "info", "contributor", "year", "colors", "colours", "palette")
)  # fmt: skip


def read_yaml(file: Path) -> SourceSpec:
    """Read a data YAML.

    Raises:
        DataError: It is no YAML mapping; a key is misspelt or has a wrong value; ``names`` and ``nc`` disagree; it
            names no images.
    """
    content = _load(file)
    notes = _check_keys(content, file)
    root = _root(content, file)
    names = read_class_names(content.get("names"), content.get("nc"), str(file))
    entries: dict[Split, tuple[str, ...]] = {}
    for split in SPLITS:
        value = content.get(split)
        if value is not None:
            entries[split] = tuple(_entry(text, root, split, notes) for text in _texts(value, split, file))
    data_format = _format(content, entries, root, file)
    spec = SourceSpec(data_format, root, str(file), names, entries, notes=tuple(notes))
    build = {"yolo": _yolo, "coco": _coco, "voc": _voc, "csv": _csv}[data_format]
    return build(spec, content, file)


def read_class_names(names: Any, count: Any, origin: str) -> tuple[str, ...] | None:
    """Return the class names of ``names`` (list, or mapping from 0 up) and ``nc``; None when neither is there.

    Raises:
        DataError: They are malformed or disagree.
    """
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise DataError(f"'{origin}': nc must be a whole number above zero, got {count!r}")
    if names is None:
        return None if count is None else tuple(str(number) for number in range(count))
    if isinstance(names, dict):
        names = _names_in_order(names, origin)
    if isinstance(names, str):
        names = [part.strip() for part in names.split(",")]
    if not isinstance(names, list) or not names:
        raise DataError(f"'{origin}': names must be a list or a mapping from 0 up, got {names!r}")
    for number, name in enumerate(names):
        if isinstance(name, bool) or name is None:
            raise DataError(f"'{origin}': class {number} reads as {name!r} in YAML; put its name in quotes")
        if not isinstance(name, (str, int, float)) or not str(name).strip():
            raise DataError(f"'{origin}': class {number} must be a text, got {name!r}")
    if count is not None and count != len(names):
        raise DataError(f"'{origin}': nc={count} but there are {len(names)} names; correct one, or leave nc out")
    return tuple(str(name).strip() for name in names)


def _names_in_order(names: dict[Any, Any], origin: str) -> list[Any]:
    try:
        by_number = {int(key): value for key, value in names.items()}
    except (TypeError, ValueError):
        raise DataError(
            f"'{origin}': the keys of names must be class numbers from 0 up, got {list(names)[:5]}"
        ) from None
    missing = [number for number in range(len(by_number)) if number not in by_number]
    if missing:
        raise DataError(
            f"'{origin}': names must count from 0 without gaps; "
            f"{len(by_number)} names, but class {missing[0]} is missing"
        )
    return [by_number[number] for number in range(len(by_number))]


def _load(file: Path) -> dict[str, Any]:
    text = read_text(file, what="data YAML")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"'{file}' is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise DataError(f"'{file}' must hold 'key: value' lines such as 'train: images/train', found {found}")
    content = {str(key): value for key, value in content.items()}
    given = [key for key in _VAL_NAMES if content.get(key) is not None]
    if len(given) > 1:
        raise DataError(f"'{file}' says both '{given[0]}' and '{given[1]}', which mean the same; keep one")
    if given and given[0] != "val":
        content["val"] = content.pop(given[0])
    return content


def _check_keys(content: dict[str, Any], file: Path) -> list[str]:
    notes: list[str] = []
    for key in content:
        if key in KEYS or key in _VAL_NAMES:
            continue
        hint = "" if key in _KNOWN_ELSEWHERE else nearest(key, KEYS)
        if hint:
            raise DataError(f"'{file}' has an unknown key '{key}'.{hint} Known are: {', '.join(KEYS)}")
        notes.append(f"key '{key}' of '{file.name}' is not used")
    return notes


def _root(content: dict[str, Any], file: Path) -> Path:
    value = content.get("path")
    if value is None:
        return absolute(file.parent)
    if not isinstance(value, str):
        raise DataError(f"'{file}': path must be a folder, got {value!r}")
    root = absolute(absolute(file).parent / os.path.expanduser(value))
    if not root.is_dir():
        raise DataError(
            f"'{file}': path '{value}' means the folder '{root}', which does not exist; "
            "correct it, or leave it out when the images lie beside the YAML"
        )
    return root


def _texts(value: Any, key: str, file: Path) -> list[str]:
    texts = as_strings(value)
    if texts is None:
        raise DataError(f"'{file}': {key} must be a path or a list of paths, got {value!r}")
    return texts


def _entry(text: str, root: Path, split: str, notes: list[str]) -> str:
    """Forgive ``../train/images`` where ``train/images`` is meant, as one popular export writes it."""
    stripped = text.removeprefix("../")
    if stripped != text and not (root / text).exists() and (root / stripped).exists():
        notes.append(f"{split}: '{text}' does not exist, '{stripped}' is used")
        return stripped
    return text


def _format(content: dict[str, Any], entries: dict[Split, tuple[str, ...]], root: Path, file: Path) -> Format:
    value = content.get("format")
    if value is not None:
        if value not in _FORMATS:
            raise DataError(
                f"'{file}': format {value!r} is unknown; allowed: {', '.join(_FORMATS)}.{nearest(str(value), _FORMATS)}"
            )
        return cast(Format, value)
    paths = [text for texts in entries.values() for text in texts] + _annotation_texts(content)
    suffixes = {Path(text).suffix.lower() for text in paths}
    if ".json" in suffixes:
        return "coco"
    if ".csv" in suffixes:
        return "csv"
    folders = [root / text for text in paths if (root / text).is_dir()]
    return "voc" if any(next(folder.glob("*.xml"), None) for folder in folders) else "yolo"


def _annotation_texts(content: dict[str, Any]) -> list[str]:
    value = content.get("annotations")
    values = list(value.values()) if isinstance(value, dict) else [value]
    return [text for item in values for text in as_strings(item) or []]


def _need_entries(spec: SourceSpec, file: Path) -> None:
    if not spec.splits:
        raise DataError(f"'{file}' names no images: add 'train: FOLDER' and 'val: FOLDER'")


def _images(spec: SourceSpec, content: dict[str, Any], file: Path) -> tuple[Path, ...]:
    value = content.get("images")
    folders = (
        [absolute(spec.root / os.path.expanduser(text)) for text in _texts(value, "images", file)]
        if value is not None
        else []
    )
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"'{file}': images names '{folder}', which is no folder")
    return tuple(folders)


def _yolo(spec: SourceSpec, content: dict[str, Any], file: Path) -> SourceSpec:
    for key in ("images", "annotations"):
        if content.get(key) is not None:
            raise DataError(
                f"'{file}': '{key}' does not fit format yolo; name the image folders under train, val, test"
            )
    _need_entries(spec, file)
    return spec


def _voc(spec: SourceSpec, content: dict[str, Any], file: Path) -> SourceSpec:
    images = _images(spec, content, file)
    annotations: dict[str, tuple[Path, ...]] = {}
    if content.get("annotations") is not None:
        folders = _annotation_paths(content["annotations"], spec, file, key="annotations")
        if len(folders) != 1 or not folders[0].is_dir():
            raise DataError(f"'{file}': annotations must be one folder of XML files, got {content['annotations']!r}")
        annotations = {"": folders}
    if not spec.splits and images:
        return replace(spec, splits=None, pool=tuple(map(str, images)), images=images, annotations=annotations)
    _need_entries(spec, file)
    return replace(spec, images=images, annotations=annotations)


def _coco(spec: SourceSpec, content: dict[str, Any], file: Path) -> SourceSpec:
    """Find the JSON of each split: its own entry, ``annotations: {split: FILE}``, or one file cut by image lists."""
    splits = dict(spec.splits or {})
    own = {split: texts for split, texts in splits.items() if all(text.lower().endswith(".json") for text in texts)}
    value = content.get("annotations")
    annotations: dict[str, tuple[Path, ...]] = {
        split: _annotation_paths(list(texts), spec, file, key=split) for split, texts in own.items()
    }
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in SPLITS:
                raise DataError(f"'{file}': annotations has an unknown split '{key}'.{nearest(str(key), SPLITS)}")
            annotations[str(key)] = _annotation_paths(item, spec, file, key=f"annotations.{key}")
            splits.setdefault(cast(Split, key), ())
    elif value is not None:
        annotations[""] = _annotation_paths(value, spec, file, key="annotations")
    if not annotations:
        raise DataError(f"'{file}': format coco needs a JSON file under train and val, or under annotations")
    for split in splits:
        if split not in annotations and "" not in annotations:
            raise DataError(f"'{file}': no annotations for split '{split}'")
    images = _images(spec, content, file)
    return replace(spec, splits=splits or None, images=images, annotations=annotations)


def _csv(spec: SourceSpec, content: dict[str, Any], file: Path) -> SourceSpec:
    images = _images(spec, content, file)
    value = content.get("annotations")
    if value is None:
        _need_entries(spec, file)
        annotations: dict[str, tuple[Path, ...]] = {
            split: _annotation_paths(list(texts), spec, file, key=split) for split, texts in (spec.splits or {}).items()
        }
        return replace(spec, images=images, annotations=annotations)
    if spec.splits:
        raise DataError(
            f"'{file}': give either annotations, with a split column, or one CSV under each of train and val"
        )
    files = _annotation_paths(value, spec, file, key="annotations")
    return csv_spec(replace(spec, images=images, annotations={"": files}), files)


def csv_spec(spec: SourceSpec, files: tuple[Path, ...]) -> SourceSpec:
    """Complete the specification of CSV files that cover the whole data set."""
    columns = [read_splits(path) for path in files]
    if any(columns) and not all(columns):
        raise DataError(f"data set '{spec.origin}': some of its CSV files have a split column, others have none")
    found: list[Split] = [split for split in SPLITS if any(split in column for column in columns)]
    splits: dict[Split, tuple[str, ...]] = dict.fromkeys(found, ())
    return replace(spec, splits=splits or None, annotations={"": files})


def _annotation_paths(value: Any, spec: SourceSpec, file: Path, *, key: str) -> tuple[Path, ...]:
    paths = tuple(absolute(spec.root / os.path.expanduser(text)) for text in _texts(value, key, file))
    for path in paths:
        if not path.exists():
            raise DataError(f"'{file}': {key} names '{path}', which does not exist")
    return paths
