"""What a convolution on a CPU takes for itself while it runs; it is freed before any other operator could see it.

oneDNN reorders weights, and maps that are not channels-last; without it, maps are unfolded into columns. The rules were
read off the allocation events of PyTorch's profiler, for maps of many shapes (torch 2.14, x86).
"""

from __future__ import annotations

from typing import Any

import torch

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


def scratch_bytes(func: Any, args: Any, out: Any) -> int:
    """Return the scratch of a call; 0 for everything but convolutions of maps."""
    if func is _FORWARD:
        x, weight, bias, *setting = args
        y = out
    elif func is _BACKWARD:
        y, x, weight, _, *setting = args[:10]
        bias = None
    else:
        return 0
    if x.dim() != 4:
        return 0
    backend = torch._C._select_conv_backend(x, weight, bias, *setting).name  # pyright: ignore
    if backend == "Mkldnn":
        return _onednn(x, weight, y, backward=func is _BACKWARD)
    return _columns(x, weight, y, groups=setting[-1]) if backend == "Slow2d" else 0


def _onednn(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, backward: bool) -> int:
    if any(t.is_contiguous(memory_format=torch.channels_last) for t in (x, weight)):
        return (2 if backward else 1) * weight.nbytes
    return max(x.nbytes + y.nbytes, weight.nbytes) if backward else max(x.nbytes + weight.nbytes, y.nbytes)


def _columns(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, groups: int) -> int:
    window = weight.shape[1] * weight.shape[2] * weight.shape[3]
    columns = 0 if weight.shape[2:] == (1, 1) else x.shape[0] * window * y.shape[2] * y.shape[3] * x.element_size()
    return columns + (y.nbytes if groups > 1 else 0)
