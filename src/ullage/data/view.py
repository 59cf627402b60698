"""``ullage data view``: images of a data set with their boxes on one sheet, a page at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ullage.data.decode import read_image
from ullage.data.index import DetectionSet, Split
from ullage.data.probe import Watch, in_threads
from ullage.data.source import open_dataset, take_boxes, take_images
from ullage.errors import ConfigError, DataError, nearest
from ullage.geometry.drawing import draw_boxes, tile_images
from ullage.geometry.letterbox import fit

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ContactSheet:
    """One page of images.

    Attributes:
        picture: The sheet, uint8 RGB.
        paths: The images on it, row by row.
        page: Which page, from 1.
        pages: How many there are.
        images: How many images all pages show.
        boxes: How many boxes they show.
    """

    picture: Array
    paths: tuple[str, ...]
    page: int
    pages: int
    images: int
    boxes: int

    def __str__(self) -> str:
        return f"page {self.page} of {self.pages}: {len(self.paths)} of {self.images} images, {self.boxes} boxes in all"


def contact_sheet(
    data: str | Path,
    *,
    split: Split = "train",
    classes: Sequence[int | str] | None = None,
    page: int = 1,
    images: int = 24,
    cell: int = 320,
    seed: int | None = None,
    watch: Watch | None = None,
) -> ContactSheet:
    """Draw a page of a data set, cleaned as training cleans it.

    Args:
        data: YAML, COCO JSON, CSV, folder, or ``"demo"``.
        split: Which split.
        classes: Names or ids; shows the images that have one of them, and their boxes only. None shows all.
        page: Which page, from 1.
        images: Images a page.
        cell: Side of a cell in pixels.
        seed: Shuffles the images before they are cut into pages; None keeps the order of the set.
        watch: Hears how far it is.

    Raises:
        DataError: There is no such data set, split or class, no image shows the classes, or one cannot be read.
        ConfigError: There is no such page.
    """
    dataset = open_dataset(data, split=split, watch=watch)
    if classes is not None:
        ids = [_class_id(name, dataset.names, data) for name in classes]
        dataset = take_boxes(dataset, np.isin(dataset.class_ids_N, ids))
        dataset = take_images(dataset, np.flatnonzero(np.diff(dataset.offsets) > 0))
        if not len(dataset):
            shown = ", ".join(dataset.names[number] for number in ids)
            raise DataError(f"no image of split '{split}' of data set '{data}' shows {shown}")
    order = np.arange(len(dataset)) if seed is None else np.random.default_rng(seed).permutation(len(dataset))
    pages = math.ceil(len(order) / images)
    if not 1 <= page <= pages:
        raise ConfigError(f"page={page} is not there: {len(order)} images make {pages} pages of {images}")
    shown = order[(page - 1) * images : page * images].tolist()
    pictures = in_threads(lambda index: _draw(dataset, index, cell), shown, watch=watch, what="images")
    captions = [os.path.basename(dataset.paths[index]) for index in shown]
    return ContactSheet(
        picture=tile_images(pictures, size=cell, captions=captions),
        paths=tuple(dataset.paths[index] for index in shown),
        page=page,
        pages=pages,
        images=len(dataset),
        boxes=len(dataset.class_ids_N),
    )


def _class_id(name: int | str, names: Sequence[str], data: str | Path) -> int:
    if isinstance(name, str) and name in names:
        return names.index(name)
    number = int(name) if isinstance(name, int) or name.isdecimal() else -1
    if not 0 <= number < len(names):
        raise DataError(
            f"data set '{data}' has no class '{name}'; it has 0 to {len(names) - 1}: {', '.join(names[:10])}"
            f"{', ...' if len(names) > 10 else ''}.{nearest(str(name), names)}"
        )
    return number


def _draw(dataset: DetectionSet, index: int, cell: int) -> Array:
    """Draw an image at the size at which it is shown, so that lines and letters are of one size on a sheet."""
    size_hw = dataset.size_hw(index)
    height, width = fit(size_hw, (cell, cell)).resized_hw
    image = read_image(dataset.paths[index], at_least_hw=(height, width), size_hw=size_hw)
    shrinks = image.shape[0] > height
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    labels = dataset.labels(index)
    scale_4 = np.array([width / size_hw[1], height / size_hw[0]] * 2, np.float32)
    return draw_boxes(
        image, boxes_xyxy_px=labels.boxes_xyxy_px_G4 * scale_4, class_ids=labels.class_ids_G, names=dataset.names
    )
