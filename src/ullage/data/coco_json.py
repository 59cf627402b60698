"""COCO JSON: ``images``, ``annotations`` with ``bbox`` as left, top, width, height in pixels, ``categories``.

Classes are the categories in the order of their ids, which may be sparse; ``iscrowd`` regions stay, marked as crowd.
An image without annotations shows nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from ullage.data.index import DetectionSet, Problem, Split
from ullage.data.raw import RawBox, RawImage, RawSplit
from ullage.data.spec import SourceSpec, absolute, list_images, read_text
from ullage.errors import DataError, nearest

Category = tuple[int, str]


def load(file: Path) -> dict[str, Any]:
    """Read a ground-truth file.

    Raises:
        DataError: It is missing, no JSON, or no COCO ground truth.
    """
    text = read_text(file, what="COCO JSON")
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"'{file}' is not valid JSON: {error}") from None
    if isinstance(content, list):
        raise DataError(f"'{file}' is a list of detections, not ground truth; that has 'images' and 'annotations'")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
            raise DataError(f"'{file}' is no COCO JSON: it needs a list '{key}', found {found or 'nothing'}")
    return content


def read_classes(spec: SourceSpec) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the class names and the category id of each, the same for every split.

    Raises:
        DataError: Two files disagree about an id.
    """
    known: dict[int, str] = {}
    for file in _all_files(spec):
        for number, name in _categories(file, load(file)):
            if known.setdefault(number, name) != name:
                raise DataError(f"'{file}' calls category {number} '{name}', another file calls it '{known[number]}'")
    if not known:
        raise DataError(f"data set '{spec.origin}': its JSON has no categories")
    if spec.names is None:
        order = sorted(known)
        return tuple(known[number] for number in order), tuple(order)
    by_name = {name: number for number, name in reversed(known.items())}
    unused = max(known) + 1
    ids: list[int] = []
    for name in spec.names:
        ids.append(by_name.get(name, unused))
        unused += name not in by_name
    return spec.names, tuple(ids)


def read(spec: SourceSpec, split: Split, *, names: Sequence[str], category_ids: Sequence[int]) -> RawSplit:
    """Read one split.

    Raises:
        DataError: A file is no COCO ground truth, or holds no images.
    """
    raw = RawSplit("px")
    classes = {number: index for index, number in enumerate(category_ids)}
    only = None
    if spec.splits and split not in (spec.annotations or {}):
        listed, problems = list_images(spec, split)
        only = {item.path for item in listed}
        raw.problems += problems
    files = _files(spec, split)
    folders = _image_folders(spec, split, files)
    for file in files:
        content = load(file)
        if not content["images"]:
            raise DataError(f"'{file}' lists no images")
        index_of = _read_images(content, file, spec, split, folders, raw, only)
        ids = [image.get("id") for image in content["images"] if isinstance(image, dict)]
        outsiders = {number for number in ids if isinstance(number, (int, str))}
        texts = dict(_categories(file, content))
        for number, entry in enumerate(content["annotations"]):
            row = _parse(entry, number, index_of, outsiders, classes, texts, names)
            if isinstance(row, Problem):
                raw.problems.append(Problem(row.kind, str(file), number, row.message, row.action))
            elif row is not None:
                raw.boxes.append(row)
    return raw


def write(out: Path, split: str, data: DetectionSet, files: Sequence[str]) -> None:
    """Write ``out / "annotations" / instances_SPLIT.json``, with the file names as given.

    Image ids are kept where all are distinct whole numbers, else they count from 1.
    """
    whole = all(isinstance(number, int) for number in data.image_ids) and len(set(data.image_ids)) == len(data)
    ids = data.image_ids if whole else range(1, len(data) + 1)
    images, annotations = [], []
    for index, (number, name) in enumerate(zip(ids, files, strict=True)):
        height, width = data.size_hw(index)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        labels = data.labels(index)
        rows = zip(
            labels.boxes_xyxy_px_G4.tolist(),
            labels.class_ids_G.tolist(),
            labels.crowd_G.tolist(),
            data.areas_px2(index).tolist(),
            [[ring.ravel().tolist() for ring in rings] for rings in data.rings(index)],
            strict=True,
        )
        for (left, top, right, bottom), kind, crowd, area, rings in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": data.category_ids[kind],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": area,
                    "iscrowd": int(crowd),
                    **({"segmentation": rings} if rings else {}),
                }
            )
    categories = [{"id": i, "name": name} for i, name in zip(data.category_ids, data.names, strict=True)]
    folder = out / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"instances_{split}.json").write_text(json.dumps(content), "utf-8")


def _all_files(spec: SourceSpec) -> list[Path]:
    return list(dict.fromkeys(file for files in (spec.annotations or {}).values() for file in files))


def _files(spec: SourceSpec, split: Split) -> tuple[Path, ...]:
    annotations = spec.annotations or {}
    if split not in annotations and "" not in annotations:
        raise DataError(f"data set '{spec.origin}' has no annotation file for split '{split}'")
    return annotations[split] if split in annotations else annotations[""]


def _image_folders(spec: SourceSpec, split: Split, files: Sequence[Path]) -> list[Path]:
    """Return where to look for a split's images: as the YAML says, else where they customarily are, nearest first."""
    named = [absolute(spec.root / entry) for entry in spec.entries(split)] + list(spec.images)
    named = [folder for folder in named if folder.is_dir()]
    if named:
        return named
    folders: list[Path] = []
    for file in files:
        stem = file.stem.removeprefix("instances_")
        for base in (file.parent, file.parent.parent, spec.root):
            folders += [base, base / "images", base / "images" / stem, base / stem]
    return [folder for folder in dict.fromkeys(map(absolute, folders)) if folder.is_dir()]


def _categories(file: Path, content: dict[str, Any]) -> list[Category]:
    found: list[Category] = []
    for entry in content["categories"]:
        if not isinstance(entry, dict) or not _is_whole(entry.get("id")) or not isinstance(entry.get("name"), str):
            raise DataError(f"'{file}': category {entry!r} needs a whole 'id' and a 'name'")
        found.append((entry["id"], entry["name"]))
    return found


def _read_images(
    content: dict[str, Any],
    file: Path,
    spec: SourceSpec,
    split: Split,
    folders: Sequence[Path],
    raw: RawSplit,
    only: set[str] | None,
) -> dict[int | str, int]:
    """Add the images of one file to ``raw``; return the index of each id."""
    entries: list[tuple[int, dict[str, Any]]] = []
    for number, entry in enumerate(content["images"]):
        name, key = (entry.get("file_name"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if isinstance(name, str) and name and (_is_whole(key) or isinstance(key, str)):
            entries.append((number, entry))
        else:
            message = "an image needs an 'id' and a 'file_name'"
            raw.problems.append(Problem("corrupt_label", str(file), number, message, "image_left_out"))
    chosen = spec.deal([entry["file_name"] for _, entry in entries], split)
    paths = {image.path for image in raw.images}
    index_of: dict[int | str, int] = {}
    for number, entry in entries:
        if entry["file_name"] not in chosen:
            continue
        path = _find_image(entry["file_name"], folders)
        if only is not None and path not in only:
            continue
        if path in paths or entry["id"] in index_of:
            what = f"image '{path}'" if path in paths else f"image id {entry['id']!r}"
            message = f"{what} is in the list more than once"
            raw.problems.append(Problem("duplicate_image", str(file), number, message, "image_left_out"))
            continue
        paths.add(path)
        index_of[entry["id"]] = len(raw.images)
        height, width = entry.get("height"), entry.get("width")
        declared = None
        if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
            declared = (height, width)
        raw.images.append(RawImage(path, entry["id"], str(file), (str(file), number), declared))
    return index_of


def _find_image(name: str, folders: Sequence[Path]) -> str:
    """Find an image below the first folder that has it: by its path, else by its bare name."""
    base = os.path.basename(name.replace("\\", "/"))
    candidates = [os.path.join(folder, part) for part in dict.fromkeys((name, base)) for folder in folders]
    found = next((path for path in candidates if os.path.isfile(path)), candidates[0])
    return str(absolute(found))


def _parse(
    entry: Any,
    number: int,
    index_of: dict[int | str, int],
    known_images: set[Any],
    classes: dict[int, int],
    texts: dict[int, str],
    names: Sequence[str],
) -> RawBox | Problem | None:
    """Read one annotation; None when its image belongs to another split or was left out."""
    image, category = (entry.get("image_id"), entry.get("category_id")) if isinstance(entry, dict) else (None, None)
    if not isinstance(image, (int, str)) or not isinstance(category, int):
        message = "an annotation needs 'image_id', 'category_id' and 'bbox'"
        return Problem("corrupt_label", "", number, message, "box_left_out")
    if image not in index_of:
        message = f"no image has the id {image!r}"
        return None if image in known_images else Problem("orphan_label", "", number, message, "box_left_out")
    if category not in classes:
        text = texts.get(category)
        message = f"category {category} is not among the categories"
        if text is not None:
            message = f"category {category} '{text}' is not among the names.{nearest(text, names)}"
        return Problem("class_out_of_range", "", number, message, "box_left_out")
    box = _box_of(entry)
    if box is None:
        message = f"bbox {entry.get('bbox')!r} is not four finite numbers (left, top, width, height)"
        return Problem("corrupt_label", "", number, message, "box_left_out")
    left, top, width, height = box
    area = entry.get("area")
    stated = float(area) if _is_number(area) and area > 0 else None
    corners = (left, top, left + width, top + height)
    crowd = entry.get("iscrowd") == 1
    rings = () if crowd else _rings_of(entry)
    return RawBox(index_of[image], classes[category], *corners, crowd, number, stated, rings)


def _rings_of(entry: dict[str, Any]) -> tuple[Sequence[float], ...]:
    """Return the polygons of an annotation; none where they are absent, masks, or not as they should be."""
    polygons = entry.get("segmentation")
    if not isinstance(polygons, list) or not all(
        isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 and all(map(_is_number, ring))
        for ring in polygons
    ):
        return ()
    return tuple(polygons)


def _box_of(entry: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """Return left, top, width, height; of the polygons when there is no bbox."""
    box = entry.get("bbox")
    polygons = entry.get("segmentation")
    if box is None and isinstance(polygons, list) and polygons and all(isinstance(part, list) for part in polygons):
        xs, ys = [x for part in polygons for x in part[0::2]], [y for part in polygons for y in part[1::2]]
        if len(ys) > 2 and all(map(_is_number, xs + ys)):
            box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return None
    left, top, width, height = (float(value) for value in box)
    return left, top, width, height


def _is_number(value: Any) -> TypeGuard[float]:
    """Say whether a value is a number of reasonable size; JSON may hold NaN, and integers beyond any float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
