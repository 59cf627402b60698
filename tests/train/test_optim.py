"""Groups, freezing, rescaling, averaging."""

from __future__ import annotations

import math

import pytest
import torch
from train_kit import TinyDetector

from ullage.errors import ConfigError
from ullage.train.optim import (
    CLIP_NORM,
    MovingAverage,
    freeze_blocks,
    make_optimiser,
    rescale_and_clip,
    set_rates,
    set_training_mode,
)
from ullage.train.schedule import OptimChoice
from ullage.zoo.registry import build


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_only_weights_decay_and_every_parameter_is_in_one_group(kind: str) -> None:
    network = build("yolov12l", num_classes=2)  # with gamma
    optimiser = make_optimiser(network, OptimChoice(kind, 0.01, 0.9), 5e-4)  # type: ignore[arg-type]
    grouped = [id(p) for group in optimiser.param_groups for p in group["params"]]
    trainable = [id(p) for p in network.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    decays = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in optimiser.param_groups}
    assert decays == {0.0: {1}, 5e-4: {4}}
    biases = {id(p) for key, p in network.named_parameters() if key.endswith("bias") and p.requires_grad}
    assert {id(p) for p in optimiser.param_groups[0]["params"]} == biases


def test_rates_reach_the_groups() -> None:
    for kind, key, expected in (("SGD", "momentum", 0.85), ("AdamW", "betas", (0.85, 0.999))):
        optimiser = make_optimiser(TinyDetector(), OptimChoice(kind, 0.01, 0.9), 0.0)  # type: ignore[arg-type]
        set_rates(optimiser, 0.003, 0.07, 0.85)
        assert [group["lr"] for group in optimiser.param_groups] == [0.07, 0.003, 0.003]
        assert optimiser.param_groups[2][key] == expected


def test_frozen_blocks_neither_learn_nor_count() -> None:
    network = build("yolo11n", num_classes=2)
    frozen = freeze_blocks(network, 3)
    assert frozen == [network.stem, network.down2, network.stage2]
    set_training_mode(network, frozen)
    before = network.stem.bn.running_mean.clone()
    raw = network(torch.rand(2, 3, 64, 64))
    raw.logits_BAK.sum().backward()
    assert torch.equal(network.stem.bn.running_mean, before)
    assert all(p.grad is None for block in frozen for p in block.parameters())
    assert network.down3.conv.weight.grad is not None
    assert len(freeze_blocks(build("yolo11n"), [0, 2, 11])) == 2  # 11 is an upsampling, without parameters
    assert freeze_blocks(network, None) == []


@pytest.mark.parametrize("freeze", [24, -1, [30], [-2]])
def test_freezing_what_is_not_there_is_refused(freeze: int | list[int]) -> None:
    with pytest.raises(ConfigError, match="numbered 0 to 23"):
        freeze_blocks(build("yolo11n"), freeze)


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_rescaling_and_clipping_in_one_pass_equals_doing_them_apart(size: float) -> None:
    torch.manual_seed(0)
    network = TinyDetector()
    optimiser = make_optimiser(network, OptimChoice("SGD", 0.1, 0.9), 0.0)
    trainable = [p for p in network.parameters() if p.requires_grad]
    for p in trainable:
        p.grad = torch.randn_like(p) * size
    expected = [p.grad.clone() * 0.25 for p in trainable]
    norm = rescale_and_clip(optimiser, torch.tensor(0.25))
    total = math.sqrt(sum(float(g.double().square().sum()) for g in expected))
    assert float(norm) == pytest.approx(total, rel=1e-5)
    factor = min(CLIP_NORM / total, 1.0)
    for p, g in zip(trainable, expected, strict=True):
        torch.testing.assert_close(p.grad, g * factor, rtol=1e-5, atol=1e-7)


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    network = TinyDetector()
    optimiser = make_optimiser(network, OptimChoice("SGD", 0.1, 0.9), 0.0)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    network.stem[0].conv.weight.grad[0, 0, 0, 0] = torch.nan
    assert not torch.isfinite(rescale_and_clip(optimiser, torch.tensor(1.0)))


def test_the_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    network = TinyDetector()
    average = MovingAverage(network)
    expected = network.stem[0].conv.weight.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            network.stem[0].conv.weight.add_(1.0)
        network.stem[0].bn.num_batches_tracked += 1
        average.update(network)
        decay = 0.9999 * (1 - math.exp(-step / 2000))
        expected = decay * expected + (1 - decay) * network.stem[0].conv.weight.detach()
    torch.testing.assert_close(average.network.stem[0].conv.weight, expected)
    assert int(average.network.stem[0].bn.num_batches_tracked) == 3
    assert not average.network.training
