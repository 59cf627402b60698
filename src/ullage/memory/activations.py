"""Activations whose gradient is written over the map that backward made again for it: one map less at the peak.

An operator's own backward takes the map and returns a new one of the same size. Where the map was made for this very
call, by a recipe, nobody else has it, and the same kernel can write its result in its place. The bits are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from ullage.memory.keeping import Held

F: Any = torch.nn.functional
aten: Any = torch.ops.aten


class _Unpacked(threading.local):
    is_owned: bool = False


_unpacked = _Unpacked()


def unpack(held: Held) -> torch.Tensor:
    """Give autograd a tensor back, and remember whether it may be overwritten."""
    with torch.no_grad():
        tensor, _unpacked.is_owned = held.take()
    return tensor


class _Activation(torch.autograd.Function):
    """``function(x)``, with a backward that works in place where it may."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, function: Callable[..., Any], keywords: dict[str, Any]) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.function, ctx.gradient, ctx.keywords = function, _GRADIENTS[function], keywords
        return function(x, **keywords)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        _unpacked.is_owned = False
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of gradients: autograd knows how
            return torch.autograd.grad(ctx.function(x, **ctx.keywords), x, grad, create_graph=True)[0], None, None
        if _unpacked.is_owned and x.dtype is grad.dtype and x.stride() == grad.stride():
            return ctx.gradient.grad_input(grad, x, grad_input=x, **ctx.keywords), None, None
        return ctx.gradient(grad, x, **ctx.keywords), None, None


_GRADIENTS: dict[Callable[..., Any], Any] = {
    F.silu: aten.silu_backward, F.gelu: aten.gelu_backward, F.hardsigmoid: aten.hardsigmoid_backward
}  # fmt: skip


def call(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Call a function, so that its backward works in place where that is known how."""
    if function not in _GRADIENTS or len(arguments) != 1 or keywords.get("inplace"):
        return function(*arguments, **keywords)
    keywords = {name: value for name, value in keywords.items() if name != "inplace"}
    return _Activation.apply(arguments[0], function, keywords)  # pyright: ignore[reportUnknownVariableType]
