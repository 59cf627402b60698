"""A run under a memory plan: what is planned, rehearsed and kept; and what happens when it was not enough."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ullage import api
from ullage.api.train import TrainResult
from ullage.config import TrainConfig
from ullage.errors import ConfigError, MemoryBudgetError
from ullage.memory import Plan
from ullage.memory.ledger import Ledger
from ullage.runtime.predictor import TorchPredictor
from ullage.train.accumulate import Accumulator
from ullage.train.events import EpochDone, Notice, OutOfMemory, StepDone
from ullage.train.loop import Trainer
from ullage.train.state import random_state
from ullage.zoo.checkpoint_file import read_checkpoint

training = importlib.import_module("ullage.api.run")
SMALL = {
    "model": "yolo11n", "data": "demo", "fraction": 0.05, "batch": 4, "nbs": 4, "imgsz": 64, "epochs": 1, "workers": 0,
    "device": "cpu", "plots": False, "verbose": False, "val": False,
}  # fmt: skip


class Heard(list[Any]):
    def __call__(self, event: Any) -> None:
        self.append(event)

    def sentence(self) -> str:
        (text,) = [e.message for e in self if isinstance(e, Notice) and e.message.startswith("memory: ")]
        return text

    def retreats(self) -> list[OutOfMemory]:
        return [e for e in self if isinstance(e, OutOfMemory)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(heard: Callable[[Any], None] = lambda event: None, **changes: Any) -> TrainResult:
    return api.train(TrainConfig.load({**SMALL, **changes}), listeners=[heard])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of two epochs without any plan, rehearsal or technique."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        patch.setattr(training, "rehearse", lambda *args, **kwargs: "not rehearsed")
        return run(epochs=2).last.absolute()


def differing(first: Path, second: Path) -> list[str]:
    """Weights, averages and moments that differ by so much as a bit, and the random numbers."""
    one, other = read_checkpoint(first), read_checkpoint(second)
    found = [f"{part}.{key}" for part in ("weights", "ema") for key, t in one[part].items()
             if not torch.equal(t, other[part][key])]  # fmt: skip
    states = [file["train"]["optimiser"]["state"] for file in (one, other)]
    found += [f"moment {number}.{key}" for number, entry in states[0].items() for key, t in entry.items()
              if not torch.equal(t, states[1][number][key])]  # fmt: skip
    same_random = torch.equal(one["train"]["random"]["torch"], other["train"]["random"]["torch"])
    return found if same_random else [*found, "random numbers"]


def snapshot(trainer: Trainer) -> dict[str, Any]:
    state = trainer.state
    tensors = {f"network.{k}": t for k, t in state.network.state_dict().items()}
    tensors |= {f"average.{k}": t for k, t in state.average.network.state_dict().items()}
    for number, entry in state.optimiser.state_dict()["state"].items():
        tensors |= {f"moment.{number}.{k}": t for k, t in entry.items()}
    random = random_state()
    return {
        **{name: t.clone() for name, t in tensors.items()},
        "random": random["torch"],
        "other random": json.dumps([random["python"], random["numpy"][2:]], default=str),
        "gradients": [n for n, p in state.network.named_parameters() if p.grad is not None],
        "modes": [m.training for m in state.network.modules()],
    }


@pytest.mark.parametrize("changes", [{}, {"technique": "nested", "val": True}, {"memory": "56MB"}], ids=str)
def test_the_rehearsal_changes_nothing(
    changes: dict[str, Any], plain: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = training.rehearse, []

    def spy(trainer: Trainer, *args: Any, **kwargs: Any) -> str:
        before = snapshot(trainer)
        text = real(trainer, *args, **kwargs)
        after = snapshot(trainer)
        assert before.keys() == after.keys()
        for name, value in before.items():
            same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
            assert same, name
        seen.append(text)
        return text

    monkeypatch.setattr(training, "rehearse", spy)
    result = run(epochs=2, **changes)
    assert len(seen) == 1
    assert differing(plain, result.last) == []


def test_a_resumed_run_rehearses_with_its_moments_and_any_technique(
    plain: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    def interrupt(event: Any) -> None:
        nonlocal steps
        steps += isinstance(event, StepDone)
        if steps == 2 and isinstance(event, StepDone):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt, epochs=2, technique="recompute")
    interrupted = (here / "runs/detect/train/weights/last.pt").read_bytes()
    for changes, wanted in (({"technique": "block"}, "block"), ({"technique": "auto", "memory": "1GB"}, "none")):
        last = here / "again" / wanted / "weights/last.pt"
        last.parent.mkdir(parents=True)
        last.write_bytes(interrupted)
        heard = Heard()
        result = api.train(TrainConfig.load({"resume": str(last), **changes, "verbose": False}), listeners=[heard])
        assert differing(plain, result.last) == []
        assert f"technique {wanted};" in heard.sentence()
        assert "rehearsed" in heard.sentence()
        assert Plan.from_json((result.run_dir / "plan.json").read_text()).technique == wanted


def figure(text: str, pattern: str) -> float:
    number, unit = re.search(pattern + r" ([\d.]+) (kB|MB|GB)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def test_the_run_says_what_it_planned(here: Path) -> None:
    heard = Heard()
    result = run(heard, val=True, technique="recompute")
    plan = Plan.from_json((result.run_dir / "plan.json").read_text())
    assert (plan.batch, plan.technique, plan.fidelity, plan.budget_bytes) == (4, "recompute", "bitwise", None)
    assert Plan.from_json(plan.to_json()) == plan
    (epoch,) = [e for e in heard if isinstance(e, EpochDone)]
    assert epoch.predicted_bytes == plan.predicted.reserved_bytes > 1e6
    text = heard.sentence()
    assert "technique recompute" in text
    predicted, rehearsed = figure(text, "predicted"), figure(text, "rehearsed")
    assert predicted == pytest.approx(plan.predicted.peak_bytes, rel=0.01)
    assert rehearsed == pytest.approx(predicted, rel=0.1)
    assert 5e6 < figure(text, "of validation") < rehearsed
    header, row = (result.run_dir / "results.csv").read_text().splitlines()
    column = dict(zip(header.split(","), row.split(","), strict=True))
    assert int(column["peak_bytes_predicted"]) == plan.predicted.reserved_bytes


def test_a_budget_is_kept_and_changes_no_bit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the real steps take, counted tensor by tensor, is below the budget, the rehearsal and the prediction."""
    settings = {"model": "yolov12n", "imgsz": 128, "batch": 16, "nbs": 16, "fraction": 0.1}
    peaks: list[int] = []
    real = Accumulator.__call__

    def counted(self: Accumulator, group: Any, **keywords: Any) -> Any:
        ledger, run_state = Ledger(), trainers[-1].state
        ledger.enter([*self.network.parameters(), *self.network.buffers()])
        ledger.enter(run_state.average.network.state_dict().values())
        ledger.enter(t for s in run_state.optimiser.state.values() for t in s.values())
        ledger.enter(batch.images_BCHW for batch in group)
        with ledger:
            sums = real(self, group, **keywords)
        peaks.append(ledger.peak().nbytes)
        return sums

    trainers: list[Trainer] = []
    build = Trainer.__init__

    def remember(self: Trainer, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        trainers.append(self)

    monkeypatch.setattr(Trainer, "__init__", remember)
    monkeypatch.setattr(Accumulator, "__call__", counted)
    free = run(name="free", **settings)
    needed = max(peaks)
    peaks.clear()
    heard = Heard()
    bound = run(heard, name="bound", memory="150MB", **settings)
    plan = Plan.from_json((bound.run_dir / "plan.json").read_text())
    assert needed > 1.1 * 150e6, "the budget asks for something"
    assert plan.accumulate == 1
    assert differing(free.last, bound.last) == []
    assert len(peaks) == 2
    assert max(peaks) <= figure(heard.sentence(), "rehearsed") * 1.005 <= 150e6 * 1.005
    assert max(peaks) > 0.7 * 150e6, "a faster plan would have fitted"
    assert heard.retreats() == []


def test_a_plan_that_needs_more_than_the_budget_is_tightened_in_the_rehearsal(
    plain: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind, heard = training.plan_training, Heard()
    monkeypatch.setattr(training, "plan_training", lambda network, **args: blind(network, **{**args, "budget": None}))
    result = run(heard, epochs=2, memory="56MB")
    assert [event.where for event in heard.retreats()] == ["the rehearsal"] * len(heard.retreats())
    assert heard.retreats()[0].plan.startswith("technique recompute")
    assert re.search(r"it needed [\d.]+ MB of 56.0 MB", heard.retreats()[0].reason)
    assert not any("micro" in event.plan for event in heard.retreats())
    assert figure(heard.sentence(), "rehearsed") <= 56e6 * 1.01
    assert "predicted" not in heard.sentence(), "the prediction was for the plan that was left"
    assert differing(plain, result.last) == []
    with pytest.raises(MemoryBudgetError, match=r"out of memory in the rehearsal .* it needed .* of 5.00 MB.*smaller"):
        run(memory="5MB", name="none")
    with pytest.raises(MemoryBudgetError, match="on_oom=replan"):
        run(memory="56MB", on_oom="raise", name="raised")


def test_out_of_memory_in_the_rehearsal_takes_another_plan(
    plain: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, real, passes = Heard(), Accumulator.loss_of, 0

    def scarce(self: Accumulator, *args: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return real(self, *args)

    monkeypatch.setattr(Accumulator, "loss_of", scarce)
    result = run(heard, epochs=2)
    (event,) = heard.retreats()
    assert (event.where, event.plan.split()[1]) == ("the rehearsal", "recompute")
    assert differing(plain, result.last) == []


def test_nothing_fits_and_nothing_is_left_behind(here: Path) -> None:
    with pytest.raises(MemoryBudgetError, match=r"nothing fits 5.00 MB on cpu"):
        run(memory="5MB")
    assert list(here.rglob("*")) == [here / "runs", here / "runs/detect"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"technique": "recompte"}, ("'recompte'", "Did you mean 'recompute'?")),
        ({"technique": "atuo"}, ("Did you mean 'auto'?",)),
        ({"technique": "int8+fp8"}, ("exclude each other",)),
        ({"technique": "block", "gradient_checkpointing": True}, ("technique=block", "give one of them")),
        ({"technique": "block", "compile": True}, ("compile=True", "exclude each other")),
        ({"memory": "8Gigs"}, ("memory='8Gigs'", "8GB")),
        ({"memory": 0}, ("memory=0", "above zero")),
        ({"memory": True}, ("memory=True",)),
        ({"micro_batch": 0}, ("micro_batch=0", "at least 1")),
        ({"on_oom": "ignore"}, ("'replan' | 'raise'",)),
        ({"imgsz": 32, "micro_batch": 1}, ("batch of one image",)),
        ({"imgsz": 32, "micro_batch": 3}, ("batch of one image",)),
    ],
    ids=str,
)
def test_wrong_settings_leave_no_folder(changes: dict[str, Any], parts: tuple[str, ...], here: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(**changes)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert list(here.iterdir()) == []


def test_micro_batches_are_in_force(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], Accumulator.loss_of

    def spy(self: Accumulator, images: torch.Tensor, targets: Any) -> Any:
        assert targets.batch_size == images.shape[0]
        sizes.append(images.shape[0])
        return real(self, images, targets)

    monkeypatch.setattr(Accumulator, "loss_of", spy)
    heard = Heard()
    result = run(heard, micro_batch=3)
    assert sizes == [3, 3, *[3, 1] * 3], "the rehearsal takes two passes, then come three batches of four"
    assert "micro-batches of 3" in heard.sentence()
    plan = Plan.from_json((result.run_dir / "plan.json").read_text())
    assert (plan.micro_batch, plan.accumulate, plan.fidelity) == (3, 2, "approximate")
    assert "BatchNorm sees 3 images" in plan.fidelity_note


def test_validation_that_runs_out_takes_fewer_images_and_judges_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"val": True, "batch": 8, "nbs": 8, "imgsz": 96}
    expected = run(name="free", **settings)
    real, sizes, heard = TorchPredictor.__call__, [], Heard()

    def scarce(self: TorchPredictor, images: torch.Tensor) -> Any:
        sizes.append(images.shape[0])
        if images.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return real(self, images)

    monkeypatch.setattr(TorchPredictor, "__call__", scarce)
    result = run(heard, name="scarce", **settings)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2, "what was learned stays"
    assert [event.where for event in heard.retreats()] == ["validation"] * 2
    assert heard.retreats()[1].plan == "validation takes 2 images at a time"
    assert result.metrics is not None
    assert expected.metrics is not None
    assert result.metrics.results_dict == pytest.approx(expected.metrics.results_dict, rel=1e-4, abs=1e-6)
    rows = [(folder / "results.csv").read_text().splitlines() for folder in (expected.run_dir, result.run_dir)]
    judged = [dict(zip(row[0].split(","), map(float, row[1].split(",")), strict=True)) for row in rows]
    for name in ("val/box_loss", "val/cls_loss", "val/dfl_loss"):
        assert judged[1][name] == pytest.approx(judged[0][name], rel=1e-4)
    assert differing(expected.last, result.last) == []
