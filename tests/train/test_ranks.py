"""Several processes are one: sums, retreats, stops and errors. Every scenario runs in the same two processes."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_kit import run_ranks
from torch import nn
from train_kit import MemoryBatch, TinyDetector, make_images, make_trainer, plain_plan, split, weights

from ullage.errors import MemoryBudgetError, TrainingError
from ullage.train.events import OutOfMemory, StepSkipped
from ullage.train.loop import Trainer
from ullage.train.ranks import RankLost, Ranks
from ullage.train.schedule import Schedule
from ullage.train.sync_norm import synchronise_norms

EPOCHS = 3


def shares(ranks: Ranks) -> list[MemoryBatch]:
    """This process's parts of batches of 8, 8 and 1 images: the last one is empty for all but the first process."""
    parts: list[MemoryBatch] = []
    for whole in split(make_images(17), [8, 8, 1]):
        count = whole.images_BCHW.shape[0]
        cuts = [0, -(-count * 3 // 4), count] if ranks.size == 2 else [0, count]
        start, stop = cuts[ranks.rank], cuts[ranks.rank + 1]
        if start == stop:
            parts.append(MemoryBatch(whole.images_BCHW[:0], whole.targets.images(0, 0), ()))
        else:
            parts += split(whole, [start, stop - start, count - stop])[1:2]
    return parts


def trainer_of(ranks: Ranks, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    network = TinyDetector()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    Schedule.groups = lambda self, epoch: [1, 2]  # type: ignore[method-assign]
    settings = {"epochs": EPOCHS, "lr0": 0.01, "weight_decay": 0.0, "frozen": norms, "ranks": ranks, **changes}
    return make_trainer(Path(tempfile.mkdtemp()), shares(ranks), network=network, **settings)


def all_scenarios(ranks: Ranks) -> dict[str, Any]:
    scenarios: dict[str, Callable[[Ranks], Any]] = {
        "plain": _plain, "out of memory": _out_of_memory, "not finite": _not_finite, "skipped": _skipped,
        "stopped": _stopped, "shared": _shared, "norms stopped": _norms_stopped, "norms not finite": _norms_not_finite,
        "norms out of memory": _norms_out_of_memory,
    }  # fmt: skip
    return {name: scenario(ranks) for name, scenario in scenarios.items()}


def _plain(ranks: Ranks) -> Any:
    trainer = trainer_of(ranks)
    trainer.fit()
    return weights(trainer.state.network), trainer.mean_losses(trainer.state.position)


def _out_of_memory(ranks: Ranks) -> Any:
    heard: list[Any] = []
    trainer = trainer_of(ranks, plan=plain_plan(8), listeners=[heard.append])
    passes = 0

    def fail(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal passes
        passes += module.training
        if ranks.rank == ranks.size - 1 and passes == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.state.network.down5.register_forward_hook(fail)
    trainer.state.network.down5.train()
    trainer.fit()
    retreats = [(e.where, e.reason, e.plan) for e in heard if isinstance(e, OutOfMemory)]
    return weights(trainer.state.network), retreats


def _spoil(ranks: Ranks, trainer: Trainer) -> None:
    """From its second pass on, a layer of the last process gives infinities, once."""
    passes = 0

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        nonlocal passes
        passes += torch.is_grad_enabled()
        return output * torch.inf if ranks.rank == ranks.size - 1 and passes == 2 else None

    trainer.state.network.down4.conv.register_forward_hook(hook)


def _not_finite(ranks: Ranks) -> str:
    trainer = trainer_of(ranks, name_image="photo{}.jpg".format)
    _spoil(ranks, trainer)
    with pytest.raises(TrainingError) as caught:
        trainer.fit()
    return str(caught.value)


def _skipped(ranks: Ranks) -> Any:
    heard: list[Any] = []
    trainer = trainer_of(ranks, on_nan="skip", listeners=[heard.append])
    _spoil(ranks, trainer)
    trainer.fit()
    return weights(trainer.state.network), [e.why for e in heard if isinstance(e, StepSkipped)]


def _stopped(ranks: Ranks) -> Any:
    """The last process alone is told to stop, in the middle of a group."""
    trainer = trainer_of(ranks)
    passes = 0

    def hook(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if ranks.rank == ranks.size - 1 and passes == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.state.network.down4.register_forward_pre_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    position = trainer.state.position
    return position.epoch, position.batch, trainer.keeper.keeping.last.exists()


def _shared(ranks: Ranks) -> Any:
    tensor = torch.full((3, 2), float(ranks.rank)).to(memory_format=torch.contiguous_format)
    ranks.share([tensor])
    many = [torch.full((5,), 1.0 + ranks.rank), torch.full((2, 2), 10.0), torch.ones(3, dtype=torch.float64)]
    ranks.add(many)
    return tensor, many, ranks.from_main(f"from {ranks.rank}"), ranks.collect(ranks.rank), ranks.gather(ranks.rank)


def _with_norms_together(ranks: Ranks) -> Trainer:
    """BatchNorm over both processes, batches in several passes: each waits for the other in every layer."""
    torch.manual_seed(0)
    network = TinyDetector()
    circle = synchronise_norms(network, ranks.size)
    return make_trainer(Path(tempfile.mkdtemp()), shares(ranks), network=network, epochs=EPOCHS, ranks=ranks,
                        circle=circle, plan=plain_plan(8, micro_batch=2))  # fmt: skip


def _norms_stopped(ranks: Ranks) -> Any:
    trainer = _with_norms_together(ranks)
    passes = 0

    def hook(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if ranks.rank == ranks.size - 1 and passes == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.state.network.down4.register_forward_pre_hook(hook)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    return trainer.state.position.epoch, trainer.state.position.batch


def _norms_not_finite(ranks: Ranks) -> str:
    """Behind the last norm, so that the other process meets nothing wrong and goes on to its next pass."""
    trainer = _with_norms_together(ranks)

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        return output * torch.inf if ranks.rank == ranks.size - 1 else None

    trainer.state.network.head.cv3[2][2].register_forward_hook(hook)
    with pytest.raises(TrainingError) as caught:
        trainer.fit()
    return str(caught.value)


def _norms_out_of_memory(ranks: Ranks) -> str:
    """The first process gives up at once, and the other, inside its pass, hears that it is gone. The last scenario."""
    trainer = _with_norms_together(ranks)
    if ranks.is_main:
        trainer.state.network.down5.register_forward_pre_hook(lambda *_: _run_out())
    with pytest.raises(MemoryBudgetError if ranks.is_main else RankLost) as caught:
        trainer.fit()
    return str(caught.value)


def _run_out() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.fixture(scope="module")
def together() -> list[dict[str, Any]]:
    return run_ranks(all_scenarios, 2)


@pytest.fixture(scope="module")
def alone() -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    groups = Schedule.groups
    try:
        return _plain(Ranks())
    finally:
        Schedule.groups = groups  # type: ignore[method-assign]


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for key, value in one.items():
        if value.is_floating_point():
            error = float((other[key] - value).abs().max() / value.abs().max().clamp(min=1e-12))
            assert error < 1e-5, (key, error)


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def test_two_processes_train_as_one(together: list[dict[str, Any]], alone: Any) -> None:
    (first, losses), (second, _) = (one["plain"] for one in together)
    assert same_bits(first, second), "the processes have drifted apart"
    assert_close(alone[0], first)
    assert losses == pytest.approx(alone[1], rel=1e-5)


def test_memory_that_runs_out_in_one_is_answered_by_all(together: list[dict[str, Any]], alone: Any) -> None:
    (first, heard), (second, heard_too) = (one["out of memory"] for one in together)
    assert same_bits(first, second)
    assert_close(alone[0], first)
    assert heard == heard_too
    ((where, reason, plan),) = heard
    assert where == "a training step"
    assert reason == "process 1: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert plan.startswith("technique recompute in every block")


def test_what_is_not_finite_in_one_is_named_by_all(together: list[dict[str, Any]]) -> None:
    first, second = (one["not finite"] for one in together)
    assert first == second
    assert "epoch 1, batch 2 in process 1" in first
    assert "the output of 'down4.conv' is the first that is not" in first
    assert "with images photo14.jpg, photo15.jpg:" in first, "the last batch but one ends with them"
    assert "on_nan=skip" in first


def test_a_step_that_is_not_finite_can_be_left_out(together: list[dict[str, Any]]) -> None:
    (first, why), (second, _) = (one["skipped"] for one in together)
    assert same_bits(first, second)
    assert all(bool(torch.isfinite(value).all()) for value in first.values())
    assert len(why) == 1
    assert "down4.conv" in why[0]


def test_a_stop_that_one_hears_stops_all_at_the_same_step(together: list[dict[str, Any]]) -> None:
    assert [one["stopped"][:2] for one in together] == [(0, 1), (0, 1)]
    assert [one["stopped"][2] for one in together] == [True, False], "only the main process writes"


def test_norms_over_all_processes_leave_nobody_waiting(together: list[dict[str, Any]]) -> None:
    first, second = together
    assert first["norms stopped"] == second["norms stopped"]
    assert first["norms not finite"] == second["norms not finite"]
    assert "in process 1" in first["norms not finite"]
    assert "the output of 'head.cv3.2.2' is the first that is not" in first["norms not finite"]
    assert "out of memory in a training step with sync_bn=True" in first["norms out of memory"]
    assert second["norms out of memory"].startswith("another process of this run is gone")


def test_what_they_tell_each_other_arrives(together: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(together):
        tensor, (threes, twenties, twos), text, numbers, gathered = one["shared"]
        assert torch.equal(tensor, torch.zeros(3, 2))
        assert torch.equal(threes, torch.full((5,), 3.0))
        assert torch.equal(twenties, torch.full((2, 2), 20.0))
        assert torch.equal(twos, torch.full((3,), 2.0, dtype=torch.float64))
        assert (text, numbers) == ("from 0", [0, 1])
        assert gathered == ([0, 1] if rank == 0 else None)
