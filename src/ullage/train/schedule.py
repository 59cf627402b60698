"""Learning rate, momentum and accumulation as pure functions of the position in the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ullage.config import OptimSettings

LEAST_WARMUP_BATCHES = 100


@dataclass(frozen=True)
class OptimChoice:
    """The optimiser after ``auto`` was decided."""

    kind: Literal["SGD", "AdamW"]
    lr0: float
    momentum: float


def choose_optimiser(settings: OptimSettings, *, images: int, batch: int, num_classes: int) -> OptimChoice:
    """Decide ``optimizer="auto"``: AdamW for runs under 10,000 nominal steps, else SGD; lr0 and momentum follow."""
    if settings.optimizer != "auto":
        return OptimChoice(settings.optimizer, settings.lr0, settings.momentum)
    steps = math.ceil(images / max(batch, settings.nbs)) * settings.epochs
    if steps < 10_000:
        return OptimChoice("AdamW", round(0.002 * 5 / (4 + num_classes), 6), 0.9)
    return OptimChoice("SGD", 0.01, 0.9)


@dataclass(frozen=True)
class Schedule:
    """What the optimiser is told at each moment.

    Attributes:
        settings: The recipe.
        choice: The optimiser it runs with.
        batch: Images a batch.
        batches: Batches an epoch.
    """

    settings: OptimSettings
    choice: OptimChoice
    batch: int
    batches: int

    @property
    def accumulate(self) -> int:
        """Batches an optimiser step after the warm-up: up to the nominal batch."""
        return max(round(self.settings.nbs / self.batch), 1)

    @property
    def weight_decay(self) -> float:
        """Weight decay, scaled by the images of a step against the nominal batch."""
        return self.settings.weight_decay * self.batch * self.accumulate / self.settings.nbs

    @property
    def warmup_batches(self) -> int:
        """Batches of warm-up: at least 100, at most half of the run."""
        if self.settings.warmup_epochs == 0:
            return 0
        wanted = max(round(self.settings.warmup_epochs * self.batches), LEAST_WARMUP_BATCHES)
        return min(wanted, self.batches * self.settings.epochs // 2)

    def decay(self, progress: float) -> float:
        """Learning rate as a part of lr0; ``progress`` in [0, 1] is the part of the run that is over."""
        progress, lrf = min(max(progress, 0.0), 1.0), self.settings.lrf
        if self.settings.cos_lr:
            return lrf + (1 - lrf) * (1 + math.cos(math.pi * progress)) / 2
        return lrf + (1 - lrf) * (1 - progress)

    def rates(self, batch_number: int, progress: float) -> tuple[float, float, float]:
        """Return ``(lr, lr of the biases, momentum)`` for the step that ends with this batch of the whole run."""
        target = self.choice.lr0 * self.decay(progress)
        warm = min(batch_number / self.warmup_batches, 1.0) if self.warmup_batches else 1.0
        bias_start, momentum_start = self.settings.warmup_bias_lr, self.settings.warmup_momentum
        return (
            target * warm,
            bias_start + (target - bias_start) * warm,
            momentum_start + (self.choice.momentum - momentum_start) * warm,
        )

    def groups(self, epoch: int) -> list[int]:
        """Split the batches of an epoch into optimiser steps: how many batches each step sums.

        During the warm-up a step grows from one batch to ``accumulate``; afterwards steps are as even as the epoch
        allows and never exceed the nominal batch.
        """
        sizes: list[int] = []
        done = 0
        while done < self.batches:
            number = epoch * self.batches + done
            left = self.batches - done
            if number < self.warmup_batches:
                size = round(1 + (self.accumulate - 1) * number / self.warmup_batches)
                sizes.append(min(size, left))
            else:
                steps = math.ceil(left / self.accumulate)
                sizes += [left // steps + (i < left % steps) for i in range(steps)]
            done = sum(sizes)
        return sizes
