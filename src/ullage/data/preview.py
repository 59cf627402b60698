"""Pictures of what training sees: sheets of batches, and a chart of a data set's labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ullage.data.batch import Batch
from ullage.data.index import DetectionSet
from ullage.errors import StorageError
from ullage.geometry.boxes import xyxy_to_cxcywh
from ullage.geometry.drawing import class_colour, draw_boxes, drawable_name, tile_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]

MAX_IMAGES = 16
MAX_CLASS_NAMES = 40
MAX_POINTS = 20_000
_CELL_PX = 480
_JPEG_QUALITY = 90


def draw_batch(batch: Batch, *, names: Sequence[str], max_images: int = MAX_IMAGES) -> Array:
    """Draw the first images of a batch with their boxes on one sheet, uint8 RGB."""
    count = min(len(batch.indices), max_images)
    pictures: list[Array] = []
    for number in range(count):
        targets = batch.targets.images(number, number + 1)
        pictures.append(
            draw_boxes(
                batch.images_BCHW[number].permute(1, 2, 0).numpy(),
                boxes_xyxy_px=targets.boxes_xyxy_px_G4,
                class_ids=targets.class_ids_G,
                names=names,
            )
        )
    return tile_images(pictures, size=sheet_cell(batch))


def sheet_cell(batch: Batch) -> tuple[int, int]:
    """Return the (h, w) that an image of the batch takes on a sheet: its own shape, neither tiny nor huge."""
    height, width = batch.images_BCHW.shape[2:]
    scale = min(_CELL_PX, max(height, width, _CELL_PX // 2)) / max(height, width)
    return round(height * scale), round(width * scale)


def save_train_batch(batch: Batch, *, path: str | Path, names: Sequence[str], max_images: int = MAX_IMAGES) -> None:
    """Write ```draw_batch``` as a JPEG.

    Raises:
        StorageError: The file cannot be written.
    """
    stream = io.BytesIO()
    Image.fromarray(draw_batch(batch, names=names, max_images=max_images)).save(stream, "JPEG", quality=_JPEG_QUALITY)
    _write(path, stream)


def save_labels_picture(dataset: DetectionSet, *, path: str | Path) -> None:
    """Write ``labels.png``: boxes per class, boxes per image, where their centres are, how large they are.

    Raises:
        StorageError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import, and rarely needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _draw_classes(axes[0, 0], dataset)
    _draw_counts(axes[0, 1], dataset)
    boxes_unit_N4 = _unit_boxes(dataset)
    _draw_centres(axes[1, 0], boxes_unit_N4)
    _draw_sizes(axes[1, 1], boxes_unit_N4, dataset.class_ids_N)
    figure.suptitle(f"{len(dataset):,} images, {len(dataset.class_ids_N):,} boxes, {len(dataset.names)} classes")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    _write(path, stream)


def _unit_boxes(dataset: DetectionSet) -> Array:
    """Return centre and size of every box as fractions of its image, (N, 4)."""
    counts_I = np.diff(dataset.offsets)
    sizes_N2 = np.repeat(dataset.sizes_hw_I2, counts_I, axis=0)
    return xyxy_to_cxcywh(dataset.boxes_xyxy_px_N4 / sizes_N2[:, [1, 0, 1, 0]])


def _draw_classes(axes: Axes, dataset: DetectionSet) -> None:
    counts_K = np.bincount(dataset.class_ids_N, minlength=len(dataset.names))
    colours = [tuple(part / 255 for part in class_colour(class_id)) for class_id in range(len(counts_K))]
    axes.bar(range(len(counts_K)), counts_K, color=colours)
    axes.set_title("Boxes per class")
    if len(counts_K) <= MAX_CLASS_NAMES:
        names = [drawable_name(name, i)[0].replace("$", r"\$") for i, name in enumerate(dataset.names)]
        steep = len(names) > 8 or max(map(len, names), default=0) > 10
        axes.set_xticks(range(len(names)), names, rotation=90 if steep else 0, fontsize=8 if steep else 10)
    else:
        axes.set_xlabel("class id")


def _draw_counts(axes: Axes, dataset: DetectionSet) -> None:
    counts_I = np.diff(dataset.offsets)
    top = int(counts_I.max(initial=0))
    step = max(1, (top + 1) // 50)
    axes.hist(counts_I, bins=np.arange(-0.5, top + step + 0.5, step).tolist(), color="#4477aa")
    axes.set_title("Images by number of boxes")
    axes.set_xlabel("boxes in an image")


def _draw_centres(axes: Axes, boxes_unit_N4: Array) -> None:
    # About eight boxes a cell, so that few boxes still make a picture and not a scatter of ones.
    bins = int(np.clip(np.sqrt(len(boxes_unit_N4) / 8), 8, 64))
    heat_HW, _, _ = np.histogram2d(boxes_unit_N4[:, 1], boxes_unit_N4[:, 0], bins=bins, range=((0, 1), (0, 1)))
    image = axes.imshow(heat_HW, extent=(0, 1, 1, 0), cmap="Blues", vmin=0, vmax=max(heat_HW.max(), 1))
    axes.figure.colorbar(image, ax=axes, label="boxes")
    axes.set_title("Where box centres are")
    axes.set_xlabel("x / image width")
    axes.set_ylabel("y / image height")


def _draw_sizes(axes: Axes, boxes_unit_N4: Array, class_ids_N: Array) -> None:
    shown = np.arange(len(boxes_unit_N4))
    if len(shown) > MAX_POINTS:
        shown = np.linspace(0, len(shown) - 1, MAX_POINTS).astype(int)
    colours = np.array([class_colour(int(class_id)) for class_id in class_ids_N[shown]]).reshape(-1, 3) / 255
    size = 12 if len(shown) < 2000 else 4
    axes.scatter(boxes_unit_N4[shown, 2], boxes_unit_N4[shown, 3], c=colours, s=size, alpha=0.5, linewidths=0)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title("How large boxes are")
    axes.set_xlabel("width / image width")
    axes.set_ylabel("height / image height")


def _write(path: str | Path, stream: io.BytesIO) -> None:
    try:
        Path(path).write_bytes(stream.getvalue())
    except OSError as error:
        raise StorageError(f"cannot write the picture {path}: {error.strerror or error}") from error
