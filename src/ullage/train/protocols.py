"""What the trainer needs of the other rooms. Shape letters: B batch, C channels, H W size, P parts of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ullage.geometry.targets import Targets


class LossSum(Protocol):
    """Un-normalised sums over some images; sums of several splits add up to the sum of the whole batch."""

    @property
    def total(self) -> torch.Tensor:
        """Weighted sum of all parts, a scalar with gradient."""
        ...

    @property
    def normaliser(self) -> torch.Tensor:
        """What the total is divided by once all sums are in (at least 1), a scalar without gradient."""
        ...

    @property
    def parts(self) -> torch.Tensor:
        """Weighted sums of the parts, shape (P,), without gradient."""
        ...


class Loss(Protocol):
    """Judges raw outputs against targets."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts, in the order of ``LossSum.parts``."""
        ...

    def __call__(self, raw: Any, targets: Targets) -> LossSum:
        """Return the sums for the images of one micro-batch."""
        ...


class TrainBatch(Protocol):
    """One batch on the host."""

    @property
    def images_BCHW(self) -> torch.Tensor:
        """uint8 RGB."""
        ...

    @property
    def targets(self) -> Targets:
        """Boxes in pixels of ``images_BCHW``."""
        ...

    @property
    def indices(self) -> tuple[int, ...]:
        """Which images of the data set these are."""
        ...


class Batches(Protocol):
    """The training images of every epoch, in an order that depends on the seed and the epoch alone."""

    def __len__(self) -> int:
        """Batches an epoch."""
        ...

    def epoch(self, epoch: int, *, epochs: int, start_batch: int = 0) -> Iterator[TrainBatch]:
        """Yield the batches of an epoch, from ``start_batch`` on."""
        ...


class MemoryControl(Protocol):
    """The memory plan in force."""

    @property
    def micro_batch(self) -> int | None:
        """Images of one forward pass at most; None takes each batch whole."""
        ...

    @property
    def predicted_bytes(self) -> int:
        """Peak that was predicted for the plan in force; 0 when none was."""
        ...

    @property
    def planned_bytes(self) -> int:
        """Peak that was predicted for the plan that the run began with; 0 when none was."""
        ...

    def tighten(self) -> str | None:
        """Put the next more frugal plan in force and say what it is; None when there is none left."""
        ...


class Evaluate(Protocol):
    """Judges a network on the validation images."""

    def __call__(self, network: nn.Module) -> Mapping[str, float]:
        """Return named figures; ``fitness`` decides which epoch is the best."""
        ...


class WriteCheckpoint(Protocol):
    """Writes a checkpoint so that a crash at any instant leaves the old file or the new one, whole."""

    def __call__(self, path: Path, payload: Mapping[str, Any]) -> None:
        """Write; raises StorageError when the disk is full or the folder is read-only."""
        ...


class Listener(Protocol):
    """Hears what happens; sees values, never the trainer."""

    def __call__(self, event: Any) -> None:
        """Take note of one of the dataclasses of ``train.events``."""
        ...
