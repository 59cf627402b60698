"""The images used last, in one bounded block of memory that all loader processes share.

An image that one process decoded is there for the others: the partners of a mosaic come from the images that were due
shortly before, so each image is decoded about once an epoch, whatever process its neighbours fell to. What is kept
changes the speed, never the pixels.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ullage.data.shared import SharedBytes, start_method

Array = np.ndarray[Any, Any]

RECENT_BYTES = 128_000_000
BYTES_A_PROCESS = 40_000_000  # for each process beyond two: so many more batches are being made at the same time
_EMPTY = -1
_PAGE_BYTES = 4096


class RecentImages:
    """Slots for decoded images; the one that was used least recently makes room.

    A set that fits as a whole has a slot for each image and loses none; a larger one has slots of one size.

    Args:
        sizes: Bytes of each image.
        limit: Bytes of all slots together.
        shared: True when several processes will use it.
    """

    def __init__(self, sizes: Array, *, limit: int, shared: bool) -> None:
        ends = np.cumsum(sizes, dtype=np.int64)
        total = int(ends[-1]) if len(ends) else 0
        self.holds_all = total <= limit
        if self.holds_all:
            self._starts = np.concatenate(([0], ends))[:-1]
            slots = len(sizes)
        else:
            size = -(-int(sizes.max()) // _PAGE_BYTES) * _PAGE_BYTES
            slots = limit // size
            self._starts, total = np.arange(slots, dtype=np.int64) * size, slots * size
        forked = start_method() == "fork" or not shared
        self._bytes = SharedBytes(total, forked=forked)
        # The table: for each slot its image, how many processes read it now, and when it was last asked for.
        self._table = SharedBytes(8 * (3 * slots + 1), forked=forked)
        self._places = SharedBytes(4 * len(sizes), forked=forked)
        self._slots = slots
        self._lock: AbstractContextManager[Any] = (
            multiprocessing.get_context(start_method()).Lock() if shared else nullcontext()
        )
        self._pinned, self._pinned_by = _EMPTY, 0  # the slot that this process reads
        image_S, _, _, _ = self._columns()
        image_S[:] = _EMPTY

    def get(self, index: int, shape: tuple[int, int, int]) -> Array | None:
        """Return an image that is here, None otherwise. It stays until this process asks for another one."""
        image_S, readers_S, used_S, clock_1 = self._columns()
        with self._lock:
            self._let_go(readers_S)
            slot = int(self._places.array().view(np.int32)[index])
            if slot >= self._slots or image_S[slot] != index:
                return None
            readers_S[slot] += 1
            clock_1 += 1
            used_S[slot] = clock_1[0]
        self._pinned, self._pinned_by = slot, os.getpid()
        return self._view(slot, shape)

    def has(self, index: int) -> bool:
        """Tell whether an image seems to be here; another process may be about to overwrite it."""
        image_S, _, _, _ = self._columns()
        slot = int(self._places.array().view(np.int32)[index])
        return slot < self._slots and int(image_S[slot]) == index

    def put(self, index: int, image: Array) -> Array:
        """Keep an image; return where it is now, or the image itself when every slot is being read."""
        image_S, readers_S, used_S, clock_1 = self._columns()
        with self._lock:
            self._let_go(readers_S)
            slot = self._free_slot(index, image_S, readers_S, used_S)
            if slot is None:
                return image
            image_S[slot] = _EMPTY
            readers_S[slot] += 1
        kept = self._view(slot, image.shape)
        kept[...] = image
        with self._lock:
            image_S[slot] = index
            clock_1 += 1
            used_S[slot] = clock_1[0]
            self._places.array().view(np.int32)[index] = slot
        self._pinned, self._pinned_by = slot, os.getpid()
        return kept

    def forget_readers(self) -> None:
        """Call when no other process uses this: slots that processes read when they ended are free again."""
        _, readers_S, _, _ = self._columns()
        readers_S[:] = 0
        self._pinned = _EMPTY

    def indices(self) -> list[int]:
        """Return the images that are here."""
        image_S, _, _, _ = self._columns()
        return sorted(int(index) for index in image_S if index != _EMPTY)

    def _free_slot(self, index: int, image_S: Array, readers_S: Array, used_S: Array) -> int | None:
        if self.holds_all:
            # Another process may be reading it, or writing it at this moment.
            return index if readers_S[index] == 0 else None
        if index in image_S or not len(image_S):
            return None  # another process was faster
        slot = int(np.where(readers_S == 0, used_S, np.iinfo(np.int64).max).argmin())
        return slot if readers_S[slot] == 0 else None

    def _let_go(self, readers_S: Array) -> None:
        # What a forked process inherits is held by its parent.
        if self._pinned != _EMPTY and self._pinned_by == os.getpid():
            readers_S[self._pinned] -= 1
        self._pinned = _EMPTY

    def _columns(self) -> tuple[Array, Array, Array, Array]:
        table = self._table.array().view(np.int64)
        image_S, readers_S, used_S = table[:-1].reshape(3, -1)
        return image_S, readers_S, used_S, table[-1:]

    def _view(self, slot: int, shape: tuple[int, ...]) -> Array:
        start = int(self._starts[slot])
        return self._bytes.array()[start : start + int(np.prod(shape))].reshape(shape)
