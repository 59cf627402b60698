"""What the loader hands over."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ullage.geometry.letterbox import Letterbox
from ullage.geometry.targets import Targets


@dataclass(frozen=True)
class Batch:
    """Images and what they show, still on the host.

    Attributes:
        images_BCHW: uint8 RGB; memory is channels-last, as images decode.
        targets: Boxes in pixels of the network's input. Crowd regions are not among them.
        indices: Index of each image in its ``DetectionSet`` (of the first tile, for a mosaic).
        letterboxes: How each image was fitted, for the way back; empty for augmented images.
    """

    images_BCHW: torch.Tensor
    targets: Targets
    indices: tuple[int, ...]
    letterboxes: tuple[Letterbox, ...] = ()
