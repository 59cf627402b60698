"""What makes CPUs quicker changes no result: fused convolutions, memory that is kept."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import nn

from ullage.nn.fold import fold_batchnorm
from ullage.nn.layers import ConvUnit
from ullage.nn.outputs import decode_boxes, decode_scores
from ullage.runtime import cpu_units, host_allocator
from ullage.runtime.cpu_units import FusedConvolution, fuse_units
from ullage.runtime.predictor import TorchPredictor
from ullage.zoo.registry import build

NAMES = [str(number) for number in range(80)]


def lively(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = build(name).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.rand(2, 3, 128, 128))
    return network.eval()


@pytest.mark.parametrize("name", ["yolo11n", "yolov12n"])
def test_fused_networks_compute_the_same(name: str) -> None:
    network = lively(name)
    images = torch.randint(0, 256, (2, 128, 160, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    predictor = TorchPredictor(network, names=NAMES)
    assert sum(isinstance(module, FusedConvolution) for module in predictor._network.modules()) > 50
    assert not any(isinstance(module, FusedConvolution) for module in network.modules()), "a copy was fused"
    fused = predictor(images)
    with torch.no_grad():
        plain = fold_batchnorm(network)(images.float() / 255)
        exact = network.double()(images.double() / 255)
    for decode in (decode_scores, decode_boxes):
        own = (decode(plain) - decode(exact)).abs().max()
        assert (decode(fused) - decode(exact)).abs().max() < 3 * own, "no further from the truth than PyTorch itself"


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "activate"), [(3, 2, 1, True), (1, 1, 1, False), (5, 1, 8, True)]
)
def test_a_unit(kernel: int, stride: int, groups: int, activate: bool) -> None:
    torch.manual_seed(0)
    unit = fold_batchnorm(nn.Sequential(ConvUnit(8, 16, kernel, stride, groups=groups, activate=activate)))
    images = torch.randn(2, 8, 13, 17)
    expected = unit(images)
    fuse_units(unit)
    assert isinstance(unit[0], FusedConvolution)  # type: ignore[index]
    torch.testing.assert_close(unit(images), expected, atol=1e-5, rtol=1e-5)


def test_what_is_not_folded_or_follows_another_rule_stays() -> None:
    relu = ConvUnit(4, 4)
    relu.act = nn.ReLU()
    network = nn.Sequential(ConvUnit(3, 4), fold_batchnorm(relu), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    before = [type(module) for module in network.modules()]
    fuse_units(network)
    assert [type(module) for module in network.modules()] == before


def test_builds_without_the_operator_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_units, "_operator", lambda: None)
    predictor = TorchPredictor(lively("yolo11n"), names=NAMES)
    assert not any(isinstance(module, FusedConvolution) for module in predictor._network.modules())
    assert predictor(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).logits_BAK.shape[-1] == 80


def test_memory_is_kept_as_long_as_a_predictor_lives() -> None:
    gc.collect()
    before = host_allocator._holders
    network = build("yolo11n")
    first, second = (TorchPredictor(network, names=NAMES) for _ in range(2))
    assert host_allocator._holders == before + 2
    del first
    gc.collect()
    assert host_allocator._holders == before + 1
    with host_allocator.reusing_host_memory(torch.device("cpu")):
        del second
        gc.collect()
        assert host_allocator._holders == before + 1
    assert host_allocator._holders == before


def test_trimming_gives_memory_back() -> None:
    if host_allocator._glibc() is None:
        pytest.skip("needs glibc")
    pages = Path("/proc/self/statm")
    with host_allocator.reusing_host_memory(torch.device("cpu")):
        blocks = [torch.ones(250_000) for _ in range(200)]  # 1 MB each
        del blocks[::2]  # gaps
        full = int(pages.read_text().split()[1])
        host_allocator.trim_host_memory()
        assert (full - int(pages.read_text().split()[1])) * 4096 > 60e6
        assert len(blocks) == 100
