"""Which images make which batch: a function of (seed, epoch) alone, so that an epoch can be taken up anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ullage.config.data import STRIDE
from ullage.data.index import DetectionSet
from ullage.geometry.letterbox import tight_size

Array = np.ndarray[Any, Any]
_ORDER_STREAM, _SIZE_STREAM = 2, 3


@dataclass(frozen=True)
class BatchKey:
    """All that a loader process must know to make one batch.

    Attributes:
        epoch: 0-based.
        epochs: How many epochs the run has.
        indices: The images.
        size_hw: Size of the canvas.
    """

    epoch: int
    epochs: int
    indices: tuple[int, ...]
    size_hw: tuple[int, int]


def train_keys(
    dataset: DetectionSet,
    *,
    batch: int,
    imgsz: int,
    sizes: tuple[int, int] | None,
    rect: bool,
    seed: int,
    epoch: int,
    epochs: int,
) -> list[BatchKey]:
    """Cut an epoch into batches; the last one may be short.

    Args:
        dataset: The images.
        batch: Images a batch.
        imgsz: Size of the canvas, or of its longer side with ``rect``.
        sizes: (min, max) to draw the size of each batch from, in steps of 32; None always takes ``imgsz``.
        rect: Put images of like shape together and make the canvas as small as holds them.
        seed: Seed of the run.
        epoch: 0-based.
        epochs: How many epochs the run has.
    """
    rng = np.random.Generator(np.random.PCG64([_ORDER_STREAM, seed, epoch]))
    order = rng.permutation(len(dataset))
    if rect:
        order = order[np.argsort(_aspects(dataset)[order], kind="stable")]
    cuts = [order[start : start + batch] for start in range(0, len(order), batch)]
    if rect:
        cuts = [cuts[i] for i in rng.permutation(len(cuts))]
    keys: list[BatchKey] = []
    for number, cut in enumerate(cuts):
        side = imgsz if sizes is None else _draw_size(sizes, seed, epoch, number)
        size_hw = tight_batch_size(dataset, cut, side) if rect else (side, side)
        keys.append(BatchKey(epoch, epochs, tuple(int(i) for i in cut), size_hw))
    return keys


def eval_keys(dataset: DetectionSet, *, batch: int, imgsz: int, rect: bool) -> list[BatchKey]:
    """Cut a set into batches for judging: in its own order, or with ``rect`` from wide images to tall ones."""
    order = np.arange(len(dataset))
    if rect:
        order = np.argsort(_aspects(dataset), kind="stable")
    cuts = [order[start : start + batch] for start in range(0, len(order), batch)]
    return [
        BatchKey(0, 1, tuple(int(i) for i in cut), tight_batch_size(dataset, cut, imgsz) if rect else (imgsz, imgsz))
        for cut in cuts
    ]


def tight_batch_size(dataset: DetectionSet, indices: Array, imgsz: int) -> tuple[int, int]:
    """Return the smallest (h, w), multiples of 32, that holds images whose longer sides are resized to ``imgsz``."""
    sizes_I2 = np.array([tight_size(dataset.size_hw(int(i)), imgsz, stride=STRIDE) for i in indices])
    height, width = sizes_I2.max(0)
    return int(height), int(width)


def _aspects(dataset: DetectionSet) -> Array:
    return dataset.sizes_hw_I2[:, 0] / dataset.sizes_hw_I2[:, 1]


def _draw_size(sizes: tuple[int, int], seed: int, epoch: int, number: int) -> int:
    rng = np.random.Generator(np.random.PCG64([_SIZE_STREAM, seed, epoch, number]))
    return int(rng.integers(sizes[0] // STRIDE, sizes[1] // STRIDE + 1)) * STRIDE
