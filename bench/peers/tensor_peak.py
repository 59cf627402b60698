"""A neutral counter of the bytes of live tensors, the same for any PyTorch program; it knows nothing of either side.

While it is active it sees every tensor that an operator returns, in forward and in backward, and forgets its storage
when that is freed. It does not see scratch memory inside an operator, the rounding of an allocator, or what is not a
tensor. It slows the program down: take no times under it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorPeak(TorchDispatchMode):
    """Counts storages, each once.

    Args:
        standing: Tensors that are there before: weights, optimizer state, inputs.
    """

    def __init__(self, standing: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.live_bytes = self.peak_bytes = 0
        self._see(standing)
        self.standing_bytes = self.live_bytes

    def _see(self, tensors: Iterable[Any]) -> None:
        for tensor in tensors:
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            handle = storage._cdata  # pyright: ignore[reportPrivateUsage]
            if handle not in self._sizes:
                self._sizes[handle] = storage.nbytes()
                self.live_bytes += storage.nbytes()
                weakref.finalize(storage, self._lose, handle)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _lose(self, handle: int) -> None:
        self.live_bytes -= self._sizes.pop(handle)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self._see(tree_leaves(made))
        return made
