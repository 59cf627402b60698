"""BatchNorm folding: same outputs, the original untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ullage.nn.fold import fold_batchnorm
from ullage.nn.layers import C3k2, ConvUnit
from ullage.zoo.registry import build


def shake_statistics(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) * 0.3)
            norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)


@pytest.mark.parametrize(
    "module",
    [ConvUnit(8, 16, 3), ConvUnit(8, 8, 3, stride=2, groups=8, activate=False), C3k2(8, 16, 2, nested=True)],
    ids=["plain", "depthwise", "nested"],
)
def test_outputs_stay(module: nn.Module) -> None:
    shake_statistics(module)
    module.eval()
    x = torch.randn(2, 8, 12, 14, generator=torch.Generator().manual_seed(1))
    folded = fold_batchnorm(module)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), module(x), rtol=1e-5, atol=1e-5)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())


def test_a_whole_network_and_the_original_is_untouched() -> None:
    torch.manual_seed(0)
    network = build("yolov12n", num_classes=3).train()
    shake_statistics(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_batchnorm(network)
    assert network.training
    assert not folded.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.state_dict().keys() == before.keys()
    assert all(parameter.requires_grad for name, parameter in network.named_parameters() if "dfl" not in name)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        wanted, got = network.eval()(x), folded(x)
    scale = max(float(wanted.bins_BAR.abs().max()), float(wanted.logits_BAK.abs().max()))
    torch.testing.assert_close(got.bins_BAR, wanted.bins_BAR, rtol=0, atol=1e-5 * max(scale, 1))
    torch.testing.assert_close(got.logits_BAK, wanted.logits_BAK, rtol=0, atol=1e-5 * max(scale, 1))


def test_batchnorm_without_statistics_stays() -> None:
    unit = ConvUnit(3, 4)
    unit.bn = nn.BatchNorm2d(4, track_running_stats=False)
    assert isinstance(fold_batchnorm(unit).bn, nn.BatchNorm2d)


def test_convolution_with_bias() -> None:
    unit = ConvUnit(3, 4)
    unit.conv = nn.Conv2d(3, 4, 1, bias=True)
    shake_statistics(unit)
    unit.eval()
    x = torch.randn(1, 3, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(fold_batchnorm(unit)(x), unit(x), rtol=1e-5, atol=1e-5)
