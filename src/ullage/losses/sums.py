"""What a loss returns: sums and the normaliser that divides them, so that any split of a batch adds up to the whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LossSum:
    """Loss of some images, not yet divided by anything.

    Gradients of ``total``, added over micro-batches and ranks and divided once by ``max(sum of normalisers, 1)``, are
    those of the whole batch. Dividing each part by its own normaliser first would not be.

    Attributes:
        total: Scalar with gradient, the sum of the parts.
        normaliser: Scalar without gradient, the sum of target scores; 0 when nothing is assigned, never clamped here.
        parts: Float32, shape (3,): box, class and distribution loss with their gains, without gradient.
        positives: Number of anchors that were assigned a box.
    """

    total: torch.Tensor
    normaliser: torch.Tensor
    parts: torch.Tensor
    positives: int

    def __add__(self, other: LossSum) -> LossSum:
        """Return the loss of the images of both."""
        return LossSum(
            self.total + other.total,
            self.normaliser + other.normaliser,
            self.parts + other.parts,
            self.positives + other.positives,
        )

    def to(self, device: torch.device | str) -> LossSum:
        """Return the same sums on a device, without gradient."""
        total, normaliser, parts = (t.detach().to(device) for t in (self.total, self.normaliser, self.parts))
        return LossSum(total, normaliser, parts, self.positives)

    def mean(self) -> torch.Tensor:
        """Return ``total / max(normaliser, 1)``, with gradient: the loss of these images taken as a whole batch."""
        return self.total / self.normaliser.clamp(min=1)

    def mean_parts(self) -> torch.Tensor:
        """Return ``parts / max(normaliser, 1)``: the figures that progress bars and ``results.csv`` show."""
        return self.parts / self.normaliser.clamp(min=1)
