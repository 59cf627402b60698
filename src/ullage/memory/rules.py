"""Which functions are cheap enough to run again, and the few that need care when they are.

Everything here gives the same bits when called twice with the same arguments, draws no random numbers and changes
nothing. A function that is not named is not run again: what autograd keeps of it stays kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Function = Callable[..., Any]
T: Any = torch.Tensor

_VIEWS: tuple[Function, ...] = (
    T.chunk, torch.chunk, T.split, torch.split, T.unbind, torch.unbind, T.narrow, torch.narrow, T.select, torch.select,
    T.view, T.view_as, T.reshape, torch.reshape, T.flatten, torch.flatten, T.unflatten, torch.unflatten, T.squeeze,
    torch.squeeze, T.unsqueeze, torch.unsqueeze, T.transpose, torch.transpose, T.permute, torch.permute, T.movedim,
    torch.movedim, T.expand, T.expand_as, T.t, T.__getitem__, T.contiguous, T.mT.__get__, T.T.__get__, T.mH.__get__,
)  # fmt: skip
_ARITHMETIC: tuple[Function, ...] = (
    T.add, T.__add__, T.__radd__, torch.add, T.sub, T.__sub__, T.__rsub__, torch.sub, T.mul, T.__mul__, T.__rmul__,
    torch.mul, T.div, T.__truediv__, T.__rtruediv__, torch.div, T.neg, T.__neg__, torch.neg, T.square, torch.square,
    T.sqrt, torch.sqrt, T.exp, torch.exp, T.clamp, torch.clamp, T.sigmoid, torch.sigmoid, T.tanh, torch.tanh, T.relu,
    torch.relu, T.to, T.float, T.half, T.bfloat16, T.type_as,
)  # fmt: skip
_ASSEMBLY: tuple[Function, ...] = (
    torch.cat, torch.concat, torch.stack, torch.roll, T.roll, F.pad, torch.nn.functional.pixel_shuffle,
    F.pixel_unshuffle, T.repeat, torch.flip, T.flip, T.repeat_interleave, torch.repeat_interleave,
)  # fmt: skip
_ACTIVATIONS: tuple[Function, ...] = (
    F.silu, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh,
    F.gelu, F.softplus, F.sigmoid, F.tanh, F.logsigmoid, F.glu, F.prelu, F.softmax, torch.softmax, T.softmax,
)  # fmt: skip
_NORMS_AND_POOLS: tuple[Function, ...] = (
    F.layer_norm, F.group_norm, F.instance_norm, F.normalize, F.interpolate, F.upsample, F.avg_pool2d,
    F.adaptive_avg_pool2d, torch.max_pool2d, F.max_pool1d, F.adaptive_max_pool2d, F.max_pool2d,
)  # fmt: skip

CHEAP: frozenset[Function] = frozenset((*_VIEWS, *_ARITHMETIC, *_ASSEMBLY, *_ACTIVATIONS, *_NORMS_AND_POOLS))

_IN_PLACE_POSITION = {
    F.silu: 1, F.relu: 1, F.relu6: 1, F.leaky_relu: 2, F.elu: 2, F.selu: 1, F.celu: 2, F.mish: 1, F.hardswish: 1,
    F.hardsigmoid: 1, F.hardtanh: 3,
}  # fmt: skip


def works_in_place(function: Function, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a call overwrites its first argument."""
    position = _IN_PLACE_POSITION.get(function)
    if position is None:
        return False
    return bool(arguments[position] if len(arguments) > position else keywords.get("inplace", False))


def out_of_place(
    function: Function, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the same call without overwriting."""
    return arguments[: _IN_PLACE_POSITION[function]], {k: v for k, v in keywords.items() if k != "inplace"}


def normalise(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, mean_C: torch.Tensor, scale_C: torch.Tensor
) -> torch.Tensor:
    """The affine half of BatchNorm on a CPU, from the statistics of its run in training.

    ATen computes ``x * (scale * weight) + (bias - mean * scale * weight)`` in training and in evaluation, where it takes
    ``scale`` from the running variance. A variance of one, with no epsilon, and the scale put into the weight give
    the same three numbers, so the same bits, without the two passes that gather statistics.
    """
    weight_C = scale_C if weight is None else scale_C * weight
    bias_C = torch.zeros_like(mean_C) if bias is None else bias
    return torch.batch_norm(x, weight_C, bias_C, mean_C, torch.ones_like(mean_C), False, 0.0, 0.0, False)


def normalise_again(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, momentum: float, eps: float
) -> torch.Tensor:
    """BatchNorm in training once more, statistics included and recorded nowhere: for every other device."""
    return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)
