"""The engine beside the rest of PyTorch: scaling, several processes, compilers, transforms, attention."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ullage.memory import Technique, apply_techniques, block_names
from ullage.memory.apply import _Wrapped

TECHNIQUES = ("recompute", "block", "nested")
each_technique = pytest.mark.parametrize("name", TECHNIQUES)
Check = Callable[..., None]


class Unit(nn.Sequential):
    def __init__(self, into: int, out: int) -> None:
        super().__init__(nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.SiLU(inplace=True))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = Unit(3, 8), nn.Sequential(Unit(8, 8), nn.Dropout(0.2)), Unit(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.two(torch.cat([self.one(x), x], 1)).mean((2, 3))


def everywhere(network: nn.Module, name: str) -> dict[str, Technique]:
    return {block: Technique.parse(name) for block in block_names(network)}


def loss_of(network: nn.Module) -> torch.Tensor:
    return network(torch.rand(2, 3, 32, 32)).square().mean()


def gradients(network: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


@each_technique
def test_gradient_scaling(name: str) -> None:
    network = Net()
    twin = copy.deepcopy(network)
    found = []
    for one, technique in ((network, "none"), (twin, name)):
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
        optimizer = torch.optim.SGD(one.parameters(), 0.1, momentum=0.9)
        with apply_techniques(one, everywhere(one, technique)):
            for _ in range(3):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.float16):
                    loss = loss_of(one)
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
        found.append((scaler.get_scale(), one.state_dict()))
    assert found[0][0] == found[1][0] == 2.0**11
    assert equal(found[0][1], found[1][1])


@each_technique
def test_channels_last(name: str, assert_trains_alike: Check) -> None:
    network: nn.Module = Net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert_trains_alike(network, name, loss_of)


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, 4)
        self.attention = nn.MultiheadAttention(32, 4, dropout=0.1, batch_first=True)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=first, activation=act)
            for first, act in ((True, "gelu"), (False, "relu"))
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=True)[0]
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


@each_technique
@pytest.mark.parametrize("half", [False, True])
def test_attention(name: str, half: bool, assert_trains_alike: Check) -> None:
    def loss(network: nn.Module) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, half):
            return loss_of(network).float()

    assert_trains_alike(Attends(), name, loss)


@each_technique
def test_recurrent_layers(name: str, assert_trains_alike: Check) -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.GRU(16, 16))
    assert_trains_alike(network, name, lambda n: n(torch.rand(40, 4, 8))[0].square().mean())


@each_technique
def test_complex_and_sparse_tensors(name: str, assert_trains_alike: Check) -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.weight = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.rand(8, 32, 17))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = torch.fft.rfft2(self.conv(x)) * self.weight
            y = z.conj() * torch.exp(z * 0.01)
            rows = torch.eye(32).to_sparse() @ y.imag.reshape(-1, 32).t()
            return rows.square().mean() + (y.conj().imag * y.imag * y.real).mean()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spectral, self.other = Spectral(), nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(self.spectral(x).view(1))

    assert_trains_alike(Outer(), name, loss_of)


@each_technique
def test_transforms_are_left_alone(name: str) -> None:
    network = Net().eval()
    parameters = {k: v.detach() for k, v in network.named_parameters()}
    images = torch.rand(2, 3, 16, 16)

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(network, weights, (images,)).square().mean()

    plain = torch.func.grad(loss)(parameters)
    with apply_techniques(network, everywhere(network, name)):
        assert equal(plain, torch.func.grad(loss)(parameters))
        per_image = torch.vmap(lambda image: network(image[None])[0])(images)
        with torch.inference_mode():
            assert torch.allclose(per_image, network(images), atol=1e-6)
        called = torch.func.functional_call(network, {k: v * 2 for k, v in parameters.items()}, (images,))
        with torch.no_grad():
            assert not torch.equal(called, network(images))


@pytest.mark.parametrize("name", ["recompute", "block"])
def test_compiled_networks_step_aside(name: str) -> None:
    torch._dynamo.reset()
    network = Net()
    network.one[1].p = 0.0
    found = []
    for technique in ("none", name):
        twin = copy.deepcopy(network)
        with apply_techniques(twin, everywhere(twin, technique)):
            compiled = torch.compile(twin, backend="aot_eager")
            torch.manual_seed(0)
            loss_of(compiled).backward()
        found.append((gradients(twin), twin.state_dict()))
    assert equal(found[0][0], found[1][0])
    assert equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["nested"])
def test_a_compiled_part(name: str) -> None:
    torch._dynamo.reset()
    network = Net()
    network.one[1].p = 0.0
    found = []
    for technique in ("none", name):
        twin = copy.deepcopy(network)
        chosen = everywhere(twin, technique)
        twin.one[0].compile(backend="aot_eager")
        with apply_techniques(twin, chosen):
            torch.manual_seed(0)
            loss_of(twin).backward()
        found.append((gradients(twin), twin.state_dict()))
    assert equal(found[0][0], found[1][0])
    assert equal(found[0][1], found[1][1])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def train_distributed(network: nn.Module, wrapped: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    for step in range(2):
        torch.manual_seed(10 * step + rank)
        wrapped.zero_grad()
        loss_of(wrapped).backward()
    found = {}
    for n, p in network.named_parameters():
        grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        found[n] = grad.clone()
    return found


def with_ddp(rank: int) -> dict[str, Any]:
    torch.manual_seed(0)
    network, found = Net(), {}
    for name in ("none", *TECHNIQUES):
        twin = copy.deepcopy(network)
        wrapped = nn.parallel.DistributedDataParallel(twin)
        with apply_techniques(twin, everywhere(twin, name)):
            found[name] = train_distributed(twin, wrapped, rank)
            found[f"{name} buffers"] = dict(twin.named_buffers())
    return found


def with_fsdp(rank: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    network, found = Net(), {}
    for name in ("none", *TECHNIQUES, "recompute inside"):
        twin = copy.deepcopy(network)
        if name == "recompute inside":
            fully_shard(twin.one[0], mesh=mesh)
        fully_shard(twin.one, mesh=mesh)
        fully_shard(twin.two, mesh=mesh)
        fully_shard(twin, mesh=mesh)
        with apply_techniques(twin, everywhere(twin, name.split()[0])):
            found[name] = train_distributed(twin, twin, rank)
            found[f"{name} buffers"] = dict(twin.named_buffers())
    return found


def run_both(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save({"ddp": with_ddp(rank), "fsdp": with_fsdp(rank)}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="PyTorch was built without gloo")
def test_two_processes(tmp_path: Path) -> None:
    mp.spawn(run_both, (free_port(), str(tmp_path)), nprocs=2)
    ranks: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for how in ("ddp", "fsdp"):
        assert equal(ranks[0][how]["none"], ranks[1][how]["none"])
        for rank in ranks:
            for name, found in rank[how].items():
                plain = "none buffers" if name.endswith("buffers") else "none"
                assert equal(rank[how][plain], found), (how, name)


def test_removing_takes_away_only_its_own() -> None:
    network = Net()
    applied = apply_techniques(network, everywhere(network, "block"))
    assert isinstance(network.__dict__["forward"], _Wrapped)
    network.two.forward = lambda x: x  # type: ignore[method-assign]
    applied.remove()
    assert "forward" in network.two.__dict__
    assert "forward" not in network.__dict__
