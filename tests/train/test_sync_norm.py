"""BatchNorm over all processes: outputs, gradients and statistics are those of the whole batch in one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from ranks_kit import run_ranks
from torch import nn

from ullage.memory import Technique, apply_techniques
from ullage.train.ranks import Ranks
from ullage.train.sync_norm import SyncedBatchNorm2d, synchronise_norms

CUTS = {2: [0, 3, 5], 3: [0, 2, 4, 5]}


def make_network() -> nn.Sequential:
    torch.manual_seed(3)
    blocks = [nn.Sequential(nn.Conv2d(c, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.SiLU()) for c in (3, 6)]
    return nn.Sequential(*blocks).to(memory_format=torch.channels_last)


def images() -> torch.Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(4)).to(memory_format=torch.channels_last)


def weigh(out: torch.Tensor, start: int) -> torch.Tensor:
    weights = torch.randn(5, *out.shape[1:], generator=torch.Generator().manual_seed(5))
    return (out * weights[start : start + len(out)]).sum()


def in_part(ranks: Ranks, technique: str) -> dict[str, Any]:
    """Forward, backward and gradient sums of one process's images."""
    network = make_network()
    synchronise_norms(network, ranks.size)
    start, stop = CUTS[ranks.size][ranks.rank : ranks.rank + 2]
    x = images()[start:stop].requires_grad_()
    names = {name: Technique.parse(technique) for name in ("0", "1")} if technique != "none" else {}
    with apply_techniques(network, names):
        out = network(x)
        weigh(out, start).backward()
    gradients = [p.grad for p in network.parameters()]
    ranks.add(g for g in gradients if g is not None)
    return {"out": out.detach(), "dx": x.grad, "gradients": gradients, "state": dict(network.state_dict())}


@pytest.mark.parametrize(("size", "technique"), [(2, "none"), (3, "none"), (2, "recompute"), (2, "block+recompute")])
def test_parts_make_the_whole(size: int, technique: str) -> None:
    network, x = make_network(), images().requires_grad_()
    out = network(x)
    weigh(out, 0).backward()
    parts = run_ranks(in_part, size, technique)
    torch.testing.assert_close(torch.cat([part["out"] for part in parts]), out.detach())
    torch.testing.assert_close(torch.cat([part["dx"] for part in parts]), x.grad)
    for part in parts:
        for mine, whole in zip(part["gradients"], network.parameters(), strict=True):
            torch.testing.assert_close(mine, whole.grad, rtol=1e-4, atol=5e-5)
        for key, value in network.state_dict().items():
            torch.testing.assert_close(part["state"][key], value, msg=key)


def one_is_empty(ranks: Ranks) -> torch.Tensor:
    network = make_network()
    circle = synchronise_norms(network, ranks.size)
    circle.begin(1)
    if ranks.rank == 0:
        network(images()[:2])
    return network[0][1].running_mean


def test_a_process_without_images_stays_out() -> None:
    network = make_network()
    network(images()[:2])
    first, second = run_ranks(one_is_empty, 2)
    torch.testing.assert_close(first, network[0][1].running_mean)
    assert torch.equal(second, torch.zeros(6))


def test_evaluation_copies_and_names_are_those_of_batch_norm() -> None:
    network = make_network()
    plain = copy.deepcopy(network).eval()
    network[0][1].__class__ = SyncedBatchNorm2d
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(copy.deepcopy(network).eval()(images()), plain(images()))
