"""Kept maps in eight bits or in host memory: how much, how exact, from which random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from ullage.memory import Technique, apply_techniques, block_names
from ullage.memory.fakes import fake_batch, faked
from ullage.memory.keeping import Exact, InEightBits, InHostMemory, Noise, hold
from ullage.zoo.registry import build

Alive = Callable[..., Any]


def detector_loss(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    raw: Any = network(images)
    return raw.bins_BAR.square().mean() + raw.logits_BAK.square().mean()


def everywhere(network: nn.Module, name: str) -> dict[str, Technique]:
    return {block: Technique.parse(name) for block in block_names(network)}


def example(shape: tuple[int, ...] = (4, 8, 32, 32)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator) * torch.logspace(-3, 3, shape[1]).view(1, -1, 1, 1)


@pytest.mark.parametrize(("storage", "steps"), [("int8", 1.0), ("fp8", 16.0)])
def test_the_error_is_bounded_channel_by_channel(storage: Literal["int8", "fp8"], steps: float) -> None:
    x = example()
    error = (InEightBits(x, storage, Noise(1)).get() - x).abs().amax((0, 2, 3))
    step = x.abs().amax((0, 2, 3)) / (127 if storage == "int8" else 448)
    assert (error <= steps * step * 1.001).all()
    assert (error > 0).all()


def test_rounding_to_integers_is_right_on_average() -> None:
    x = example((1, 4, 8, 8))
    mean = torch.stack([InEightBits(x, "int8", Noise(seed)).get() for seed in range(400)]).mean(0)
    step = x.abs().amax((0, 2, 3), keepdim=True) / 127
    assert ((mean - x).abs() < 5 * 0.5 * step / 400**0.5).all()  # five standard deviations


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_what_is_not_finite_stays_visible(value: float) -> None:
    x = example()
    x[1, 2, 3, 4] = value
    for storage in ("int8", "fp8"):
        assert not InEightBits(x, storage, Noise(0)).get()[1, 2, 3, 4].isfinite()  # type: ignore[arg-type]
    assert torch.equal(InEightBits(torch.zeros(2, 3, 4, 4), "int8", Noise(0)).get(), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("storage", ["int8", "fp8", "offload"])
def test_strides_and_type_come_back(storage: Any) -> None:
    wide = example((4, 16, 40, 40))
    for x in (
        wide.contiguous(memory_format=torch.channels_last),
        wide[:, 4:12],
        wide.bfloat16(),
        wide.transpose(1, 3),
        wide[:0],
    ):
        back = hold(x, storage, Noise(0)).get()
        assert back.shape == x.shape
        assert back.dtype == x.dtype
        assert back.stride() == x.stride() or not x.numel()
        assert storage != "offload" or torch.equal(back, x)


@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_statistics_indices_and_small_tensors_are_kept_exactly(storage: Any) -> None:
    for x in (
        torch.rand(4, 8, 4096),  # log-sum-exp of attention
        torch.rand(16, 64, 64, 1, 1),  # pooled statistics
        torch.ones(4, 8, 64, 64, dtype=torch.int64),
        torch.rand(1, 3, 8, 8),
        torch.rand(4, 8, 1, 1).expand(4, 8, 64, 64),
    ):
        assert isinstance(hold(x, storage, Noise(0)), Exact)


@pytest.mark.parametrize(
    ("name", "of"), [("int8", "none"), ("fp8", "none"), ("recompute+int8", "recompute"), ("block+int8", "block")]
)
def test_eight_bits_keep_less(name: str, of: str, alive: Alive) -> None:
    network = build("yolov12n", num_classes=2).train()
    images = torch.rand(4, 3, 128, 128)
    kept = []
    for technique in (of, name):
        with apply_techniques(network, everywhere(network, technique)):
            detector_loss(network, images)
            with alive(*network.parameters(), *network.buffers(), images) as count:
                loss = detector_loss(network, images)
                kept.append(count.bytes)
                del loss
    assert kept[1] < 0.42 * kept[0]  # a quarter of the maps; indices and small tensors as they are


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("int8", torch.float32),
        ("int8", torch.bfloat16),
        ("recompute+int8", torch.bfloat16),
        ("block+int8", torch.float32),
        ("block+recompute+fp8", torch.float32),
        ("offload", torch.float32),
    ],
)
def test_gradients_are_close(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = build("yolov12n", num_classes=2).train()
    images = torch.rand(2, 3, 96, 96)
    gradients = []
    for chosen in ("none", name):
        network.zero_grad()
        half = torch.autocast("cpu", dtype, dtype != torch.float32)
        with apply_techniques(network, everywhere(network, chosen)), half:
            loss = detector_loss(network, images)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    exact, rounded = gradients
    if name == "offload":
        assert torch.equal(exact, rounded)
        return
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact.double(), rounded.double(), 0) > 0.98


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.end = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(nn.functional.dropout(self.norm(self.stem(x)).sigmoid(), 0.5)).square().mean()


@pytest.mark.parametrize("name", ["int8", "recompute+int8", "block+int8"])
def test_noise_takes_nothing_from_the_model_and_is_reproducible(name: str) -> None:
    torch.manual_seed(0)
    network, images = Drops(), torch.rand(4, 3, 48, 48)

    def gradients(technique: str, steps: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        model = copy.deepcopy(network)
        torch.manual_seed(9)
        found = []
        with apply_techniques(model, {"": Technique.parse(technique)}):
            for _ in range(steps):
                model.zero_grad()
                loss = model(images)
                loss.backward()
                found.append(model.stem.weight.grad.clone())
        return found, loss.detach(), torch.get_rng_state()

    first, loss, state = gradients(name, 2)
    again, *_ = gradients(name, 2)
    _, plain_loss, plain_state = gradients("none", 2)
    assert torch.equal(loss, plain_loss)
    assert torch.equal(state, plain_state)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_noise_differs_from_step_to_step_and_with_the_seed() -> None:
    network, images = nn.Conv2d(3, 16, 3), torch.rand(4, 3, 96, 96)
    found = []
    with apply_techniques(network, {"": Technique.parse("int8")}):
        for seed in (0, 0, 1):
            network.zero_grad()
            torch.manual_seed(seed)
            network(images).square().mean().backward()
            found.append(network.weight.grad.clone())
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_weights_are_not_rounded() -> None:
    """Only the gradient of the weight sees a rounded map; that of the input sees the weight as it is."""
    network = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False), nn.Flatten(2), nn.Linear(196, 196)).requires_grad_(True)
    images = torch.rand(8, 64, 16, 16, requires_grad=True)
    slopes = []
    for name in ("none", "int8", "fp8"):
        for dtype in (torch.float32, torch.bfloat16):
            half = torch.autocast("cpu", dtype, dtype != torch.float32)
            with apply_techniques(network, {"": Technique.parse(name)}), half:
                loss = network(images).mean()
            slopes.append(torch.autograd.grad(loss, images)[0])
    assert torch.equal(slopes[0], slopes[2])
    assert torch.equal(slopes[0], slopes[4])
    assert torch.equal(slopes[1], slopes[3])
    assert torch.equal(slopes[1], slopes[5])


def test_offload_is_a_copy() -> None:
    x = example()
    held = InHostMemory(x)
    kept = x.clone()
    x.zero_()
    assert torch.equal(held.get(), kept)


@pytest.mark.parametrize("name", ["nested", "fp8", "recompute+int8", "block+recompute+int8", "block+offload"])
def test_fake_tensors_go_through(name: str) -> None:
    network = build("yolov12n", num_classes=2).train()
    images, state = torch.rand(1, 3, 64, 64), torch.get_rng_state()
    with faked(network), apply_techniques(network, everywhere(network, name)):
        detector_loss(network, fake_batch(images)).backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in network.parameters() if p.requires_grad)
    assert torch.equal(state, torch.get_rng_state())
