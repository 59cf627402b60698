"""What is written when: within epochs, on a full disk, and what is not finite leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_kit import assert_same, make_images, make_trainer, split, weights

from ullage.errors import StorageError, TrainingError
from ullage.train.events import Notice, StepDone, StepSkipped
from ullage.train.guards import MOST_SKIPPED
from ullage.train.keeping import Keeper
from ullage.train.loop import Trainer
from ullage.zoo.checkpoint_file import read_checkpoint, read_weights, write_checkpoint


class Disk:
    """Writes checkpoints, except while it is full."""

    def __init__(self, full: Mapping[str, range]) -> None:
        self.full, self.calls, self.written = full, dict.fromkeys(("last.pt", "best.pt"), 0), []

    def __call__(self, path: Path, payload: Mapping[str, Any]) -> None:
        number = self.calls[path.name]
        self.calls[path.name] += 1
        if number in self.full.get(path.name, range(0)):
            raise StorageError(f"cannot write {path}: No space left on device")
        write_checkpoint(path, payload)
        self.written.append(path.name)


def with_disk(trainer: Trainer, disk: Disk, **changes: Any) -> Trainer:
    keeping = replace(trainer.keeper.keeping, write=disk, **changes)
    trainer.keeper = Keeper(keeping, trainer.state, trainer.ranks, trainer.tell)
    return trainer


def four_batches(folder: Path, **changes: Any) -> Trainer:
    return make_trainer(folder, split(make_images(16), [4] * 4), epochs=3, nbs=4, **changes)


def test_a_full_disk_ends_no_run_and_costs_no_file(tmp_path: Path) -> None:
    heard: list[Any] = []
    disk = Disk({"last.pt": range(1, 2), "best.pt": range(1, 2)})
    trainer = with_disk(four_batches(tmp_path, listeners=[heard.append]), disk)
    trainer.fit()
    told = [event.message for event in heard if isinstance(event, Notice)]
    assert len(told) == 2
    assert all("No space left" in text and "training goes on" in text for text in told)
    assert read_checkpoint(tmp_path / "last.pt")["train"]["position"]["epoch"] == 3
    undisturbed = four_batches(tmp_path / "b")
    undisturbed.fit()
    assert_same(weights(undisturbed.state.network), weights(trainer.state.network))


def test_the_best_weights_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    fitness = iter([0.1, 0.9, 0.2])
    disk = Disk({"best.pt": range(1, 2)})  # the best epoch's
    trainer = with_disk(four_batches(tmp_path, evaluate=lambda network: {"fitness": next(fitness)}), disk)
    best: list[dict[str, torch.Tensor]] = []
    real = trainer.keeper.keep_epoch

    def noted(epoch: int, *, is_best: bool) -> None:
        if is_best:
            best.append(weights(trainer.state.average.network))
        real(epoch, is_best=is_best)

    trainer.keeper.keep_epoch = noted
    trainer.fit()
    assert len(best) == 2
    assert_same(read_weights(tmp_path / "best.pt").state_dict, best[-1])


def test_a_disk_that_stays_full_is_told_at_the_end(tmp_path: Path) -> None:
    disk = Disk({"last.pt": range(1, 1000)})
    trainer = with_disk(four_batches(tmp_path), disk)
    with pytest.raises(StorageError, match="No space left"):
        trainer.fit()
    assert trainer.state.position.epoch == 3, "but it has trained to its end"
    assert read_checkpoint(tmp_path / "last.pt")["train"]["position"]["epoch"] == 1, (
        "and the file that was whole is there"
    )


@pytest.mark.parametrize(("seconds", "writes"), [(0.0, 3), (1e-9, 3 * (4 + 2)), (3600.0, 3)])
def test_the_last_checkpoint_is_as_old_as_it_may_be(tmp_path: Path, seconds: float, writes: int) -> None:
    disk = Disk({})
    with_disk(four_batches(tmp_path), disk, every_seconds=seconds).fit()
    assert disk.written.count("last.pt") == writes, "after each step, before judging, after the epoch"


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_checkpoint_within_an_epoch_goes_on_bit_for_bit(tmp_path: Path, batch: int) -> None:
    whole = four_batches(tmp_path / "a")
    whole.fit()
    kept: list[dict[str, Any]] = []

    class Remember(Disk):
        def __call__(self, path: Path, payload: Mapping[str, Any]) -> None:
            super().__call__(path, payload)
            if path.name == "last.pt":
                kept.append(read_checkpoint(path))

    with_disk(four_batches(tmp_path / "b"), Remember({}), every_seconds=1e-9).fit()
    within = next(p for p in kept if (p["train"]["position"]["epoch"], p["train"]["position"]["batch"]) == (1, batch))
    resumed = four_batches(tmp_path / "c")
    resumed.state.restore(within)
    resumed.fit()
    assert_same(weights(whole.state.network), weights(resumed.state.network))
    assert_same(weights(whole.state.average.network), weights(resumed.state.average.network))


def spoiled(trainer: Trainer, numbers: range) -> Trainer:
    """Let the gradient of some passes be infinite while outputs and loss are finite."""
    passes = 0

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal passes
        if output.requires_grad:
            passes += 1
            if passes - 1 in numbers:
                output.register_hook(lambda grad: grad * torch.inf)

    trainer.state.network.down4.register_forward_hook(hook)
    return trainer


def test_a_gradient_that_is_not_finite_is_named_when_the_forward_pass_was(tmp_path: Path) -> None:
    trainer = spoiled(four_batches(tmp_path, name_image="{}.png".format), range(1, 2))
    with pytest.raises(
        TrainingError, match=r"epoch 1, batch 2, with images 4\.png, .*the gradient of '.*' is the first"
    ):
        trainer.fit()


def test_a_step_that_is_left_out_leaves_nothing_behind(tmp_path: Path) -> None:
    heard: list[Any] = []
    skipping = spoiled(four_batches(tmp_path / "a", on_nan="skip", listeners=[heard.append]), range(1, 2))
    before: list[dict[str, torch.Tensor]] = []
    real = skipping.step

    def step(*arguments: Any) -> bool:
        before.append(weights(skipping.state.network))
        return real(*arguments)

    skipping.step = step
    skipping.fit()
    assert_same(before[1], before[2])
    assert [(e.epoch, e.batch) for e in heard if isinstance(e, StepSkipped)] == [(0, 1)]
    assert sum(isinstance(event, StepDone) for event in heard) == 12


def test_a_run_that_learns_nothing_ends(tmp_path: Path) -> None:
    batches = split(make_images(16), [1] * 16)
    trainer = spoiled(make_trainer(tmp_path, batches, epochs=9, nbs=1, on_nan="skip"), range(10**6))
    with pytest.raises(TrainingError, match=f"{MOST_SKIPPED} steps in a row were skipped"):
        trainer.fit()
