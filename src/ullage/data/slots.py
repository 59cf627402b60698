"""Batches on their way from loader processes: in memory that both sides hold from the start and use again and again.

New shared memory costs a page fault every 4 kB, in both processes; for a batch that takes about as long as drawing it.
So the images of a batch travel in one of a few slots. The slot is free again when nobody holds the batch any more.
"""

from __future__ import annotations

import itertools
import weakref
from math import prod
from typing import Any

import numpy as np
import torch

from ullage.data.shared import SharedBytes, start_method

Array = np.ndarray[Any, Any]

_tokens = itertools.count()
# Where the thread that pins memory finds the slots again: batches come to it through a pipe.
_in_use: weakref.WeakValueDictionary[int, BatchSlots] = weakref.WeakValueDictionary()


class BatchSlots:
    """A few equal slots. Only the process that made them hands them out; loader processes write where they are told.

    Args:
        count: How many.
        size: Bytes of each.
    """

    def __init__(self, count: int, size: int) -> None:
        self.token = next(_tokens)
        self._size = size
        self._block = SharedBytes(count * size, forked=start_method() == "fork")
        self._free = list(range(count))
        self._away: set[int] = set()
        _in_use[self.token] = self

    def take(self, shape: tuple[int, ...]) -> int | None:
        """Reserve a slot for an array of a shape; None when all are held, or it would not fit."""
        if not self._free or prod(shape) > self._size:
            return None
        slot = self._free.pop()
        self._away.add(slot)
        return slot

    def view(self, slot: int, shape: tuple[int, ...]) -> Array:
        """Return the memory of a slot, uint8, to write into."""
        return self._block.array()[slot * self._size :][: prod(shape)].reshape(shape)

    def hand_over(self, slot: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Return what a slot holds; when the last tensor on this memory is gone, the slot is free."""
        whole = self._block.array()  # a new object, which the tensor and all that are cut from it keep alive
        weakref.finalize(whole, self._free.append, slot).atexit = False
        self._away.discard(slot)
        return torch.from_numpy(whole[slot * self._size :][: prod(shape)].reshape(shape))

    def give_back(self, slot: int) -> None:
        """Free a slot that nothing came in."""
        self._away.discard(slot)
        self._free.append(slot)

    def take_back(self) -> None:
        """Free the slots that were reserved and never handed over; call it when no process writes any more."""
        self._free.extend(self._away)
        self._away.clear()


def slots_of(token: int) -> BatchSlots:
    """Return the slots with a token, in the process that made them."""
    return _in_use[token]
