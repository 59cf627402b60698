"""Memory that a process shares with the loader processes that it starts.

Where processes are forked it is an anonymous map, which ``/dev/shm`` and its limit in containers do not know of; where
they are spawned it is a shared tensor.
"""

from __future__ import annotations

import mmap
import sys
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def start_method() -> str:
    """Return how loader processes start: forked on Linux, where they then share the image cache; spawned elsewhere."""
    return "fork" if sys.platform.startswith("linux") else "spawn"


class SharedBytes:
    """A block of zeros that survives the way into a loader process. Memory is taken when it is first written to.

    Args:
        count: Its size in bytes.
        forked: True when the processes are forked from this one.
    """

    def __init__(self, count: int, *, forked: bool) -> None:
        self._tensor: torch.Tensor | None = None
        self._map: mmap.mmap | None = None
        if forked:
            self._map = mmap.mmap(-1, max(count, 1))
        else:
            self._tensor = torch.zeros(max(count, 1), dtype=torch.uint8).share_memory_()

    def array(self) -> Array:
        """Return all of it, uint8; a new array each time, which keeps the memory alive."""
        if self._map is not None:
            return np.frombuffer(self._map, np.uint8)
        assert self._tensor is not None
        return self._tensor.numpy()
