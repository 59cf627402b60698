"""Random raw outputs and targets, and a counter of what operators allocate."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ullage.geometry.targets import Targets
from ullage.nn.outputs import RawDetections, anchor_grid

STRIDES = (8, 16, 32)


def random_raw(
    generator: torch.Generator,
    *,
    batch: int,
    size_hw: tuple[int, int],
    classes: int = 5,
    strides: tuple[int, ...] = STRIDES,
    spread: float = 2.0,
    shift: float = -1.0,
    dtype: torch.dtype = torch.float32,
) -> RawDetections:
    """Raw outputs that require a gradient."""
    sizes_hw = [(size_hw[0] // s, size_hw[1] // s) for s in strides]
    centres_A2, strides_A = anchor_grid(sizes_hw, strides, torch.device("cpu"))
    anchors = strides_A.shape[0]
    bins = torch.randn(batch, anchors, 64, generator=generator) * spread
    logits = torch.randn(batch, anchors, classes, generator=generator) * spread + shift
    return RawDetections(bins.to(dtype).requires_grad_(), logits.to(dtype).requires_grad_(), centres_A2, strides_A)


def random_targets(
    generator: torch.Generator, *, boxes: list[int], size_hw: tuple[int, int], classes: int = 5, largest: float = 1.0
) -> Targets:
    """``boxes[i]`` boxes in image i, of many sizes, clipped to the image; most small."""
    count = sum(boxes)
    height, width = size_hw
    frame = torch.tensor([width, height], dtype=torch.float32)
    centres = torch.rand(count, 2, generator=generator) * frame
    sizes = (torch.rand(count, 2, generator=generator).square() * frame * largest).clamp(min=1.5)
    corners = torch.cat((centres - sizes / 2, centres + sizes / 2), 1)
    corners = torch.minimum(corners.clamp(min=0), torch.cat((frame, frame)))
    image_index = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor(boxes))
    class_ids = torch.randint(0, classes, (count,), generator=generator)
    return Targets(image_index, class_ids, corners, len(boxes))


def gradients(total: torch.Tensor, raw: RawDetections) -> tuple[torch.Tensor, torch.Tensor]:
    bins, logits = torch.autograd.grad(total, (raw.bins_BAR, raw.logits_BAK))
    return bins, logits


class Allocations(TorchDispatchMode):
    """Bytes alive now and at the worst instant, and values written in all (``written``), inputs excluded.

    ``written`` stands for time: it is proportional to the work of element-wise operators and does not jitter.
    """

    def __init__(self, *inputs: torch.Tensor) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self.alive_bytes, self.peak_bytes, self.written = 0, 0, 0
        self._foreign = {t.untyped_storage()._cdata for t in inputs}

    def _drop(self, key: int) -> None:
        self.alive_bytes -= self._alive.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._foreign or key in self._alive:
                continue
            self.written += tensor.numel()
            self._alive[key] = storage.nbytes()
            self.alive_bytes += storage.nbytes()
            weakref.finalize(storage, self._drop, key)
            self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        return out
