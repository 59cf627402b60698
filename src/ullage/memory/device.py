"""What a device adds to live tensors: rounding and segments of its allocator, and the context of the process.

The rules of the caching allocator are facts of PyTorch (c10/cuda/CUDACachingAllocator: 512-byte blocks; requests up to
1 MiB from 2 MiB segments, up to 10 MiB from 20 MiB segments, larger ones from segments rounded up to 2 MiB). The
context is an assumption that was not measured on a GPU here; ``docs/memory.md`` says so.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from ullage.memory.ledger import Piece

MIB = 1024**2
CUDA_CONTEXT_BYTES = 500 * MIB  # CUDA context, cuDNN and cuBLAS handles of one process; assumed
CUDA_WORKSPACE_BYTES = 128 * MIB  # cuDNN's scratch for the largest convolution; assumed
BLOCK, SMALL, SMALL_SEGMENT, MIDDLE, MIDDLE_SEGMENT = 512, MIB, 2 * MIB, 10 * MIB, 20 * MIB


class CachingAllocator:
    """The reserved memory of PyTorch's CUDA allocator, followed through a list of allocations and frees."""

    def __init__(self) -> None:
        self.reserved_bytes = 0
        # Free ranges of the pools of small and of large segments, sorted by size: (size, segment, offset).
        self._free: tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]] = ([], [])
        self._segments = 0
        # Free ranges by their ends, to merge neighbours: (segment, offset) -> size, (segment, end) -> size.
        self._starts: dict[tuple[int, int], int] = {}
        self._ends: dict[tuple[int, int], int] = {}
        self._used: dict[int, tuple[int, int, int]] = {}

    def allocate(self, handle: int, nbytes: int) -> None:
        """Serve a request."""
        if nbytes == 0:
            return
        size = -(-nbytes // BLOCK) * BLOCK
        pool = self._free[size > SMALL]
        at = bisect.bisect_left(pool, (size, -1, -1))
        if at < len(pool):
            room, segment, offset = pool[at]
            self._take(segment, offset, room, large=size > SMALL)
        else:
            room = (
                SMALL_SEGMENT if size <= SMALL else MIDDLE_SEGMENT if size < MIDDLE else -(-size // (2 * MIB)) * 2 * MIB
            )
            segment, offset = self._segments, 0
            self._segments += 1
            self.reserved_bytes += room
        rest = room - size
        if rest >= BLOCK if size <= SMALL else rest > SMALL:
            self._give(segment, offset + size, rest, large=size > SMALL)
        else:
            size = room
        self._used[handle] = (segment, offset, size)

    def free(self, handle: int, nbytes: int) -> None:
        """Take a block back, merging it with free neighbours."""
        if nbytes == 0:
            return
        large = -(-nbytes // BLOCK) * BLOCK > SMALL
        segment, offset, size = self._used.pop(handle)
        if (after := self._starts.get((segment, offset + size))) is not None:
            self._take(segment, offset + size, after, large=large)
            size += after
        if (before := self._ends.get((segment, offset))) is not None:
            self._take(segment, offset - before, before, large=large)
            offset, size = offset - before, size + before
        self._give(segment, offset, size, large=large)

    def _give(self, segment: int, offset: int, size: int, *, large: bool) -> None:
        bisect.insort(self._free[large], (size, segment, offset))
        self._starts[segment, offset] = size
        self._ends[segment, offset + size] = size

    def _take(self, segment: int, offset: int, size: int, *, large: bool) -> None:
        pool = self._free[large]
        pool.pop(bisect.bisect_left(pool, (size, segment, offset)))
        del self._starts[segment, offset], self._ends[segment, offset + size]


def reserved_bytes(pieces: Sequence[Piece], events: Sequence[int], device_type: str) -> int:
    """Return what the device's allocator reserves for a ledger's events; on a CPU, which caches nothing, the peak."""
    if device_type != "cuda":
        level = peak = 0
        for event in events:
            level += pieces[event].nbytes if event >= 0 else -pieces[~event].nbytes
            peak = max(peak, level)
        return peak
    allocator = CachingAllocator()
    for event in events:
        if event >= 0:
            allocator.allocate(event, pieces[event].nbytes)
        else:
            allocator.free(~event, pieces[~event].nbytes)
    return allocator.reserved_bytes + CUDA_WORKSPACE_BYTES


def context_bytes(device_type: str) -> int:
    """Return what a process needs on the device beside its tensors."""
    return CUDA_CONTEXT_BYTES if device_type == "cuda" else 0
