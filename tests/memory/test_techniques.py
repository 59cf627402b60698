"""Every exact technique: bit for bit the same training, in less memory, on any module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from ullage.errors import ConfigError
from ullage.memory import Technique, apply_techniques, block_names
from ullage.zoo.registry import build


def detector_loss(raw: object) -> torch.Tensor:
    return raw.bins_BAR.square().mean() + raw.logits_BAK.square().mean()  # type: ignore[attr-defined]


def plain_loss(output: torch.Tensor) -> torch.Tensor:
    return output.square().mean()


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.2)


CASES = {
    "yolo11n": (lambda: build("yolo11n", num_classes=2), detector_loss),
    "yolov12n": (lambda: build("yolov12n", num_classes=2), detector_loss),
    "yolov12n channels-last": (lambda: channels_last(build("yolov12n", num_classes=2)), detector_loss),
    "resnet18": (torchvision.models.resnet18, plain_loss),
    "mobilenet_v3": (torchvision.models.mobilenet_v3_small, plain_loss),
    "swin": (swin, plain_loss),
}
HALF = ("yolov12n", "mobilenet_v3", "swin")
TECHNIQUES = ("recompute", "block", "nested")
Case = tuple[Callable[[], nn.Module], Callable[[object], torch.Tensor]]


def channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def everywhere(network: nn.Module, name: str) -> dict[str, Technique]:
    return {block: Technique.parse(name) for block in block_names(network)}


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("case", [*CASES, *(f"{name} bf16" for name in HALF)])
def test_training_is_bit_identical(case: str, name: str, assert_trains_alike: Callable[..., None]) -> None:
    half = case.endswith(" bf16")
    make, loss = CASES[case.removesuffix(" bf16")]
    torch.manual_seed(0)

    def forward(network: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, half):
            return loss(network(torch.rand(2, 3, 64, 64)))

    assert_trains_alike(make().train(), name, forward, steps=1 if half else 2)


@pytest.mark.parametrize("model", ["yolo11n", "yolov12n"])
def test_it_keeps_less(model: str, alive: Callable[..., Any]) -> None:
    network = channels_last(build(model, num_classes=2)).train()
    images = torch.rand(2, 3, 128, 128)
    kept: list[int] = []
    for name in ("none", "none", *TECHNIQUES, "none"):  # the first fills caches
        with (
            apply_techniques(network, everywhere(network, name)),
            alive(*network.parameters(), *network.buffers(), images) as count,
        ):
            value = detector_loss(network(images))
            kept.append(count.bytes)
            del value
    _, plain, recompute, block, nested, after = kept
    assert recompute < 0.4 * plain
    assert block < 0.3 * plain
    assert nested < 0.3 * plain
    assert after == plain


@pytest.mark.parametrize("name", TECHNIQUES)
def test_frozen_blocks_keep_nothing(name: str) -> None:
    network = build("yolo11n", num_classes=2)
    for block in list(network.blocks().values())[:5]:
        block.requires_grad_(False).eval()
    images = torch.rand(1, 3, 64, 64)
    with apply_techniques(network, everywhere(network, name)):
        detector_loss(network(images)).backward()
    assert network.stem.conv.weight.grad is None
    assert network.down4.conv.weight.grad is not None


@pytest.mark.parametrize("name", TECHNIQUES)
def test_evaluation_is_untouched(name: str) -> None:
    network = build("yolo11n", num_classes=2).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = network(images)
        with apply_techniques(network, everywhere(network, name)):
            during = network(images)
    assert torch.equal(before.logits_BAK, during.logits_BAK)


def test_unknown_parts_and_a_second_technique_are_refused() -> None:
    network = build("yolo11n", num_classes=2)
    with pytest.raises(ConfigError, match="no part named 'stage9'"):
        apply_techniques(network, {"stage9": Technique(block=True)})
    with (
        apply_techniques(network, {"stage2": Technique(block=True)}),
        pytest.raises(ConfigError, match="already"),
    ):
        apply_techniques(network, {"stage2": Technique(block=True)})
