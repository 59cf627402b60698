"""What backward needs while it is in a block, in maps that can be counted by hand; and that all is let go."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ullage.memory import Technique, apply_techniques, estimate, plan
from ullage.memory.activations import call
from ullage.zoo.registry import build

SIDE, CHANNELS, IMAGES = 32, 8, 4
MAP = IMAGES * CHANNELS * SIDE * SIDE * 4
SMALL = MAP // 8  # weights, their gradients, statistics


def unit(activation: nn.Module | None = None) -> nn.Sequential:
    conv = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(CHANNELS), activation or nn.SiLU())


def peak_of_backward(network: nn.Module, techniques: dict[str, str], alive: Callable[..., Any]) -> int:
    """Return the most bytes during backward."""
    images = torch.rand(IMAGES, CHANNELS, SIDE, SIDE)
    with (
        apply_techniques(network, {n: Technique.parse(t) for n, t in techniques.items()}),
        alive(*network.parameters(), *network.buffers(), images) as count,
    ):
        loss = (network(images) * 2).sum()  # keeps nothing itself
        count.peak = 0
        loss.backward()
    return count.peak


def test_an_activation_writes_its_gradient_over_the_map_that_was_made_again(alive: Callable[..., Any]) -> None:
    # Beside the gradient that arrives, plain has convolution's and BatchNorm's results, and the gradient that leaves.
    plain = peak_of_backward(nn.Sequential(unit()), {}, alive)
    cheap = peak_of_backward(nn.Sequential(unit()), {"0": "recompute"}, alive)
    assert 4 * MAP < plain < 4 * MAP + SMALL
    assert 3 * MAP < cheap < 3 * MAP + SMALL


def test_a_second_run_stops_before_its_last_batchnorm(alive: Callable[..., Any]) -> None:
    runs: list[str] = []
    network = nn.Sequential(unit())
    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: runs.append(name))
    peak_of_backward(network, {"0": "nested"}, alive)
    assert runs == ["0.0", "0.1", "0.2", "0", "", "0.0"]


@pytest.mark.parametrize("function", [F.silu, F.gelu, F.hardsigmoid])
def test_activations_in_place_give_the_same_bits(function: Callable[..., torch.Tensor]) -> None:
    x = torch.randn(3, 5, requires_grad=True)
    (wanted,) = torch.autograd.grad(function(x).square().sum(), x)
    (found,) = torch.autograd.grad(call(function, (x,), {}).square().sum(), x)
    assert torch.equal(found, wanted)
    assert torch.equal(x, x.detach().clone())


def test_a_map_that_others_still_need_is_not_overwritten(assert_trains_alike: Callable[..., None]) -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.last = unit(nn.Identity()), nn.Conv2d(CHANNELS, CHANNELS, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.block(x)
            return self.last(F.silu(y) + F.gelu(y) * y.sigmoid() + self.last(y))

    for name in ("recompute", "block", "nested"):
        techniques = {"block": name, "": "recompute"}
        assert_trains_alike(Shares(), techniques, lambda net: net(torch.rand(2, CHANNELS, 16, 16)).square().mean())


class Joined(nn.Module):
    """A block whose input, a concatenation, is larger than what it is made of."""

    def __init__(self, reached: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.one, self.two = unit(), Second(reached)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        return self.two(torch.cat((y, y * 2, y * 3, y * 4), 1))


class Second(nn.Module):
    """Calls ``reached`` when backward comes to its first convolution."""

    def __init__(self, reached: Callable[[], None]) -> None:
        super().__init__()
        self.first, self.rest = nn.Conv2d(4 * CHANNELS, CHANNELS, 1, bias=False), unit()
        self.reached = reached

    def __deepcopy__(self, memo: dict[int, Any]) -> Second:
        other = Second(self.reached)
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y.register_hook(lambda grad: self.reached())
        return self.rest(y)


def test_what_enters_a_block_by_a_recipe_is_not_held_while_the_block_is_in_backward(
    alive: Callable[..., Any], assert_trains_alike: Callable[..., None]
) -> None:
    techniques = {"one": "block", "two": "nested"}
    assert_trains_alike(Joined(), techniques, lambda net: net(torch.rand(2, CHANNELS, 16, 16)).square().mean())
    levels: list[int] = []
    images = torch.rand(IMAGES, CHANNELS, SIDE, SIDE)
    network = Joined(lambda: levels.append(count.bytes))
    with (
        apply_techniques(network, {n: Technique.parse(t) for n, t in techniques.items()}),
        alive(*network.parameters(), *network.buffers(), images) as count,
    ):
        (network(images) * 2).sum().backward()
    (level,) = levels  # what the first block made, and the gradient; not the four maps
    assert 2 * MAP <= level < 2 * MAP + SMALL


@pytest.mark.parametrize("inner", ["block", "nested"])
def test_blocks_in_blocks_let_go_without_the_garbage_collector(inner: str, alive: Callable[..., Any]) -> None:
    network = nn.Sequential(nn.Sequential(unit(), unit(), unit()), unit())
    techniques = {"0": "block", "0.0": inner, "0.1": inner, "0.2": inner, "1": "block"}
    images = torch.rand(IMAGES, CHANNELS, SIDE, SIDE)
    gc.disable()
    try:
        with (
            apply_techniques(network, {n: Technique.parse(t) for n, t in techniques.items()}),
            alive(*network.parameters(), *network.buffers(), images) as count,
        ):
            network(images).square().mean().backward()
            assert count.bytes == sum(p.numel() * 4 for p in network.parameters())
    finally:
        gc.enable()


def test_a_plan_nests_as_deep_as_it_must() -> None:
    with torch.device("meta"):
        network = build("yolo11n", num_classes=80).train()
    images = torch.empty(16, 3, 320, 320, device="meta")

    def step(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        raw: Any = model(batch)
        return raw.bins_BAR.square().mean() + raw.logits_BAK.square().mean()

    nested = estimate(step, network, images, technique="nested").peak_bytes
    chosen = plan(step, network, images, budget=int(0.85 * nested))
    assert (chosen.accumulate, chosen.fidelity) == (1, "bitwise")
    assert chosen.predicted.peak_bytes <= 0.85 * nested
    assert chosen.blocks["head"] == "block"  # and in it
    assert chosen.blocks["head.cv3.0"] == "block"  # and in that
    assert any(name.startswith("head.cv3.0.") for name in chosen.blocks)
