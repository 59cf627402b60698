"""What a predictor is.

Shape letters: B batch, H, W the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from ullage.runtime.outputs import Suppression
from ullage.runtime.postprocess import Outputs


class Predictor(Protocol):
    """Anything that turns images into raw detections: a PyTorch network, or a file in another runtime."""

    @property
    def names(self) -> Mapping[int, str]:
        """Class name by id."""
        ...

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        ...

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size of the input when the user names none."""
        ...

    @property
    def fixed_size(self) -> bool:
        """Whether ``size_hw`` is the only size that is taken."""
        ...

    @property
    def suppression(self) -> Suppression | None:
        """Thresholds that are fixed inside; None when every anchor is returned."""
        ...

    def __call__(self, images_B3HW: torch.Tensor) -> Outputs:
        """Run uint8 RGB images on the host through the network; returns when the result is there."""
        ...
