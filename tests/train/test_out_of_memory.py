"""Memory runs out at chosen steps and places: the run goes on, bit for bit where it would have gone, or stops whole."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from train_kit import NoisyDetector, assert_same, make_images, make_trainer, plain_plan, split, weights

from ullage.errors import MemoryBudgetError
from ullage.memory import Technique, block_names
from ullage.train.accumulate import Accumulator
from ullage.train.events import EpochDone, OutOfMemory, StepDone
from ullage.train.frugal import PlannedMemory
from ullage.train.loop import Trainer
from ullage.train.precision import Precision
from ullage.train.progress import ConsoleProgress
from ullage.train.ranks import Ranks
from ullage.train.records import record_listeners
from ullage.train.relief import Relief, is_out_of_memory, reason_of
from ullage.zoo.checkpoint_file import read_checkpoint

EVERY = range(10**6)
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 5.80 GiB"


def run_out() -> None:
    raise torch.OutOfMemoryError(CUDA)


def ask_too_much() -> None:
    torch.empty(2**59, dtype=torch.uint8)  # the CPU's allocator says no in its own words


class _Fails(torch.autograd.Function):
    """Runs out of memory in backward, as a kernel does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fail: Callable[[], None]) -> torch.Tensor:
        ctx.fail = fail
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.fail()
        return grad, None


def sabotage(
    network: nn.Module, place: str, passes: Iterable[int], fail: Callable[[], None] = run_out
) -> Callable[[], int]:
    """Let the passes of these numbers, redone ones counted too, fail in the middle; return a counter of passes."""
    count = 0

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal count
        if not module.training:
            return None
        count += 1
        if count - 1 not in passes:
            return None
        if place == "forward":
            fail()
        elif place == "tensor hook":
            output.register_hook(lambda grad: fail())
        return _Fails.apply(output, fail) if place == "backward" else None

    network.get_submodule("down4").register_forward_hook(hook)
    return lambda: count


def fresh(folder: Path, **changes: Any) -> Trainer:
    """Three epochs of four batches of four images, in eight steps, planned without a budget."""
    torch.manual_seed(0)
    batches = split(make_images(16), [4] * 4)
    settings = {"epochs": 3, "warmup_epochs": 1.0, "network": NoisyDetector(), "plan": plain_plan(4), **changes}
    return make_trainer(folder, batches, **settings)


class Curve(list[Any]):
    """Hears of losses, and of memory that ran out."""

    def losses(self) -> list[Any]:
        return [dict(e.losses) for e in self if isinstance(e, StepDone | EpochDone)]

    def retreats(self) -> list[OutOfMemory]:
        return [e for e in self if isinstance(e, OutOfMemory)]

    def __call__(self, event: Any) -> None:
        self.append(event)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Curve, torch.Tensor]:
    curve = Curve()
    trainer = fresh(tmp_path_factory.mktemp("undisturbed"), listeners=[curve])
    trainer.fit()
    return trainer, curve, torch.get_rng_state()


def assert_as(undisturbed: tuple[Trainer, Curve, torch.Tensor], trainer: Trainer, curve: Curve | None = None) -> None:
    """Weights, statistics, average, moments, random numbers and losses, bit for bit."""
    expected, losses, random = undisturbed
    assert_same(weights(expected.state.network), weights(trainer.state.network))
    assert_same(weights(expected.state.average.network), weights(trainer.state.average.network))
    moments = [run.state.optimiser.state_dict()["state"] for run in (expected, trainer)]
    assert moments[0].keys() == moments[1].keys()
    for number, entry in moments[0].items():
        assert torch.equal(entry["momentum_buffer"], moments[1][number]["momentum_buffer"])
    assert torch.equal(torch.get_rng_state(), random)
    if curve is not None:
        assert curve.losses() == losses.losses()


# The warm-up takes a step after each of passes 0 to 3; later a step sums two, and a failed pass throws both back.
@pytest.mark.parametrize("place", ["forward", "backward", "tensor hook"])
@pytest.mark.parametrize("passes", [{0}, {1}, {7}, {1, 2}, {2, 8}], ids=str)
def test_the_run_goes_on_bit_for_bit(
    place: str, passes: set[int], undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path
) -> None:
    curve = Curve()
    trainer = fresh(tmp_path, listeners=[curve])
    passed = sabotage(trainer.state.network, place, passes)
    trainer.fit()
    assert passed() > 12, "nothing was redone"
    assert_as(undisturbed, trainer, curve)
    plans = [event.plan for event in curve.retreats()]
    assert [plan.split()[1] for plan in plans] == ["recompute", "nested"][: len(passes)]
    assert all(event.where == "a training step" and "2.00 GiB" in event.reason for event in curve.retreats())


@pytest.mark.parametrize("place", ["forward", "backward"])
def test_the_allocator_of_the_cpu_is_understood(
    place: str, undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path
) -> None:
    curve = Curve()
    trainer = fresh(tmp_path, listeners=[curve])
    sabotage(trainer.state.network, place, {3}, ask_too_much)
    trainer.fit()
    assert_as(undisturbed, trainer, curve)
    assert "allocate memory" in curve.retreats()[0].reason


def test_other_errors_pass_through(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("a shape is wrong")

    curve = Curve()
    trainer = fresh(tmp_path, listeners=[curve])
    passed = sabotage(trainer.state.network, "backward", {2}, fail)
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        trainer.fit()
    assert passed() == 3
    assert curve.retreats() == []


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError(CUDA), True),
        (MemoryError(), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("expected 3 channels; out of range"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one
    assert reason_of(error)
    assert "\n" not in reason_of(error)


def test_everyone_hears_of_it(tmp_path: Path) -> None:
    text = io.StringIO()
    console = ConsoleProgress(Console(file=text, width=200))
    trainer = fresh(tmp_path, epochs=1, listeners=[*record_listeners(tmp_path, plots=False), console])
    sabotage(trainer.state.network, "forward", {0, 1})
    trainer.fit()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    noted = [line for line in lines if line["event"] == "OutOfMemory"]
    assert [line["plan"].split()[1] for line in noted] == ["recompute", "nested"]
    assert noted[0]["where"] == "a training step"
    shown = [line for line in text.getvalue().splitlines() if line.startswith("out of memory")]
    assert len(shown) == 2
    assert "nothing is lost" in shown[0]
    assert "technique recompute" in shown[0]
    assert "2.00 GiB" in shown[0]


def test_a_prediction_that_failed_is_not_repeated(tmp_path: Path) -> None:
    curve = Curve()
    trainer = fresh(tmp_path, listeners=[curve])
    sabotage(trainer.state.network, "forward", {5})
    trainer.fit()
    assert [e.predicted_bytes for e in curve if isinstance(e, EpochDone)] == [1_230_000, 0, 0]


def norms(network: nn.Module) -> list[nn.Module]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.Dropout)]


def relative_errors(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        key: float((found[key] - value).abs().max() / value.abs().max().clamp(min=1e-12))
        for key, value in expected.items()
        if value.is_floating_point()
    }


def test_micro_batches_come_last_and_keep_the_gradient(tmp_path: Path) -> None:
    def train(folder: Path, passes: Iterable[int], curve: Curve) -> Trainer:
        torch.manual_seed(0)
        network = NoisyDetector()
        trainer = fresh(folder, network=network, frozen=norms(network), listeners=[curve], weight_decay=0.0)
        sabotage(network, "backward", passes)
        trainer.fit()
        return trainer

    plain, curve = train(tmp_path / "a", (), Curve()), Curve()
    redone = train(tmp_path / "b", {0, 1, 2, 4}, curve)
    plans = [event.plan for event in curve.retreats()]
    assert [plan.split(" (")[0] for plan in plans] == [
        "technique recompute in every block", "technique nested in every block", "micro-batches of 2",
        "micro-batches of 1",
    ]  # fmt: skip
    assert "BatchNorm" in plans[2], "what changes is said"
    errors = relative_errors(weights(plain.state.network), weights(redone.state.network))
    assert 0 < max(errors.values()) < 1e-5, max(errors, key=errors.__getitem__)


@pytest.mark.parametrize(
    ("on_oom", "retreats", "hint"), [("replan", 4, "smaller model"), ("raise", 0, "on_oom=replan")]
)
@pytest.mark.parametrize("first", [0, 6])
def test_when_nothing_is_left_the_run_stops_whole(
    on_oom: str,
    retreats: int,
    hint: str,
    first: int,
    undisturbed: tuple[Trainer, Curve, torch.Tensor],
    tmp_path: Path,
) -> None:
    curve = Curve()
    trainer = fresh(tmp_path, on_oom=on_oom, listeners=[curve])
    sabotage(trainer.state.network, "backward", range(first, 10**6))
    with pytest.raises(MemoryBudgetError, match=r"training step \(1.23 MB predicted, [\d.]+ .B used") as caught:
        trainer.fit()
    message = str(caught.value)
    assert hint in message
    assert str(tmp_path / "last.pt") in message
    assert "\n" not in message
    assert len(curve.retreats()) == retreats
    again = fresh(tmp_path)
    again.state.restore(read_checkpoint(tmp_path / "last.pt"))
    assert again.state.position.batch == (first // 2 * 2) % 4
    again.fit()
    assert_as(undisturbed, again)


@pytest.mark.parametrize("step", [1, 6])
def test_out_of_memory_before_the_optimiser_moved_anything(
    step: int, undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path
) -> None:
    curve, calls = Curve(), 0
    trainer = fresh(tmp_path, listeners=[curve])

    def fail(optimiser: Any, args: Any, kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            run_out()

    trainer.state.optimiser.register_step_pre_hook(fail)
    trainer.fit()
    assert calls == 9
    assert_as(undisturbed, trainer, curve)
    (event,) = curve.retreats()
    assert event.where == "the optimiser's step"


@pytest.mark.parametrize("name", ["_foreach_norm", "_foreach_mul_", "_foreach_lerp_"])
def test_out_of_memory_around_the_optimiser(
    name: str, undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls, curve = getattr(torch, name), 0, Curve()

    def scarce(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            run_out()
        return real(*args)

    monkeypatch.setattr(torch, name, scarce)
    trainer = fresh(tmp_path, listeners=[curve])
    trainer.fit()
    assert calls > 3
    assert_as(undisturbed, trainer, curve)
    assert len(curve.retreats()) == 1


def test_moments_that_were_half_made_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fresh(tmp_path / "a", kind="AdamW")
    plain.fit()
    real, calls = torch.zeros_like, 0

    def scarce(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            run_out()
        return real(*args, **kwargs)

    trainer, step = fresh(tmp_path / "b", kind="AdamW"), torch.optim.AdamW.step

    def scarce_step(*args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "zeros_like", scarce)
            return step(trainer.state.optimiser, *args, **kwargs)

    trainer.state.optimiser.step = scarce_step  # type: ignore[method-assign]
    trainer.fit()
    assert calls > 4
    assert_same(weights(plain.state.network), weights(trainer.state.network))


@pytest.mark.parametrize("on_oom", ["replan", "raise"])
def test_an_optimiser_that_never_fits_stops_whole(
    on_oom: str, undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path
) -> None:
    trainer, calls = fresh(tmp_path, on_oom=on_oom), 0

    def fail(optimiser: Any, args: Any, kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= 6:
            run_out()

    trainer.state.optimiser.register_step_pre_hook(fail)
    with pytest.raises(MemoryBudgetError, match="the optimiser's step"):
        trainer.fit()
    assert calls == (7 if on_oom == "replan" else 6)
    again = fresh(tmp_path)
    again.state.restore(read_checkpoint(tmp_path / "last.pt"))
    assert (again.state.position.epoch, again.state.position.batch) == (1, 2)
    again.fit()
    assert_as(undisturbed, again)


def test_weights_that_moved_in_part_are_never_saved(
    undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path
) -> None:
    trainer, calls = fresh(tmp_path), 0

    def fail(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            with torch.no_grad():
                optimiser.param_groups[0]["params"][0].add_(1)
            run_out()

    trainer.state.optimiser.register_step_pre_hook(fail)
    with pytest.raises(MemoryBudgetError, match="half of it was done"):
        trainer.fit()
    again = fresh(tmp_path)
    again.state.restore(read_checkpoint(tmp_path / "last.pt"))
    assert (again.state.position.epoch, again.state.position.batch) == (1, 0), "the end of the epoch before"
    again.fit()
    assert_as(undisturbed, again)


def test_out_of_memory_in_judging_keeps_the_epoch(
    undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path
) -> None:
    judged = 0

    def evaluate(network: nn.Module) -> dict[str, float]:
        nonlocal judged
        judged += 1
        if judged == 2:
            raise MemoryBudgetError("out of memory in validation with one image at a time")
        return {"fitness": 0.1 * judged}

    with pytest.raises(MemoryBudgetError, match=r"one image at a time; nothing is lost, '.*last.pt'"):
        fresh(tmp_path, evaluate=evaluate).fit()
    again = fresh(tmp_path, evaluate=evaluate)
    again.state.restore(read_checkpoint(tmp_path / "last.pt"))
    assert (again.state.position.epoch, again.state.position.batch) == (1, 4)
    again.fit()
    assert judged == 4, "the second epoch is judged again, not trained again"
    assert_as(undisturbed, again)


def test_a_run_goes_on_with_other_techniques(undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path) -> None:
    names = block_names(NoisyDetector())
    for first, second in (("block", "recompute"), ("recompute", "none"), ("nested", "block")):
        trainer = fresh(tmp_path, plan=plain_plan(4, blocks=dict.fromkeys(names, first)), on_oom="raise")
        sabotage(trainer.state.network, "forward", {6})
        with pytest.raises(MemoryBudgetError):
            trainer.fit()
        again = fresh(tmp_path, plan=plain_plan(4, blocks=dict.fromkeys(names, second)))
        again.state.restore(read_checkpoint(tmp_path / "last.pt"))
        again.fit()
        assert_as(undisturbed, again)


@pytest.mark.parametrize("technique", ["none", "recompute"])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 16, 99])
def test_micro_batches_add_up_to_the_whole_batch(size: int, technique: str) -> None:
    """The first image of each four shows nothing; BatchNorm is fixed."""
    torch.manual_seed(0)
    network = NoisyDetector().eval()
    whole = make_images(16)
    keep = torch.tensor([int(i) not in (4, 5, 6, 7, 15) for i in whole.targets.image_index_G])
    targets = type(whole.targets)(*(t[keep] for t in vars(whole.targets).values() if isinstance(t, torch.Tensor)), 16)
    batch = type(whole)(whole.images_BCHW, targets, whole.indices)

    def gradients(plan: Any) -> tuple[dict[str, torch.Tensor], Any]:
        trainer = make_trainer_parts(network, plan)
        sums = trainer([batch], is_stopped=lambda: False)
        assert sums is not None
        found = {name: p.grad.clone() for name, p in network.named_parameters() if p.requires_grad}
        network.zero_grad()
        trainer.relief.memory._applied.remove()
        return found, sums

    blocks = dict.fromkeys(("stem.1", "down4", "head"), technique)
    expected, sums = gradients(plain_plan(16))
    found, parts = gradients(plain_plan(16, micro_batch=size, blocks=blocks if technique != "none" else {}))
    for name, error in relative_errors(expected, found).items():
        # A bias sums a thousand values one after another in float32, and the whole batch is the less exact of the two.
        assert error < (1e-4 if name.endswith("cv3.0.2.bias") else 1e-5), name
    assert (sums.images, sums.boxes) == (parts.images, parts.boxes) == (16, len(batch.targets))
    assert (*sums.parts, sums.normaliser) == pytest.approx((*parts.parts, parts.normaliser), rel=1e-5)


def make_trainer_parts(network: nn.Module, plan: Any) -> Accumulator:
    from ullage.losses.detection import DetectionLoss

    precision = Precision("cpu", None)
    relief = Relief(torch.device("cpu"), PlannedMemory(network, plan))
    return Accumulator(network, network, loss=DetectionLoss(num_classes=2), precision=precision,
                       scaler=precision.scaler(), relief=relief, ranks=Ranks())  # fmt: skip


def test_targets_go_with_their_images() -> None:
    whole = make_images(6)
    memory = PlannedMemory(NoisyDetector(), plain_plan(6, micro_batch=4))
    accumulate = make_trainer_parts(memory.network, plain_plan(6, micro_batch=4))
    first, second = accumulate.passes([whole])
    assert [part[0].shape[0] for part in (first, second)] == [4, 2]
    boxes = torch.cat((first[1].boxes_xyxy_px_G4, second[1].boxes_xyxy_px_G4))
    assert torch.equal(boxes, whole.targets.boxes_xyxy_px_G4)
    index = torch.cat((first[1].image_index_G, second[1].image_index_G + 4))
    assert torch.equal(index, whole.targets.image_index_G)
    assert (first[1].batch_size, second[1].batch_size) == (4, 2)
    assert 0 not in first[1].image_index_G, "the first image shows nothing"


def test_each_step_down_adds_and_takes_nothing_away() -> None:
    network = NoisyDetector()
    plan = plain_plan(2, blocks={"stem.0": "recompute+int8", "down4": "block"})
    memory = PlannedMemory(network, plan)
    assert memory.describe() == "technique mixed"
    with memory.lifted() as techniques:
        assert techniques == plan.blocks
        assert "forward" not in network.down4.__dict__
    assert "forward" in network.down4.__dict__
    taken, seen = [], []
    while (text := memory.tighten()) is not None:
        taken.append(text.split(" (")[0])
        seen.append({name: str(t) for name, t in memory._techniques.items()})
        assert memory.predicted_bytes == 0
    assert taken == ["technique recompute in every block", "technique nested in every block", "micro-batches of 1"]
    assert seen[0]["stem.0"] == "recompute+int8"
    assert seen[0]["down4"] == "block+recompute"
    assert seen[0]["down5"] == "recompute"
    assert seen[1]["stem.0"] == "block+recompute+int8"
    assert all(Technique.parse(name).block for name in seen[1].values())
    assert memory.describe() == "technique nested, micro-batches of 1"


def test_what_is_in_force_already_is_no_step_down() -> None:
    network = NoisyDetector()
    blocks = dict.fromkeys(block_names(network), "block+recompute")
    everywhere = PlannedMemory(network, plain_plan(1, blocks=blocks))
    assert everywhere.tighten() is None
    assert everywhere.predicted_bytes == 1_230_000
    everywhere._applied.remove()
    compiled = PlannedMemory(network, plain_plan(3), frozen_in_code=True)
    assert (compiled.tighten() or "").startswith("micro-batches of 2")
    assert network.down4.__dict__.get("forward") is None


def test_techniques_inside_one_another_change_nothing(
    undisturbed: tuple[Trainer, Curve, torch.Tensor], tmp_path: Path
) -> None:
    trainer = fresh(tmp_path, plan=plain_plan(4, blocks={"stem": "block", "down5.conv": "block"}))
    sabotage(trainer.state.network, "backward", {0, 1})
    trainer.fit()
    assert_as(undisturbed, trainer)
