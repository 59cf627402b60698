"""Pascal VOC: one XML file an image, boxes as ``xmin ymin xmax ymax`` in pixels.

Corners are taken as they stand, as the tools that write such files today mean them (the original devkit counts pixels
from 1, edges included: half a pixel of difference). A ``difficult`` object stays, marked as crowd: as in VOC's own
evaluation, finding it counts neither for nor against.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, ParseError, SubElement, indent

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from ullage.data.index import DetectionSet, Problem, Split
from ullage.data.raw import RawBox, RawImage, RawSplit
from ullage.data.spec import SourceSpec, list_images
from ullage.errors import DataError, nearest

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_names(spec: SourceSpec) -> tuple[str, ...]:
    """Return the class names; without any in the YAML, those of all annotations, sorted.

    Raises:
        DataError: No annotation names an object.
    """
    if spec.names is not None:
        return spec.names
    found: set[str] = set()
    for split in spec.split_names():
        for item in list_images(spec, split)[0]:
            root = _parse(label_path(item.path, spec), [])
            found |= {_text(thing, "name") for thing in root.iter("object")} if root is not None else set()
    if not found - {""}:
        raise DataError(f"data set '{spec.origin}' names no classes and no annotation has an object")
    return tuple(sorted(found - {""}))


def label_path(image: str, spec: SourceSpec) -> str:
    """Return where the annotation of an image is: in the annotations folder, or beside the image."""
    stem, _ = os.path.splitext(os.path.basename(image))
    folders = (spec.annotations or {}).get("", ())
    return os.path.join(folders[0] if folders else os.path.dirname(image), f"{stem}.xml")


def read(spec: SourceSpec, split: Split, *, names: Sequence[str]) -> RawSplit:
    """Read one split.

    Raises:
        DataError: There are no images, or none of them has an annotation.
    """
    listed, problems = list_images(spec, split)
    raw = RawSplit("px", problems=problems)
    classes = {name: index for index, name in enumerate(names)}
    missing = [item.path for item in listed if not os.path.exists(label_path(item.path, spec))]
    if len(missing) == len(listed):
        raise DataError(
            f"data set '{spec.origin}': none of the {len(listed)} images of split '{split}' has an annotation; "
            f"looked for '{label_path(missing[0], spec)}'"
        )
    for item in listed:
        label = label_path(item.path, spec)
        if not os.path.exists(label):
            message = f"image '{item.path}' has no annotation"
            raw.problems.append(Problem("missing_label", label, None, message, "image_left_out"))
            continue
        root = _parse(label, raw.problems)
        if root is None:
            continue
        for number, thing in enumerate(root.iter("object")):
            row = _read_object(thing, number, len(raw.images), classes)
            if isinstance(row, Problem):
                raw.problems.append(Problem(row.kind, label, number, row.message, row.action))
            else:
                raw.boxes.append(row)
        stem = os.path.splitext(os.path.basename(item.path))[0]
        raw.images.append(RawImage(item.path, stem, label, (item.file, item.line), _declared_size(root)))
    raw.problems += _orphans(spec, [item.path for item in listed])
    return raw


def write(out: Path, split: str, data: DetectionSet, files: Sequence[str]) -> None:
    """Write ``Annotations/*.xml`` and ``ImageSets/Main/SPLIT.txt`` below ``out``."""
    annotations, lists = out / "Annotations", out / "ImageSets" / "Main"
    annotations.mkdir(parents=True, exist_ok=True)
    lists.mkdir(parents=True, exist_ok=True)
    stems = [os.path.splitext(name)[0] for name in files]
    (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), "utf-8")
    for index, (stem, name) in enumerate(zip(stems, files, strict=True)):
        root = Element("annotation")
        SubElement(root, "folder").text = "JPEGImages"
        SubElement(root, "filename").text = name
        height, width = data.size_hw(index)
        size = SubElement(root, "size")
        for key, value in (("width", width), ("height", height), ("depth", 3)):
            SubElement(size, key).text = str(value)
        labels = data.labels(index)
        rows = zip(labels.boxes_xyxy_px_G4, labels.class_ids_G.tolist(), labels.crowd_G.tolist(), strict=True)
        for corners, kind, crowd in rows:
            thing = SubElement(root, "object")
            SubElement(thing, "name").text = data.names[kind]
            SubElement(thing, "difficult").text = str(int(crowd))
            box = SubElement(thing, "bndbox")
            for key, value in zip(_CORNERS, corners, strict=True):
                # The shortest text that gives back the same float32; whole numbers without a point.
                SubElement(box, key).text = str(int(value)) if value == int(value) else str(value)
        indent(root)
        ElementTree(root).write(annotations / f"{stem}.xml", encoding="utf-8")


def _parse(path: str, problems: list[Problem]) -> Any | None:
    """Return the root of an XML file; None, and a problem, when it is unreadable, unsafe or not XML."""
    try:
        return parse(path).getroot()
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
    except (ParseError, UnicodeDecodeError) as error:
        message = f"not valid XML: {error}"
    except DefusedXmlException as error:
        message = f"unsafe XML (entities or external references): {type(error).__name__}"
    problems.append(Problem("corrupt_label", path, None, message, "image_left_out"))
    return None


def _read_object(thing: Any, number: int, image: int, classes: dict[str, int]) -> RawBox | Problem:
    name = _text(thing, "name")
    if name not in classes:
        message = f"class '{name}' is not among the names.{nearest(name, classes)}"
        return Problem("class_out_of_range", "", number, message, "box_left_out")
    texts = [_text(thing, f"bndbox/{key}") for key in _CORNERS]
    try:
        corners = [float(text) for text in texts]
    except ValueError:
        corners = [math.nan]
    if not all(map(math.isfinite, corners)):
        message = f"bndbox {' '.join(texts).strip() or 'without corners'}: not four finite numbers"
        return Problem("corrupt_label", "", number, message, "box_left_out")
    left, top, right, bottom = corners
    return RawBox(image, classes[name], left, top, right, bottom, _text(thing, "difficult") == "1", number)


def _declared_size(root: Any) -> tuple[int, int] | None:
    height, width = _text(root, "size/height"), _text(root, "size/width")
    if height.isdecimal() and width.isdecimal() and int(height) and int(width):
        return int(height), int(width)
    return None


def _orphans(spec: SourceSpec, images: Sequence[str]) -> list[Problem]:
    """Report annotations that no image belongs to."""
    folders = (spec.annotations or {}).get("", ())
    if not folders or not spec.images:
        return []
    pictures = {
        stem for folder in spec.images if folder.is_dir() for stem, _ in map(os.path.splitext, os.listdir(folder))
    }
    pictures |= {os.path.splitext(os.path.basename(image))[0] for image in images}
    return [
        Problem("orphan_label", str(path), None, f"no image '{path.stem}.*' in '{spec.images[0]}'", "label_left_out")
        for path in sorted(folders[0].glob("*.xml"))
        if path.stem not in pictures
    ]


def _text(element: Any, path: str) -> str:
    return (element.findtext(path) or "").strip()
