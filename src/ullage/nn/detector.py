"""What every detector of the zoo is: a module that turns images into raw detections, and knows its blocks by number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ullage.nn.head import DetectHead
from ullage.nn.outputs import RawDetections


@dataclass(frozen=True)
class Scale:
    """Compound scaling of a family: depth multiplies repeats, width multiplies channels (after the cap)."""

    letter: str
    depth: float
    width: float
    max_channels: int

    def channels(self, base: int) -> int:
        """Scale a channel count and round it up to a multiple of 8."""
        return -int(-min(base, self.max_channels) * self.width // 8) * 8

    def repeats(self, base: int) -> int:
        """Scale a repeat count, at least 1."""
        return max(round(base * self.depth), 1) if base > 1 else base


class Detector(nn.Module):
    """Base of the networks.

    Attributes:
        block_names: Attribute of each block by its number in the published tables; ``freeze=n`` counts by these, and
            official checkpoints name their tensors by them. Numbers without parameters (upsample, concat) are left out.
        strides: Pixels a cell of each output level.
        head: The detection head, last of the blocks.
    """

    block_names: ClassVar[dict[int, str]] = {}
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    head: DetectHead

    @property
    def num_classes(self) -> int:
        """Number of classes that the head tells apart."""
        return self.head.num_classes

    def forward(self, images_B3HW: torch.Tensor) -> RawDetections:
        """Images, RGB, bytes or floats in [0, 1], height and width multiples of 32, to raw detections."""
        raise NotImplementedError

    def blocks(self) -> dict[int, nn.Module]:
        """Return the blocks by number, in the order in which images pass through them."""
        return {number: getattr(self, name) for number, name in self.block_names.items()}
