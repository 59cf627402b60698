"""What happens in a run, as values that listeners receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RunStarted:
    """The loop is about to begin."""

    epochs: int
    first_epoch: int
    batches: int
    loss_names: tuple[str, ...]
    seconds_limit: float | None = None


@dataclass(frozen=True)
class StepDone:
    """One optimiser step.

    ``losses`` are means over the epoch so far; ``memory_bytes`` is the measured peak so far, ``predicted_bytes`` the
    plan's, both as in ``EpochDone``.
    """

    epoch: int
    batch: int
    losses: Mapping[str, float]
    boxes: int
    size_hw: tuple[int, int]
    images_per_second: float
    memory_bytes: int
    lr: float
    predicted_bytes: int = 0


@dataclass(frozen=True)
class EpochDone:
    """One epoch with its evaluation.

    Attributes:
        epoch: 0-based.
        losses: Mean training losses.
        metrics: Figures of the evaluation, ``fitness`` among them; empty when there was none.
        lr: Learning rates at the end of the epoch by group.
        seconds: Wall time of training, and of evaluation.
        images_per_second: Training throughput.
        memory_bytes: Measured peak: reserved on a GPU, resident size of the process on a CPU.
        predicted_bytes: What the plan predicted for it: reserved on a GPU, live tensors on a CPU; 0 without a plan.
        is_best: Whether this is the best epoch so far.
    """

    epoch: int
    losses: Mapping[str, float]
    metrics: Mapping[str, float]
    lr: Mapping[str, float]
    seconds: float
    eval_seconds: float
    images_per_second: float
    memory_bytes: int
    is_best: bool
    predicted_bytes: int = 0


@dataclass(frozen=True)
class EpochLoaded:
    """Where the loader's time went in one epoch of training, over all its processes; ``wait_s`` the trainer waited.

    A loader begins the next epoch ahead: its first batches count for the epoch in which they were made.
    """

    epoch: int
    images: int
    decoded: int
    decode_s: float
    augment_s: float
    collate_s: float
    wait_s: float


@dataclass(frozen=True)
class OutOfMemory:
    """Memory ran out, nothing was lost, and the run goes on.

    Attributes:
        where: ``"a training step"``, ``"the optimiser's step"``, ``"validation"`` or ``"the rehearsal"``.
        reason: What the allocator said.
        plan: What is done from now on.
    """

    where: str
    reason: str
    plan: str


@dataclass(frozen=True)
class StepSkipped:
    """A step was left out because its gradient was not finite; ``why`` names images and layer."""

    epoch: int
    batch: int
    why: str


@dataclass(frozen=True)
class RunEnded:
    """The loop is over. ``reason`` is a sentence part: ``"all epochs done"``, ``"interrupted"`` ..."""

    reason: str
    epochs_done: int
    best_epoch: int
    seconds: float
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Notice:
    """Something the user should know."""

    message: str


Event = RunStarted | StepDone | EpochDone | EpochLoaded | OutOfMemory | StepSkipped | RunEnded | Notice
