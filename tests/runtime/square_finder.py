"""A detector whose answers are known: it finds white and red squares of 16 pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ullage.nn.outputs import RawDetections, anchor_grid

NAMES = ("white square", "red square")


class SquareFinder(nn.Module):
    """One convolution that averages each 8 x 8 cell, and logits that are positive where a cell is white (or red)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 8, stride=8, groups=3, bias=False)
        self.bn = nn.BatchNorm2d(3, eps=1e-3)
        nn.init.constant_(self.conv.weight, 1 / 64)
        # Statistics other than 0 and 1, undone by the affine part: folding must get both right.
        self.bn.running_mean.fill_(0.4)
        self.bn.running_var.fill_(0.25)
        nn.init.constant_(self.bn.weight, float(torch.tensor(0.251).sqrt()))
        nn.init.constant_(self.bn.bias, 0.4)
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images_B3HW: torch.Tensor) -> RawDetections:
        self.calls.append(tuple(images_B3HW.shape))
        red, green, blue = self.bn(self.conv(images_B3HW)).unbind(1)
        height, width = red.shape[1:]
        logits = torch.stack((red + green + blue - 2.7, red - green - blue - 0.7), -1).flatten(1, 2) * 20
        bins = torch.full((*logits.shape[:2], 4, 4), -20.0, dtype=logits.dtype)
        bins[..., 1] = 20.0  # every side is one cell away: boxes of 16 x 16 around the cell's centre
        centres, strides = anchor_grid([(height, width)], (8,), images_B3HW.device)
        return RawDetections(bins.flatten(2), logits, centres, strides)


def scene(
    height: int = 64, width: int = 64, *, white: tuple[int, int] | None = None, red: tuple[int, int] | None = None
) -> np.ndarray:
    """A dark picture; a white or red cell of 8 pixels at (top, left)."""
    image = np.full((height, width, 3), 20, np.uint8)
    for corner, colour in ((white, (255, 255, 255)), (red, (255, 0, 0))):
        if corner:
            image[corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] = colour
    return image
