"""Every exact technique: bit for bit the same training, in less memory, on any module."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ullage.errors import ConfigError
from ullage.memory import Technique, apply_techniques, block_names
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
    "yolo11n": (lambda: build("yolo11n", num_classes=2), detector_loss),
    "yolov12n": (lambda: build("yolov12n", num_classes=2), detector_loss),
    "yolov12n channels-last": (lambda: channels_last(build("yolov12n", num_classes=2)), detector_loss),
    "resnet18": (torchvision.models.resnet18, plain_loss),
    "mobilenet_v3": (torchvision.models.mobilenet_v3_small, plain_loss),
    "swin_t": (torchvision.models.swin_t, plain_loss),
    "dropout": (dropout_network, plain_loss),
}
TECHNIQUES = ("recompute", "block", "nested")
Case = tuple[Callable[[], nn.Module], Callable[[object], torch.Tensor]]


def channels_last(network: nn.Module) -> nn.Module:
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def everywhere(network: nn.Module, name: str) -> dict[str, Technique]:
    return {block: Technique.parse(name) for block in block_names(network)}


def kept_bytes(network: nn.Module, images: torch.Tensor, loss: Callable[[object], torch.Tensor]) -> int:
    """Bytes that are alive between forward and backward beyond those that were before."""
    alive: dict[int, int] = {}
    before = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers(), images)}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_iter(out):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in {*alive, *before}:
                    storage = tensor.untyped_storage()
                    alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, alive.pop, storage._cdata)
            return out

    with Count():
        value = loss(network(images))
    kept = sum(alive.values())
    del value
    return kept


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_three_steps_are_bit_identical(case: Case, name: str, dtype: torch.dtype | None) -> None:
    make, loss = case
    torch.manual_seed(0)
    plain = make().train()
    technique = copy.deepcopy(plain)
    keys = list(technique.state_dict())
    applied = apply_techniques(technique, everywhere(technique, name))
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


@pytest.mark.parametrize(("name", "part"), [("recompute", 0.4), ("block", 0.3), ("nested", 0.3)])
@pytest.mark.parametrize("model", ["yolo11n", "yolov12n"])
def test_it_keeps_less(model: str, name: str, part: float) -> None:
    network = channels_last(build(model, num_classes=2)).train()
    images = torch.rand(2, 3, 128, 128)
    before = kept_bytes(network, images, detector_loss)
    with apply_techniques(network, everywhere(network, name)):
        during = kept_bytes(network, images, detector_loss)
    assert during < part * before
    assert kept_bytes(network, images, detector_loss) == before


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
