"""The loop: exact splits, exact resume, limits, guards."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_kit import CLASSES, TinyDetector, assert_same, make_images, make_trainer, split, weights

from ullage.errors import TrainingError
from ullage.train.events import EpochDone, RunEnded, RunStarted, StepDone
from ullage.train.loop import Limits
from ullage.train.precision import Precision
from ullage.train.schedule import Schedule
from ullage.zoo.checkpoint_file import read_checkpoint, read_weights


def norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    heard: list[Any] = []
    make_trainer(tmp_path, split(make_images(16), [4] * 4), epochs=30, lr0=0.02, listeners=[heard.append]).fit()
    done = [event for event in heard if isinstance(event, EpochDone)]
    assert len(done) == 30
    assert sum(done[-1].losses.values()) < 0.7 * sum(done[0].losses.values())


@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [1] * 8, [5, 3], [1, 7]])
def test_a_split_batch_is_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]) -> None:
    """With BatchNorm fixed, ten steps end at the same weights however the batch was cut (float32, reassociated)."""
    monkeypatch.setattr(Schedule, "groups", lambda self, epoch: [self.batches])
    whole = make_images(8)

    def train(parts: list[int]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network = TinyDetector()
        batches = split(whole, parts)
        settings = {"epochs": 10, "lr0": 0.01, "weight_decay": 0.0}  # decay would follow the first batch's size
        make_trainer(tmp_path, batches, network=network, frozen=norms(network), **settings).fit()
        return weights(network)

    expected, got = train([8]), train(sizes)
    errors = {key: float((got[key] - value).abs().max() / value.abs().max().clamp(min=1e-12))
              for key, value in expected.items() if value.is_floating_point()}  # fmt: skip
    assert max(errors.values()) < 1e-5, max(errors, key=errors.__getitem__)


def test_a_batch_without_objects_trains(tmp_path: Path) -> None:
    empty = split(make_images(2, seed=3), [1, 1])[:1]
    trainer = make_trainer(tmp_path, empty, epochs=3)
    trainer.fit()
    assert all(value.isfinite().all() for value in weights(trainer.state.network).values())


@pytest.mark.parametrize("stop_after", [1, 3, 4, 5])
def test_an_interrupted_run_ends_bit_for_bit_where_the_other_did(tmp_path: Path, stop_after: int) -> None:
    batches = split(make_images(16), [4] * 4)  # two steps an epoch, three epochs
    undisturbed = make_trainer(tmp_path / "a", batches, epochs=3, warmup_epochs=1.0)
    undisturbed.fit()
    steps = 0

    def interrupt(event: object) -> None:
        nonlocal steps
        steps += isinstance(event, StepDone)
        if steps == stop_after and isinstance(event, StepDone):
            os.kill(os.getpid(), signal.SIGINT)

    first = make_trainer(tmp_path / "b", batches, epochs=3, warmup_epochs=1.0, listeners=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    heard: list[Any] = []
    second = make_trainer(tmp_path / "b", batches, epochs=3, warmup_epochs=1.0, listeners=[heard.append])
    with torch.no_grad():  # nothing of the new network may survive the restore
        for p in second.state.network.parameters():
            p.add_(1.0)
    second.state.restore(read_checkpoint(tmp_path / "b" / "last.pt"))
    second.fit()
    assert_same(weights(undisturbed.state.network), weights(second.state.network))
    assert_same(weights(undisturbed.state.average.network), weights(second.state.average.network))
    assert undisturbed.mean_losses(undisturbed.state.position) == second.mean_losses(second.state.position)
    assert sum(isinstance(event, EpochDone) for event in heard) >= 1


def test_checkpoints_are_plain_and_say_what_they_are(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, split(make_images(8), [4, 4]), epochs=2)
    ended = trainer.fit()
    last = torch.load(ended.files["last"], weights_only=True)
    assert last["train"]["position"]["epoch"] == 2
    assert last["model"] == {"name": "tiny", "num_classes": CLASSES}
    best = read_weights(ended.files["best"])
    assert best.names == ("a", "b")
    assert_same(best.state_dict, weights(trainer.state.average.network))
    assert "train" not in torch.load(ended.files["best"], weights_only=True)


def test_the_best_epoch_is_kept_and_patience_ends_the_run(tmp_path: Path) -> None:
    fitness = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9])
    heard: list[Any] = []
    trainer = make_trainer(
        tmp_path,
        split(make_images(4), [4]),
        evaluate=lambda network: {"fitness": next(fitness)},
        limits=Limits(epochs=6, patience=3),
        listeners=[heard.append],
    )
    ended = trainer.fit()
    assert ended.reason == "no gain for 3 epochs"
    assert (ended.best_epoch, ended.epochs_done) == (1, 5)
    assert [event.is_best for event in heard if isinstance(event, EpochDone)] == [True, True, False, False, False]
    assert isinstance(heard[0], RunStarted)
    assert isinstance(heard[-1], RunEnded)


def test_a_time_limit_ends_the_run_and_decides_the_rate(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, split(make_images(4), [4]), limits=Limits(epochs=10**6, seconds=3.0))
    ended = trainer.fit()
    assert ended.reason == "the time is up"
    assert ended.epochs_done < 10**6
    assert trainer.state.optimiser.param_groups[2]["lr"] < 0.5 * trainer.schedule.settings.lr0


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_images(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, split(make_images(4), [4]))
    with torch.no_grad():
        trainer.state.network.stem[0].conv.weight.fill_(torch.inf)
    with pytest.raises(TrainingError, match=r"epoch 1, batch 1, with images no\. 0, no\. 1.*'stem\.0\.conv'"):
        trainer.fit()


def test_bf16_trains(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, split(make_images(8), [4, 4]), precision=Precision("cpu", torch.bfloat16))
    trainer.fit()
    state = weights(trainer.state.network)
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in state.values())


def test_frozen_norms_keep_their_statistics(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = TinyDetector()
    before = network.stem[0].bn.running_var.clone()
    make_trainer(tmp_path, split(make_images(4), [4]), network=network, frozen=[network.stem]).fit()
    assert torch.equal(network.stem[0].bn.running_var, before)
    assert not torch.equal(network.down4.bn.running_var, before)
