"""The loop: read it top to bottom.

An optimiser step sums the loss over a group of batches, un-normalised, and divides once by the group's normaliser: the
gradient is exactly that of one large batch, however it was split. (BatchNorm still sees each batch alone.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ullage.errors import MemoryBudgetError, TrainingError
from ullage.train.accumulate import Accumulator
from ullage.train.events import EpochDone, RunEnded, RunStarted, StepDone
from ullage.train.interrupts import StopRequest
from ullage.train.optim import set_rates, set_training_mode
from ullage.train.precision import Precision
from ullage.train.process import peak_memory_bytes
from ullage.train.protocols import Batches, Evaluate, Listener, Loss, MemoryControl, TrainBatch, WriteCheckpoint
from ullage.train.relief import Relief
from ullage.train.schedule import Schedule
from ullage.train.state import Position, TrainState
from ullage.train.update import Update


@dataclass(frozen=True)
class Limits:
    """When a run ends by itself."""

    epochs: int
    patience: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Keeping:
    """What is kept, and where."""

    folder: Path
    write: WriteCheckpoint
    every_epochs: int = -1

    @property
    def last(self) -> Path:
        """The checkpoint from which a run goes on."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The averaged weights of the best epoch."""
        return self.folder / "best.pt"


class Trainer:
    """One run in one process. ``fit`` may be interrupted at any step; ``last.pt`` then resumes it exactly there."""

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
    ) -> None:
        self.state, self.loss, self.batches, self.evaluate = state, loss, batches, evaluate
        self.schedule, self.precision, self.limits, self.keeping = schedule, precision, limits, keeping
        self.listeners, self.frozen = listeners, frozen
        self.device, self.memory = next(state.network.parameters()).device, memory
        self.accumulate = Accumulator(
            forward if forward is not None else state.network, state.network, loss=loss, precision=precision,
            scaler=state.scaler, relief=Relief(self.device, memory, on_oom, self.tell),
        )  # fmt: skip
        self.update = Update(state, self.accumulate.relief, self.accumulate.undo)

    def fit(self) -> RunEnded:
        """Train until a limit is reached.

        Raises:
            TrainingError: The loss is not finite.
            MemoryBudgetError: Memory ran out, and nothing more can be saved.
            KeyboardInterrupt: Asked to stop, after ``last.pt`` was written.
        """
        try:
            return self.train()
        except MemoryBudgetError as error:
            if self.update.is_torn:
                raise
            self.save_last()
            raise MemoryBudgetError(f"{error}; nothing is lost, '{self.keeping.last}' goes on from here") from None

    def train(self) -> RunEnded:
        """Train until a limit is reached, or until something fails."""
        position, began = self.state.position, time.perf_counter()
        earlier_seconds = position.seconds
        self.tell(RunStarted(self.limits.epochs, position.epoch, len(self.batches), self.loss.part_names,
                             self.limits.seconds))  # fmt: skip
        reason = "all epochs done"
        with StopRequest() as stop:
            while position.epoch < self.limits.epochs:
                self.train_epoch(position, earlier_seconds - began, stop)
                if stop.asked:
                    self.save_last()
                    self.end("interrupted")
                    raise KeyboardInterrupt
                if (done := self.finish_epoch(position)) is not None:
                    reason = done
                    break
        return self.end(reason)

    def train_epoch(self, position: Position, clock_offset: float, stop: StopRequest) -> None:
        """Take every optimiser step that is left of the epoch, unless asked to stop or out of time."""
        set_training_mode(self.state.network, self.frozen)
        stream = self.batches.epoch(position.epoch, epochs=self.expected_epochs(), start_batch=position.batch)
        epoch_began, earlier = time.perf_counter(), position.epoch_seconds
        for group in self.groups(stream, position):
            lr = self.step(group, position)
            position.seconds = time.perf_counter() + clock_offset
            position.epoch_seconds = earlier + time.perf_counter() - epoch_began
            self.tell(self.describe_step(group[-1], position, lr))
            if stop.asked or (self.limits.seconds is not None and position.seconds >= self.limits.seconds):
                break

    def groups(self, stream: Iterator[TrainBatch], position: Position) -> Iterator[list[TrainBatch]]:
        """Gather the batches that one optimiser step sums."""
        passed = 0
        for size in self.schedule.groups(position.epoch):
            passed += size
            if passed > position.batch and (group := list(islice(stream, size))):
                yield group

    def step(self, group: list[TrainBatch], position: Position) -> float:
        """Sum the loss over a group of batches, take one optimiser step and move the average; return the rate."""
        state, images = self.state, sum(batch.images_BCHW.shape[0] for batch in group)
        parts, normaliser = self.accumulate(group)

        batch = position.batch + len(group)
        passed = position.epoch * len(self.batches) + batch
        lr, bias_lr, momentum = self.schedule.rates(passed, self.progress(position, batch))
        set_rates(state.optimiser, lr, bias_lr, momentum)
        normaliser = normaliser.clamp(min=1.0)
        norm = self.update.finish_gradients((images / normaliser).to(self.device))
        if not state.scaler.is_enabled() and not torch.isfinite(norm):
            self.refuse(group, parts / normaliser)
        self.update.move_weights()

        position.batch = batch  # from here on the step is done
        position.add((parts / normaliser).tolist(), images=images, boxes=sum(len(batch.targets) for batch in group))
        return lr

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
            eval_seconds, position.images / max(position.epoch_seconds, 1e-9), peak_memory_bytes(self.device), is_best,
            self.memory.predicted_bytes if self.memory is not None else 0,
        )  # fmt: skip
        epoch = position.epoch
        position.begin_epoch(epoch + 1)
        if is_best:
            self.keeping.write(self.keeping.best, self.state.payload(resumable=False))
        if self.keeping.every_epochs > 0 and (epoch + 1) % self.keeping.every_epochs == 0:
            self.keeping.write(self.keeping.folder / f"epoch{epoch + 1}.pt", self.state.payload(resumable=False))
        self.tell(event)
        self.save_last()  # at last: a kill before it repeats the epoch, one after it finds nothing missing
        if self.limits.seconds is not None and position.seconds >= self.limits.seconds:
            return "the time is up"
        waited = epoch - position.best_epoch
        if self.evaluate and self.limits.patience and waited >= self.limits.patience:
            return f"no gain for {waited} epochs"
        return None

    def end(self, reason: str) -> RunEnded:
        """Say why the run is over and what it leaves."""
        position = self.state.position
        ended = RunEnded(reason, position.epoch, position.best_epoch, position.seconds,
                         {"best": self.keeping.best, "last": self.keeping.last})  # fmt: skip
        self.tell(ended)
        return ended

    def progress(self, position: Position, batch: int) -> float:
        """Part of the run that is over after so many batches of the epoch; by time when time is limited."""
        if self.limits.seconds is not None:
            return position.seconds / self.limits.seconds
        return (position.epoch + batch / len(self.batches)) / self.limits.epochs

    def expected_epochs(self) -> int:
        """Epochs the run will take: the limit, or an estimate when time decides."""
        position = self.state.position
        if self.limits.seconds is None or position.epoch == 0:
            return self.limits.epochs
        return min(max(round(position.epoch * self.limits.seconds / position.seconds), 1), self.limits.epochs)

    def refuse(self, group: list[TrainBatch], means: torch.Tensor) -> None:
        """Stop at a gradient that is not finite, naming the images; ``last.pt`` of the epoch before stays."""
        losses = ", ".join(f"{n} {v:.3g}" for n, v in zip(self.loss.part_names, means.tolist(), strict=True))
        raise TrainingError(
            f"the gradient is not finite in epoch {self.state.position.epoch + 1}, images number "
            f"{[i for batch in group for i in batch.indices]} (losses: {losses}); lower lr0, or set amp=False"
        )

    def save_last(self) -> None:
        """Write the checkpoint from which the run goes on."""
        self.keeping.write(self.keeping.last, self.state.payload())

    def mean_losses(self, position: Position) -> dict[str, float]:
        """Return the mean losses of the epoch so far."""
        steps = max(position.loss_steps, 1)
        sums = position.loss_sums or [0.0] * len(self.loss.part_names)
        return {name: total / steps for name, total in zip(self.loss.part_names, sums, strict=True)}

    def current_rates(self) -> dict[str, float]:
        """Return the learning rate of each parameter group."""
        return {f"pg{i}": float(group["lr"]) for i, group in enumerate(self.state.optimiser.param_groups)}

    def describe_step(self, batch: TrainBatch, position: Position, lr: float) -> StepDone:
        """Gather what the progress bar shows."""
        height, width = batch.images_BCHW.shape[-2:]
        return StepDone(
            position.epoch, position.batch, self.mean_losses(position), position.boxes, (height, width),
            position.images / max(position.epoch_seconds, 1e-9), peak_memory_bytes(self.device), lr,
            self.memory.predicted_bytes if self.memory is not None else 0,
        )  # fmt: skip

    def tell(self, event: object) -> None:
        """Let every listener hear of an event."""
        for listener in self.listeners:
            listener(event)
