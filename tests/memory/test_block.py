"""Technique ``block``: bit for bit the same training, in less memory, on any module."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from ullage.errors import ConfigError
from ullage.memory import recompute_blocks
from ullage.zoo.registry import build


def detector_loss(raw: object) -> torch.Tensor:
    return raw.bins_BAR.square().mean() + raw.logits_BAK.square().mean()  # type: ignore[attr-defined]


def plain_loss(output: torch.Tensor) -> torch.Tensor:
    return output.square().mean()


def dropout_network() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.SiLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.SiLU()),
    )


CASES = {
    "yolo11n": (lambda: build("yolo11n", num_classes=2), lambda m: m.blocks().values(), detector_loss),
    "yolov12n": (lambda: build("yolov12n", num_classes=2), lambda m: m.blocks().values(), detector_loss),
    "resnet18": (torchvision.models.resnet18, lambda m: [m.layer1, m.layer2, m.layer3, m.layer4], plain_loss),
    "dropout": (dropout_network, lambda m: m.children(), plain_loss),
}
Case = tuple[Callable[[], nn.Module], Callable[[nn.Module], object], Callable[[object], torch.Tensor]]


def kept_bytes(network: nn.Module, images: torch.Tensor, loss: Callable[[object], torch.Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in [*network.parameters(), *network.buffers(), images]}
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss(network(images))
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_three_steps_are_bit_identical(case: Case, dtype: torch.dtype | None) -> None:
    make, blocks, loss = case
    torch.manual_seed(0)
    plain = make().train()
    technique = copy.deepcopy(plain)
    keys = list(technique.state_dict())
    applied = recompute_blocks(blocks(technique))  # type: ignore[arg-type]
    for seed in range(3):
        for network in (plain, technique):
            torch.manual_seed(seed)
            images = torch.rand(2, 3, 64, 64)
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                value = loss(network(images))
            value.backward()
            with torch.no_grad():
                for p in network.parameters():
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=0.01)
                        p.grad = None
    assert list(technique.state_dict()) == keys
    for (key, one), other in zip(plain.state_dict().items(), technique.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    applied.remove()
    assert all("forward" not in module.__dict__ for module in technique.modules())


@pytest.mark.parametrize("name", ["yolo11n", "yolov12n"])
def test_it_keeps_less(name: str) -> None:
    network = build(name, num_classes=2).train()
    images = torch.rand(2, 3, 128, 128)
    before = kept_bytes(network, images, detector_loss)
    with recompute_blocks(network.blocks().values()):
        during = kept_bytes(network, images, detector_loss)
    assert during < 0.3 * before
    assert kept_bytes(network, images, detector_loss) == before


def test_frozen_blocks_keep_nothing() -> None:
    network = build("yolo11n", num_classes=2)
    for block in list(network.blocks().values())[:5]:
        block.requires_grad_(False).eval()
    images = torch.rand(1, 3, 64, 64)
    with recompute_blocks(network.blocks().values()):
        detector_loss(network(images)).backward()
    assert network.stem.conv.weight.grad is None
    assert network.down4.conv.weight.grad is not None


def test_evaluation_is_untouched() -> None:
    network = build("yolo11n", num_classes=2).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before = network(images)
        with recompute_blocks(network.blocks().values()):
            during = network(images)
    assert torch.equal(before.logits_BAK, during.logits_BAK)


def test_blocks_inside_blocks_and_twice_are_refused() -> None:
    network = build("yolo11n", num_classes=2)
    with pytest.raises(ConfigError, match="inside another"):
        recompute_blocks([network.stage2, network.stage2.cv1])
    with recompute_blocks([network.stage2]), pytest.raises(ConfigError, match="already"):
        recompute_blocks([network.stage2])
