"""Small data sets for the tests of data sources."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from ullage.data.index import DetectionSet


def save_image(path: Path, *, size_hw: tuple[int, int] = (40, 60), mode: str = "RGB", seed: int = 0) -> Path:
    """Save an image whose content depends on its name and seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *path.name.encode()])
    Image.fromarray(rng.integers(0, 256, (*size_hw, 3), np.uint8)).convert(mode).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def make_yolo(root: Path, labels: dict[str, str | None], *, yaml: str = "", split: str = "train") -> Path:
    """Write images 60 x 40 with the given label texts (None: no label file); return the YAML."""
    for stem, text in labels.items():
        save_image(root / "images" / split / f"{stem}.png")
        if text is not None:
            write(root / "labels" / split / f"{stem}.txt", text)
    return write(root / "data.yaml", yaml or f"{split}: images/{split}\nnames: [cat, dog]\n")


def make_coco(root: Path, *, annotations: list, images: list | None = None, categories: list | None = None) -> Path:
    """Write one image 60 x 40 named a.png, id 7, and a JSON beside it; return the JSON."""
    save_image(root / "a.png")
    images = [{"id": 7, "file_name": "a.png", "height": 40, "width": 60}] if images is None else images
    categories = categories or [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return write(root / "truth.json", json.dumps(content))


def coco_yaml(json_file: Path, extra: str = "") -> Path:
    return write(json_file.parent / "coco.yaml", f"train: {json_file.name}\n{extra}")


def voc_object(name: str, *corners: object, difficult: int = 0) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=False))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def make_voc(root: Path, objects: dict[str, str], *, lists: dict[str, list[str]] | None = None) -> Path:
    """Write images 60 x 40 with the given objects; return the folder."""
    for stem, text in objects.items():
        save_image(root / "JPEGImages" / f"{stem}.jpg")
        size = "<size><width>60</width><height>40</height></size>"
        write(root / "Annotations" / f"{stem}.xml", f"<annotation>{size}{text}</annotation>")
    for split, stems in (lists or {"train": list(objects)}).items():
        write(root / "ImageSets" / "Main" / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
    return root


def kinds(data: DetectionSet) -> Counter[tuple[str, str]]:
    return Counter((problem.kind, problem.action) for problem in data.problems)


def boxes(data: DetectionSet, index: int = 0) -> list[list[float]]:
    return np.round(data.labels(index).boxes_xyxy_px_G4.astype(float), 3).tolist()
