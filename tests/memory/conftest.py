"""What the tests of the engine share."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ullage.memory import Technique, apply_techniques, block_names


def everywhere(network: nn.Module, name: str) -> dict[str, Technique]:
    return {block: Technique.parse(name) for block in block_names(network)}


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that are made under it, as long as they live."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.sizes: dict[int, int] = {}
        self.peak = 0

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata)
        self.peak = max(self.peak, self.bytes)
        return out


@dataclass
class Trained:
    losses: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]
    random: torch.Tensor


def train(
    network: nn.Module,
    forward: Callable[[nn.Module], torch.Tensor],
    *,
    steps: int = 2,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
) -> Trained:
    """Train a few steps; ``forward`` returns the loss and may draw random numbers."""
    torch.manual_seed(5)
    losses: list[torch.Tensor] = []
    gradients: dict[str, torch.Tensor] = {}
    for _ in range(steps):
        network.zero_grad()
        loss = forward(network)
        backward(loss)
        losses.append(loss.detach())
        gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        with torch.no_grad():
            for p in network.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.01)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    return Trained(losses, gradients, state, torch.get_rng_state())


def assert_same(one: Trained, other: Trained) -> None:
    """Hold two trainings to be equal bit for bit, the state of the random numbers included."""
    assert all(torch.equal(a, b) for a, b in zip(one.losses, other.losses, strict=True))
    for mine, theirs in ((one.gradients, other.gradients), (one.state, other.state)):
        assert list(mine) == list(theirs)
        for key, tensor in mine.items():
            assert torch.equal(tensor, theirs[key]), key
    assert torch.equal(one.random, other.random)


Same = Callable[..., None]


@pytest.fixture
def assert_trains_alike() -> Same:
    """Train a copy under techniques and compare it with plain training, bit for bit."""

    def check(
        network: nn.Module,
        techniques: str | Mapping[str, str],
        forward: Callable[[nn.Module], torch.Tensor],
        **options: Any,
    ) -> None:
        twin = copy.deepcopy(network)
        plain = train(network, forward, **options)
        if isinstance(techniques, str):
            chosen = everywhere(twin, techniques)
        else:
            chosen = {name: Technique.parse(t) for name, t in techniques.items()}
        keys = list(twin.state_dict())
        with apply_techniques(twin, chosen):
            assert list(twin.state_dict()) == keys
            assert_same(plain, train(twin, forward, **options))

    return check


@pytest.fixture
def alive() -> type[Alive]:
    return Alive
