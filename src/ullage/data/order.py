"""Which images make which batch: a function of (seed, epoch) alone, so that an epoch can be taken up anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from ullage.config.data import STRIDE
from ullage.data.index import DetectionSet
from ullage.data.recent import RECENT_BYTES
from ullage.geometry.letterbox import tight_size

Array = np.ndarray[Any, Any]
_ORDER_STREAM, _SIZE_STREAM = 2, 3
WINDOW, MIN_WINDOW = 80, 16
_WINDOW_SHARE = 0.8  # of the memory for recent images; the rest is for what other processes are about to need


@dataclass(frozen=True)
class BatchKey:
    """All that a loader process must know to make one batch.

    Attributes:
        epoch: 0-based.
        epochs: How many epochs the run has.
        indices: The images.
        size_hw: Size of the canvas.
        nearby: A run of the epoch's order, from which each image takes its partners; empty takes them from the set.
        windows: For each image the part of ``nearby`` that is its window, as (start, stop).
    """

    epoch: int
    epochs: int
    indices: tuple[int, ...]
    size_hw: tuple[int, int]
    nearby: tuple[int, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()

    def partners(self, place: int) -> tuple[int, ...] | None:
        """Return the images that the image at a place of the batch may take partners from; None means all."""
        if not self.nearby:
            return None
        start, stop = self.windows[place]
        return self.nearby[start:stop]

    def part(self, places: Sequence[int]) -> BatchKey:
        """Return the same batch with the images at some places only; each sample stays what it is."""
        indices = tuple(self.indices[place] for place in places)
        return replace(self, indices=indices, windows=tuple(self.windows[place] for place in places if self.windows))


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
    window: int | None = None,
) -> Keys:
    """Cut an epoch into batches; the last one may be short.

    Args:
        dataset: The images.
        batch: Images a batch.
        imgsz: Size of the canvas, or of its longer side with ``rect``.
        sizes: (min, max) to draw the size of each batch from, in steps of 32; None always takes ``imgsz``.
        rect: Put images together that need a canvas of the same shape, and make it as small as holds them.
        seed: Seed of the run.
        epoch: 0-based.
        epochs: How many epochs the run has.
        window: Partners come from the image's window: this many images of the epoch's order, the image itself the last
            of them, or the first ones of the epoch. None takes them from the whole set.
    """
    rng = np.random.Generator(np.random.PCG64([_ORDER_STREAM, seed, epoch]))
    order = rng.permutation(len(dataset))
    starts = np.arange(0, len(order), batch)
    if rect:
        shapes_I = _canvas_shapes(dataset, imgsz if sizes is None else sizes[1])
        order = order[np.argsort(shapes_I[order], kind="stable")]  # within a shape the order stays by chance
        cuts = [order[start : start + batch] for start in starts]
        cuts = [cuts[i] for i in rng.permutation(len(cuts))]
        order, starts = np.concatenate(cuts), np.cumsum([0, *map(len, cuts[:-1])])

    def side_of(number: int) -> int:
        return imgsz if sizes is None else _draw_size(sizes, seed, epoch, number)

    def key_of(number: int) -> BatchKey:
        start = int(starts[number])
        cut = order[start : int(starts[number + 1]) if number + 1 < len(starts) else len(order)]
        side = side_of(number)
        size_hw = tight_batch_size(dataset, cut, side) if rect else (side, side)
        near = ((), ()) if window is None else _nearby(order, start, len(cut), window)
        return BatchKey(epoch, epochs, tuple(cut.tolist()), size_hw, *near)

    return Keys(len(starts), key_of)


class Keys(Sequence[BatchKey]):
    """The batches of an epoch, each made when it is asked for: a million images need no list of them."""

    def __init__(self, count: int, key_of: Callable[[int], BatchKey], *, first: int = 0) -> None:
        self._count, self._key_of, self._first = count, key_of, first

    def __len__(self) -> int:
        return max(self._count - self._first, 0)

    @overload
    def __getitem__(self, index: int) -> BatchKey: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BatchKey]: ...
    def __getitem__(self, index: int | slice) -> BatchKey | Sequence[BatchKey]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        return self._key_of(self._first + index)

    def after(self, count: int) -> Keys:
        """Return the batches without the first ``count``."""
        return Keys(self._count, self._key_of, first=self._first + count)

    def each(self, change: Callable[[BatchKey], BatchKey]) -> Keys:
        """Return the batches, each changed when it is asked for."""
        return Keys(self._count, lambda number: change(self._key_of(number)), first=self._first)

    def every(self, step: int, *, start: int) -> Keys:
        """Return every so manieth batch, from one on."""
        return Keys(len(range(start, len(self), step)), lambda number: self[start + number * step])


def shared_keys(keys: Keys, boxes_I: Array, *, rank: int, ranks: int) -> Keys:
    """Cut every batch into one part for each process; return those of one of them, some of which may be empty.

    Parts hold as many images as the next, give or take one, and about as many boxes: the most crowded image goes to
    the process that has the fewest boxes yet.

    Args:
        keys: The whole batches.
        boxes_I: How many boxes each image of the set has.
        rank: The process, from 0.
        ranks: How many there are.
    """
    return keys if ranks == 1 else keys.each(lambda key: key.part(_places(boxes_I[list(key.indices)], rank, ranks)))


def _places(boxes_B: Array, rank: int, ranks: int) -> list[int]:
    room = [(len(boxes_B) + ranks - 1 - number) // ranks for number in range(ranks)]
    load, owner = [0] * ranks, [0] * len(boxes_B)
    for place in np.argsort(-boxes_B, kind="stable").tolist():
        chosen = min((number for number in range(ranks) if room[number]), key=lambda number: (load[number], number))
        room[chosen] -= 1
        load[chosen] += int(boxes_B[place])
        owner[place] = chosen
    return [place for place, number in enumerate(owner) if number == rank]


def partner_window(side: int) -> int:
    """Return how many images of an epoch's order a sample takes its partners from: as many as stay in memory.

    Args:
        side: The largest side of the canvas. It decides alone, so that a sample does not depend on the machine.
    """
    return max(min(WINDOW, int(_WINDOW_SHARE * RECENT_BYTES) // (3 * side * side)), MIN_WINDOW)


def _nearby(
    order: Array, position: int, count: int, window: int
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return the run of the order that some images' windows cover, and each window in it."""
    starts = [
        min(max(place - window + 1, 0), max(len(order) - window, 0)) for place in range(position, position + count)
    ]
    first, last = starts[0], min(starts[-1] + window, len(order))
    windows = tuple((start - first, min(start + window, len(order)) - first) for start in starts)
    return tuple(order[first:last].tolist()), windows


def eval_keys(dataset: DetectionSet, *, batch: int, imgsz: int, rect: bool) -> Keys:
    """Cut a set into batches for judging: in its own order, or with ``rect`` from wide images to tall ones."""
    order = np.arange(len(dataset))
    if rect:
        order = np.argsort(_aspects(dataset), kind="stable")

    def key_of(number: int) -> BatchKey:
        cut = order[number * batch : (number + 1) * batch]
        size_hw = tight_batch_size(dataset, cut, imgsz) if rect else (imgsz, imgsz)
        return BatchKey(0, 1, tuple(cut.tolist()), size_hw)

    return Keys(-(-len(order) // batch), key_of)


def tight_batch_size(dataset: DetectionSet, indices: Array, imgsz: int) -> tuple[int, int]:
    """Return the smallest (h, w), multiples of 32, that holds images whose longer sides are resized to ``imgsz``."""
    sizes_I2 = np.array([tight_size(dataset.size_hw(int(i)), imgsz, stride=STRIDE) for i in indices])
    height, width = sizes_I2.max(0)
    return int(height), int(width)


def _canvas_shapes(dataset: DetectionSet, side: int) -> Array:
    """Return height / width of the canvas that each image needs: a few values, each shared by many images."""
    kinds_K2, kind_I = np.unique(dataset.sizes_hw_I2, axis=0, return_inverse=True)
    canvas_K2 = np.array([tight_size((int(h), int(w)), side, stride=STRIDE) for h, w in kinds_K2])
    return (canvas_K2[:, 0] / canvas_K2[:, 1])[kind_I.reshape(-1)]


def _aspects(dataset: DetectionSet) -> Array:
    return dataset.sizes_hw_I2[:, 0] / dataset.sizes_hw_I2[:, 1]


def _draw_size(sizes: tuple[int, int], seed: int, epoch: int, number: int) -> int:
    rng = np.random.Generator(np.random.PCG64([_SIZE_STREAM, seed, epoch, number]))
    return int(rng.integers(sizes[0] // STRIDE, sizes[1] // STRIDE + 1)) * STRIDE
