"""Autocast's types as they are on the device that will train, on a machine that does not have it.

On CUDA, autocast lowers matrix products and convolutions, raises a few functions to float32, and leaves the rest as its
inputs are; the CPU's lists differ (it raises interpolation, for one). A trace for a GPU on a machine without one runs
on CPU tensors under this mode instead of autocast.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

F: Any = torch.nn.functional
T: Any = torch.Tensor

# The memory engine casts their inputs itself, so that the copies can be made again instead of being kept.
LOWERED: frozenset[Callable[..., Any]] = frozenset(
    (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear, torch.conv2d,
     torch.matmul, T.matmul, T.__matmul__, torch.bmm, T.bmm, torch.mm, T.mm, torch.addmm, torch.baddbmm, torch.einsum,
     F.scaled_dot_product_attention)
)  # fmt: skip
_torch: Any = torch
RAISED: frozenset[Callable[..., Any]] = frozenset(
    (F.softmax, _torch.softmax, T.softmax, F.log_softmax, _torch.log_softmax, T.log_softmax, F.layer_norm, F.group_norm,
     F.softplus, _torch.exp, T.exp, _torch.log, T.log, _torch.pow, T.pow, T.__pow__, _torch.sum, T.sum, _torch.cumsum,
     T.cumsum, _torch.prod, T.prod, F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.nll_loss, F.cross_entropy,
     F.cosine_similarity, F.binary_cross_entropy_with_logits, F.normalize, _torch.norm, T.norm)
)  # fmt: skip


class _State(threading.local):
    dtype: torch.dtype | None = None


_state = _State()


def lowered_dtype(device_type: str) -> torch.dtype | None:
    """Return the type that convolutions work in here and now, None for that of their inputs."""
    if _state.dtype is not None:
        return _state.dtype
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


class TargetAutocast(TorchFunctionMode):
    """CUDA's autocast, on tensors of any device."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __enter__(self) -> TargetAutocast:
        _state.dtype = self.dtype
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # pyright: ignore[reportUnknownMemberType]
        _state.dtype = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords: dict[str, Any] = kwargs or {}
        if func in LOWERED:
            args, keywords = _cast(args, self.dtype), {k: _cast_one(v, self.dtype) for k, v in keywords.items()}
        elif func in RAISED:
            args = _cast(args, torch.float32)
        return func(*args, **keywords)


def _cast(arguments: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(_cast_one(item, dtype) for item in arguments)


def _cast_one(item: Any, dtype: torch.dtype) -> Any:
    return item.to(dtype) if isinstance(item, torch.Tensor) and item.is_floating_point() else item


def autocast_now(device_type: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Return what brings today's autocast back later."""
    if (target := _state.dtype) is not None:
        return lambda: TargetAutocast(target)
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return lambda: torch.autocast(device_type, enabled=enabled, dtype=dtype)
