"""The loop: read it top to bottom.

An optimiser step sums the loss over a group of batches, un-normalised, and divides once by the group's normaliser: the
gradient is exactly that of one large batch, however it was split over micro-batches and processes. (BatchNorm still
sees each part alone, unless it is synchronised or frozen.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import nn

from ullage.errors import MemoryBudgetError
from ullage.train.accumulate import Accumulator
from ullage.train.events import EpochDone, RunEnded, RunStarted, StepDone
from ullage.train.guards import FiniteGuard
from ullage.train.interrupts import StopRequest
from ullage.train.keeping import Keeper, Keeping
from ullage.train.optim import set_rates, set_training_mode
from ullage.train.precision import Precision
from ullage.train.process import peak_memory_bytes
from ullage.train.protocols import Batches, Evaluate, Listener, Loss, MemoryControl, TrainBatch
from ullage.train.ranks import Ranks
from ullage.train.relief import Relief
from ullage.train.schedule import Schedule
from ullage.train.state import Position, TrainState
from ullage.train.sync_norm import Circle
from ullage.train.update import Update


@dataclass(frozen=True)
class Limits:
    """When a run ends by itself."""

    epochs: int
    patience: int = 0
    seconds: float | None = None


class Trainer:
    """One run, in one process or as one of several. ``fit`` may be interrupted at any instant; ``last.pt`` goes on."""

    def __init__(
        self,
        state: TrainState,
        *,
        loss: Loss,
        batches: Batches,
        evaluate: Evaluate | None,
        schedule: Schedule,
        precision: Precision,
        limits: Limits,
        keeping: Keeping,
        listeners: Sequence[Listener] = (),
        frozen: Sequence[nn.Module] = (),
        forward: nn.Module | None = None,
        memory: MemoryControl | None = None,
        on_oom: Literal["replan", "raise"] = "replan",
        on_nan: Literal["stop", "skip"] = "stop",
        ranks: Ranks | None = None,
        circle: Circle | None = None,
        name_image: Callable[[int], str] = "no. {}".format,
    ) -> None:
        self.state, self.loss, self.batches, self.evaluate = state, loss, batches, evaluate
        self.schedule, self.precision, self.limits, self.memory = schedule, precision, limits, memory
        self.listeners, self.frozen, self.ranks = listeners, frozen, ranks if ranks is not None else Ranks()
        self.device = next(state.network.parameters()).device
        self.keeper = Keeper(keeping, state, self.ranks, self.tell)
        self.accumulate = Accumulator(
            forward if forward is not None else state.network, state.network, loss=loss, precision=precision,
            scaler=state.scaler, relief=Relief(self.device, memory, on_oom, self.tell), ranks=self.ranks, circle=circle,
        )  # fmt: skip
        self.update = Update(state, self.accumulate.relief, self.accumulate.undo)
        self.guard = FiniteGuard(
            self.accumulate, self.ranks, loss.part_names, on_nan=on_nan, name_image=name_image, tell=self.tell
        )

    def fit(self) -> RunEnded:
        """Train until a limit is reached.

        Raises:
            TrainingError: The gradient is not finite.
            RankLost: Another process of the run is gone.
            MemoryBudgetError: Memory ran out, and nothing more can be saved.
            StorageError: At its end, the run could not write what it leaves.
            KeyboardInterrupt: Asked to stop, after ``last.pt`` was written.
        """
        try:
            return self.train()
        except MemoryBudgetError as error:
            if self.update.is_torn:
                raise
            with StopRequest():  # the launcher may end this process meanwhile, because another one has failed, too
                self.keeper.keep_last(insist=True)
            last = self.keeper.keeping.last
            raise MemoryBudgetError(f"{error}; nothing is lost, '{last}' goes on from here") from None

    def train(self) -> RunEnded:
        """Train until a limit is reached, or until something fails."""
        position, began = self.state.position, time.perf_counter()
        earlier_seconds = position.seconds
        self.tell(RunStarted(self.limits.epochs, position.epoch, len(self.batches), self.loss.part_names,
                             self.limits.seconds))  # fmt: skip
        reason = "all epochs done"
        with StopRequest() as stop:
            while position.epoch < self.limits.epochs:
                is_stopped = self.train_epoch(position, earlier_seconds - began, stop)
                if is_stopped or any(self.ranks.total([stop.asked])):
                    self.keeper.keep_last(insist=True)
                    self.end("interrupted")
                    raise KeyboardInterrupt
                self.keeper.keep_last_if_due()  # evaluation may take long
                if (done := self.finish_epoch(position)) is not None:
                    reason = done
                    break
        return self.end(reason)

    def train_epoch(self, position: Position, clock_offset: float, stop: StopRequest) -> bool:
        """Take every optimiser step that is left of the epoch; return whether it was asked to stop before its end."""
        set_training_mode(self.state.network, self.frozen)
        stream = self.batches.epoch(position.epoch, epochs=self.expected_epochs(), start_batch=position.batch)
        epoch_began, earlier = time.perf_counter(), position.epoch_seconds
        for group in self.groups(stream, position):
            if not self.step(group, position, stop):
                return True
            position.seconds = time.perf_counter() + clock_offset
            position.epoch_seconds = earlier + time.perf_counter() - epoch_began
            self.tell(self.describe_step(group[-1], position))
            self.keeper.keep_last_if_due()
            if self.is_out_of_time(position):
                break
        return False

    def groups(self, stream: Iterator[TrainBatch], position: Position) -> Iterator[list[TrainBatch]]:
        """Gather the batches that one optimiser step sums."""
        passed = 0
        for size in self.schedule.groups(position.epoch):
            passed += size
            if passed > position.batch and (group := list(islice(stream, size))):
                yield group

    def step(self, group: list[TrainBatch], position: Position, stop: StopRequest) -> bool:
        """Sum the loss over a group of batches, take one optimiser step and move the average.

        Returns:
            False when a process was asked to stop before the group was summed; nothing of it is left then.
        """
        state, batch = self.state, position.batch + len(group)
        sums = self.accumulate(group, is_stopped=lambda: stop.asked)
        if sums is None:
            return False
        passed = position.epoch * len(self.batches) + batch
        set_rates(state.optimiser, *self.schedule.rates(passed, self.progress(position, batch)))
        factor = torch.tensor(sums.images / max(sums.normaliser, 1.0), device=self.device)
        norm = self.update.finish_gradients(factor)
        if state.scaler.is_enabled() or bool(torch.isfinite(norm)):
            self.update.move_weights()
            position.add(sums.means, images=sums.images, boxes=sums.boxes)
            self.guard.passed()
        else:
            self.guard.met(group, sums, position)
        position.batch = batch  # from here on the step is done
        return True

    def finish_epoch(self, position: Position) -> str | None:
        """Evaluate, keep what is worth keeping, move to the next epoch; return why the run is over, if it is."""
        began = time.perf_counter()
        metrics = dict(self.evaluate(self.state.average.network)) if self.evaluate else {}
        is_best = not self.evaluate or metrics.get("fitness", 0.0) > position.best_fitness
        if is_best:
            position.best_fitness, position.best_epoch = metrics.get("fitness", 0.0), position.epoch
        eval_seconds = time.perf_counter() - began
        position.seconds += eval_seconds
        event = EpochDone(
            position.epoch, self.mean_losses(position), metrics, self.current_rates(), position.epoch_seconds,
            eval_seconds, position.images / max(position.epoch_seconds, 1e-9),
            max(self.ranks.collect(peak_memory_bytes(self.device))), is_best,
            self.memory.predicted_bytes if self.memory is not None else 0,
        )  # fmt: skip
        epoch = position.epoch
        position.begin_epoch(epoch + 1)
        self.keeper.keep_epoch(epoch, is_best=is_best)
        self.tell(event)
        self.keeper.keep_last()  # at last: a kill before it repeats the epoch, one after it finds nothing missing
        if self.is_out_of_time(position):
            return "the time is up"
        waited = epoch - position.best_epoch
        if self.evaluate and self.limits.patience and waited >= self.limits.patience:
            return f"no gain for {waited} epochs"
        return None

    def end(self, reason: str) -> RunEnded:
        """Say why the run is over and what it leaves."""
        position, keeping = self.state.position, self.keeper.keeping
        self.keeper.settle()
        self.ranks.wait()  # a process that ends early would have the launcher end the one that writes
        ended = RunEnded(reason, position.epoch, position.best_epoch, position.seconds,
                         {"best": keeping.best, "last": keeping.last})  # fmt: skip
        self.tell(ended)
        return ended

    def progress(self, position: Position, batch: int) -> float:
        """Part of the run that is over after so many batches of the epoch; by time when time is limited."""
        if self.limits.seconds is not None:
            return position.seconds / self.limits.seconds
        return (position.epoch + batch / len(self.batches)) / self.limits.epochs

    def is_out_of_time(self, position: Position) -> bool:
        """Whether the time is up, by the clock of the main process."""
        if self.limits.seconds is None:
            return False
        position.seconds = self.ranks.from_main(position.seconds)
        return position.seconds >= self.limits.seconds

    def expected_epochs(self) -> int:
        """Epochs the run will take: the limit, or an estimate when time decides."""
        position = self.state.position
        if self.limits.seconds is None or position.epoch == 0:
            return self.limits.epochs
        return min(max(round(position.epoch * self.limits.seconds / position.seconds), 1), self.limits.epochs)

    def mean_losses(self, position: Position) -> dict[str, float]:
        """Return the mean losses of the epoch so far."""
        steps = max(position.loss_steps, 1)
        sums = position.loss_sums or [0.0] * len(self.loss.part_names)
        return {name: total / steps for name, total in zip(self.loss.part_names, sums, strict=True)}

    def current_rates(self) -> dict[str, float]:
        """Return the learning rate of each parameter group."""
        return {f"pg{i}": float(group["lr"]) for i, group in enumerate(self.state.optimiser.param_groups)}

    def describe_step(self, batch: TrainBatch, position: Position) -> StepDone:
        """Gather what the progress bar shows."""
        height, width = batch.images_BCHW.shape[-2:]
        return StepDone(
            position.epoch, position.batch, self.mean_losses(position), position.boxes, (height, width),
            position.images / max(position.epoch_seconds, 1e-9), peak_memory_bytes(self.device),
            self.current_rates()["pg1"], self.memory.predicted_bytes if self.memory is not None else 0,
        )  # fmt: skip

    def tell(self, event: object) -> None:
        """Let every listener hear of an event."""
        for listener in self.listeners:
            listener(event)
