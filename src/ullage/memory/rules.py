"""Which functions are cheap enough to run again, and the few that need care when they are.

Everything here gives the same bits when called twice with the same arguments, draws no random numbers and changes
nothing (``instance_norm``, which may record statistics, is not here). A function that is not named is not run again:
what autograd keeps of it stays kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from ullage.memory.lowering import LOWERED

Function = Callable[..., Any]
T: Any = torch.Tensor
F: Any = torch.nn.functional

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
    F.layer_norm, F.group_norm, F.normalize, F.interpolate, F.upsample, F.avg_pool2d,
    F.adaptive_avg_pool2d, torch.max_pool2d, F.max_pool1d, F.adaptive_max_pool2d, F.max_pool2d,
)  # fmt: skip

# What these return may be their argument, or lie in its memory.
MAY_ALIAS: frozenset[Function] = frozenset((*_VIEWS, T.to, T.float, T.half, T.bfloat16, T.type_as))

_CHEAP: tuple[Function, ...] = (*_VIEWS, *_ARITHMETIC, *_ASSEMBLY, *_ACTIVATIONS, *_NORMS_AND_POOLS)

_IN_PLACE_POSITION: dict[Function, int] = {
    F.silu: 1, F.relu: 1, F.relu6: 1, F.leaky_relu: 2, F.elu: 2, F.selu: 1, F.celu: 2, F.mish: 1, F.hardswish: 1,
    F.hardsigmoid: 1, F.hardtanh: 3,
}  # fmt: skip
_OVERWRITING: tuple[Function, ...] = (
    T.add_, T.__iadd__, T.sub_, T.__isub__, T.mul_, T.__imul__, T.div_, T.__itruediv__, T.relu_, torch.relu_, T.clamp_,
    T.sigmoid_, T.tanh_,
)  # fmt: skip

# What the engine does about a call; one look-up, since every call of a forward pass comes by.
Role = Literal["cheap", "product", "norm"]
ROLES: dict[Function, Role] = {
    **dict.fromkeys(LOWERED, "product"), **dict.fromkeys((*_CHEAP, *_OVERWRITING), "cheap"), F.batch_norm: "norm"
}  # fmt: skip
_WITH_WEIGHT = frozenset(
    (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear)
)


def weight_shape(function: Function, arguments: tuple[Any, ...]) -> Sequence[int] | None:
    """Return the shape of a layer's weight, None for a product of two maps."""
    return arguments[1].shape if function in _WITH_WEIGHT and len(arguments) > 1 else None


def works_in_place(function: Function, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a call overwrites its first argument."""
    if function in _ON_A_COPY:
        return True
    position = _IN_PLACE_POSITION.get(function)
    if position is None or not arguments:
        return False
    return bool(arguments[position] if len(arguments) > position else keywords.get("inplace", False))


def out_of_place(
    function: Function, arguments: list[Any], keywords: dict[str, Any]
) -> tuple[Function, list[Any], dict[str, Any]]:
    """Return a call that makes the same without overwriting."""
    if function in _ON_A_COPY:
        return _ON_A_COPY[function], arguments, keywords
    return function, arguments[: _IN_PLACE_POSITION[function]], {k: v for k, v in keywords.items() if k != "inplace"}


def _on_a_copy(function: Function, x: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
    return function(x.clone(), *arguments, **keywords)


_ON_A_COPY: dict[Function, Function] = {f: functools.partial(_on_a_copy, f) for f in _OVERWRITING}


def batch_norm(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, Function, tuple[Any, ...]]:
    """Run BatchNorm. Returns its result, and what makes it again: a function, and its arguments after ``x``."""
    one_value = x.numel() <= x.shape[1]  # F.batch_norm refuses it
    if training and x.is_cpu and x.dim() > 2 and not one_value:
        out, mean_C, scale_C = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        return out, normalise, (weight, bias, mean_C, scale_C)
    out = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if training:
        return out, normalise_again, (weight, bias, momentum, eps)
    recorded = tuple(t if t is None else t.detach().clone() for t in (running_mean, running_var))
    return out, F.batch_norm, (*recorded, weight, bias, False, momentum, eps)


NormRun = Callable[..., tuple[torch.Tensor, Function, tuple[Any, ...]]]
NORMS: dict[Function, NormRun] = {F.batch_norm: batch_norm}


def register_norm(function: Function, run: NormRun) -> None:
    """Make a BatchNorm of one's own known to the engine.

    Args:
        function: ``function(x, ...)``, which looks for function modes (``torch.overrides.handle_torch_function``).
        run: Takes the same arguments. Returns its result, and what makes it again bit for bit from ``x``, changing
            nothing: a function, and its arguments after ``x``.
    """
    NORMS[function], ROLES[function] = run, "norm"


def normalise(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, mean_C: torch.Tensor, scale_C: torch.Tensor
) -> torch.Tensor:
    """The affine half of BatchNorm on a CPU, from the statistics of its run in training.

    ATen computes ``x * (scale * weight) + (bias - mean * scale * weight)`` in training and in evaluation, where it
    takes ``scale`` from the running variance. A variance of one, with no epsilon, and the scale put into the weight
    give the same three numbers, so the same bits, without the two passes that gather statistics.
    """
    weight_C = scale_C if weight is None else scale_C * weight
    bias_C = torch.zeros_like(mean_C) if bias is None else bias
    return torch.batch_norm(x, weight_C, bias_C, mean_C, torch.ones_like(mean_C), False, 0.0, 0.0, False)


def normalise_again(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, momentum: float, eps: float
) -> torch.Tensor:
    """BatchNorm in training once more, statistics included and recorded nowhere: for every other device."""
    return F.batch_norm(x, None, None, weight, bias, True, momentum, eps)
