"""Predicted before, measured after, on networks whose bytes can be worked out by hand and on strangers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from ullage import memory
from ullage.errors import ConfigError, MemoryBudgetError
from ullage.memory import Plan, Technique
from ullage.memory.costs import parts_of
from ullage.zoo.registry import build

MAP = 4 * 8 * 32 * 32 * 4  # bytes of a float32 map of 4 images, 8 channels, 32 x 32


class Chain(nn.Module):
    """Convolution, BatchNorm, SiLU, a few times."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU()) for _ in range(units)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for unit in self.units:
            x = unit(x)
        return x


class Tokens(nn.Module):
    """A small transformer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(x)


def mean_square(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


def detector_step(model: nn.Module, batch: Any) -> torch.Tensor:
    raw = model(batch)
    return raw.bins_BAR.float().square().mean() + raw.logits_BAK.float().square().mean()


STRANGERS = {
    "chain": (lambda: Chain(6), mean_square, (4, 8, 32, 32)),
    "resnet50": (torchvision.models.resnet50, mean_square, (2, 3, 64, 64)),
    "mobilenet_v3": (torchvision.models.mobilenet_v3_large, mean_square, (2, 3, 64, 64)),
    "swin_t": (torchvision.models.swin_t, mean_square, (1, 3, 64, 64)),
    "transformer": (Tokens, mean_square, (4, 50, 32)),
    "yolov12n": (lambda: build("yolov12n", num_classes=3), detector_step, (4, 3, 128, 128)),
}


def test_a_chain_keeps_three_maps_a_unit_and_one_with_recompute() -> None:
    model, images = Chain(5), torch.empty(4, 8, 32, 32)
    plain, cheap, block = (
        memory.estimate(mean_square, model, images, technique=name).by_category["activations"]
        for name in ("none", "recompute", "block")
    )
    statistics = 5 * 2 * 8 * 4
    # plain: convolution's, BatchNorm's and SiLU's output of every unit, and the last one's square is the loss's
    assert abs(plain - 3 * 5 * MAP - statistics) < 1024
    assert cheap <= 6 * MAP + MAP + statistics + 1024
    assert block < plain


@pytest.mark.parametrize("technique", ["none", "recompute", "block", "nested"])
@pytest.mark.parametrize("name", STRANGERS)
def test_prediction_and_measurement_agree(name: str, technique: str) -> None:
    make, step, shape = STRANGERS[name]
    model, batch = make().train(), torch.rand(shape)
    predicted = memory.estimate(step, model, batch, technique=technique, optimizer="AdamW")
    measured = memory.measure(step, model, batch, technique=technique, optimizer="AdamW", once=True)
    assert -0.01 <= predicted.peak_bytes / measured.peak_bytes - 1 <= 0.03


def test_bf16_is_predicted_too() -> None:
    model, batch = build("yolo11n", num_classes=3).train(), torch.rand(2, 3, 128, 128)
    predicted = memory.estimate(detector_step, model, batch, precision="bf16")
    measured = memory.measure(detector_step, model, batch, precision="bf16", once=True)
    assert -0.01 <= predicted.peak_bytes / measured.peak_bytes - 1 <= 0.03
    assert (
        predicted.by_category["activations"]
        < 0.7 * memory.estimate(detector_step, model, batch).by_category["activations"]
    )


def test_estimating_leaves_the_model_alone() -> None:
    model = Chain(2).train()
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    memory.estimate(mean_square, model, torch.empty(2, 8, 16, 16), technique="nested", optimizer="SGD")
    memory.measure(mean_square, model, torch.rand(2, 8, 16, 16), technique="nested", optimizer="SGD")
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0]
        assert torch.equal(tensor, before[name][1])
    assert all("forward" not in m.__dict__ for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_parameters_on_meta_are_enough() -> None:
    with torch.device("meta"):
        model = Chain(3)
    there = memory.estimate(mean_square, Chain(3), torch.empty(4, 8, 32, 32), optimizer="SGD", average=True)
    assert memory.estimate(
        mean_square, model, torch.empty(4, 8, 32, 32, device="meta"), optimizer="SGD", average=True
    ) == there  # fmt: skip


def test_frozen_layers_keep_nothing() -> None:
    model, images = Chain(6), torch.empty(4, 8, 32, 32)
    whole = memory.estimate(mean_square, model, images).by_category["activations"]
    model.units[:4].requires_grad_(False)
    assert memory.estimate(mean_square, model, images).by_category["activations"] < 0.5 * whole


def test_optimizers_count_their_state() -> None:
    model, images = Chain(2), torch.empty(1, 8, 8, 8)
    size = sum(p.numel() for p in model.parameters()) * 4
    for name, copies in (("SGD", 1), ("AdamW", 2)):
        assert memory.estimate(mean_square, model, images, optimizer=name).by_category["optimizer"] >= copies * size
    real = torch.optim.SGD(model.parameters(), lr=0.1)  # no momentum, no state
    assert memory.estimate(mean_square, model, images, optimizer=real).by_category.get("optimizer", 0) < size
    with pytest.raises(ConfigError, match="'Sdg' is not a class"):
        memory.estimate(mean_square, model, images, optimizer="Sdg")


def test_a_step_that_needs_values_says_so() -> None:
    def picky(model: nn.Module, batch: Any) -> torch.Tensor:
        out = model(batch)
        return out[out > 0].sum()

    with pytest.raises(ConfigError, match="cannot be traced without data"):
        memory.estimate(picky, Chain(1), torch.empty(1, 8, 8, 8))


@pytest.mark.parametrize("name", ["chain", "yolov12n", "transformer"])
def test_plans_hold_their_budget_and_use_it(name: str) -> None:
    make, step, shape = STRANGERS[name]
    model, batch = make().train(), torch.rand(8, *shape[1:])
    plain = memory.plan(step, model, batch, optimizer="SGD")
    assert (plain.technique, plain.accumulate, plain.slowdown, plain.fidelity) == ("none", 1, 1.0, "bitwise")
    slowdowns: list[tuple[int, float]] = []
    fixed = sum(plain.predicted.by_category.get(name, 0) for name in ("weights", "optimizer"))
    fixed += sum(p.numel() for p in model.parameters()) * 4  # the gradients
    for share in (1.1, 0.8, 0.6, 0.45):
        budget = fixed + int((plain.predicted.peak_bytes - fixed) * share)
        plan = memory.plan(step, model, batch, budget=budget, optimizer="SGD")
        measured = memory.measure(step, model, batch[: plan.micro_batch].clone(), plan=plan, optimizer="SGD", once=True)
        assert measured.peak_bytes <= budget
        assert plan.predicted.peak_bytes <= budget
        slowdowns.append((plan.accumulate, plan.slowdown))
    assert slowdowns[0] == (1, 1.0)
    assert slowdowns == sorted(slowdowns)


def test_batchnorm_is_recomputed_before_it_is_split() -> None:
    model, batch = Chain(6), torch.rand(8, 8, 32, 32)
    plain = memory.plan(mean_square, model, batch).predicted.peak_bytes
    half = memory.plan(mean_square, model, batch, budget=int(0.6 * plain))
    assert (half.accumulate, half.fidelity) == (1, "bitwise")
    little = memory.plan(mean_square, model, batch, budget=int(0.2 * plain))
    assert (little.accumulate > 1, little.fidelity) == (True, "approximate")
    assert "BatchNorm sees" in little.fidelity_note


def test_a_budget_that_nothing_fits_says_what_would() -> None:
    with pytest.raises(MemoryBudgetError, match=r"nothing fits 50.0 kB on cpu: .* needs .*smaller model"):
        memory.plan(mean_square, Chain(4), torch.rand(2, 8, 32, 32), budget="50kB")


def test_a_plan_is_plain_data() -> None:
    plan = memory.plan(mean_square, Chain(6), torch.rand(8, 8, 32, 32), budget="2.2MB", optimizer="SGD")
    again = Plan.from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    assert dict(again.blocks) == dict(plan.blocks)
    assert str(plan).splitlines()[-1].startswith("needs")
    for wrong in ("", "[]", "{}", '{"schema": 99}', plan.to_json().replace("micro_batch", "mikro")):
        with pytest.raises(ConfigError):
            Plan.from_json(wrong)


def test_a_plan_in_force_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    make, step, shape = STRANGERS["yolov12n"]
    model, batch = make().train(), torch.rand(shape)
    budget = int(0.7 * memory.estimate(step, model, batch).peak_bytes)
    plan = memory.plan(step, model, batch, budget=budget, technique="auto")
    step(model, batch).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    with memory.apply(model, plan) as applied:
        assert applied is not None
        step(model, batch).backward()
    assert plan.blocks
    again = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


def test_blocks_are_divided_where_it_helps() -> None:
    model = build("yolov12s", num_classes=80)
    assert parts_of(model, "stem") == []
    assert parts_of(model, "stage4") == [
        "stage4.cv1", "stage4.cv2", "stage4.m.0.0", "stage4.m.0.1", "stage4.m.1.0", "stage4.m.1.1"
    ]  # fmt: skip
    assert "head.cv3.0" in parts_of(model, "head")


@pytest.mark.parametrize(("name", "text"), [("recompute+int8", "recompute+int8"), ("nested", "block+recompute")])
def test_technique_names(name: str, text: str) -> None:
    assert str(Technique.parse(name)) == text
    assert Technique.parse(str(Technique.parse(name))) == Technique.parse(name)


@pytest.mark.parametrize("name", ["recompte", "int8+fp8", "none+block", "", "block+"])
def test_wrong_technique_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="technique="):
        Technique.parse(name)
