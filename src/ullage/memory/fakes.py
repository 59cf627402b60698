"""Fake tensors in place of a model's own, for as long as a trace lasts. No memory is touched, whatever the sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only


@contextlib.contextmanager
def faked(model: nn.Module) -> Generator[FakeTensorMode]:
    """Put fake parameters and buffers, on the CPU, into a model, and the true ones back afterwards.

    Tied parameters stay tied. Parameters on the ``meta`` device serve as well.
    """
    originals = [(module, dict(module._parameters), dict(module._buffers)) for module in model.modules()]  # pyright: ignore[reportPrivateUsage]
    made: dict[int, torch.Tensor] = {}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        try:
            for module, parameters, buffers in originals:
                module._parameters.update({k: _parameter(p, made) for k, p in parameters.items()})  # pyright: ignore[reportPrivateUsage]
                module._buffers.update({k: _like(b, made) for k, b in buffers.items()})  # pyright: ignore[reportPrivateUsage]
            yield mode
        finally:
            for module, parameters, buffers in originals:
                module._parameters.update(parameters)  # pyright: ignore[reportPrivateUsage]
                module._buffers.update(buffers)  # pyright: ignore[reportPrivateUsage]


def is_faked(model: nn.Module) -> bool:
    """Whether the model's tensors are fake already."""
    return isinstance(next(iter((*model.parameters(), *model.buffers())), None), FakeTensor)


def fake_batch(batch: Any) -> Any:
    """Replace the tensors of a batch (lists, tuples, dictionaries of them) by fake ones; call it inside ``faked``."""
    return tree_map_only(torch.Tensor, _fake, batch)


def _parameter(parameter: nn.Parameter | None, made: dict[int, torch.Tensor]) -> nn.Parameter | None:
    if parameter is None:
        return None
    if id(parameter) not in made:
        made[id(parameter)] = nn.Parameter(_new(parameter), requires_grad=parameter.requires_grad)
    fake = made[id(parameter)]
    assert isinstance(fake, nn.Parameter)
    return fake


def _like(tensor: torch.Tensor | None, made: dict[int, torch.Tensor]) -> torch.Tensor | None:
    if tensor is None:
        return None
    if id(tensor) not in made:
        made[id(tensor)] = _new(tensor)
    return made[id(tensor)]


def _new(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if isinstance(tensor, FakeTensor) else _new(tensor).requires_grad_(tensor.requires_grad)
