"""The anchor-free detection head with distance distributions (arXiv:2006.04388) and a depthwise class branch."""

from __future__ import annotations

import math

import torch
from torch import nn

from ullage.nn.layers import ConvUnit, depthwise_unit
from ullage.nn.outputs import RawDetections, anchor_grid

BINS_PER_SIDE = 16


class DetectHead(nn.Module):
    """Box bins and class logits from three feature maps.

    Args:
        num_classes: K.
        channels: Channels of P3, P4, P5.
        strides: Pixels a cell of each level.
    """

    def __init__(self, num_classes: int, channels: tuple[int, ...], strides: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        self.num_classes, self.strides = num_classes, strides
        box_width = max(16, channels[0] // 4, 4 * BINS_PER_SIDE)
        class_width = max(channels[0], min(num_classes, 100))
        self.cv2 = nn.ModuleList(_box_branch(c, box_width) for c in channels)
        self.cv3 = nn.ModuleList(
            _class_branch(c, class_width, num_classes, stride) for c, stride in zip(channels, strides, strict=True)
        )
        self.dfl = FixedBins()

    def forward(self, maps: tuple[torch.Tensor, ...]) -> RawDetections:
        """Feature maps (B, C, H, W) of P3, P4, P5 to raw detections, anchors in that order, row-major."""
        bins_BAR = torch.cat([_anchors_first(branch(x)) for branch, x in zip(self.cv2, maps, strict=True)], 1)
        logits_BAK = torch.cat([_anchors_first(branch(x)) for branch, x in zip(self.cv3, maps, strict=True)], 1)
        sizes_hw = [(x.shape[2], x.shape[3]) for x in maps]
        centres_A2, strides_A = anchor_grid(sizes_hw, self.strides, maps[0].device)
        return RawDetections(bins_BAR, logits_BAK, centres_A2, strides_A)


def _box_branch(c_in: int, width: int) -> nn.Sequential:
    last = nn.Conv2d(width, 4 * BINS_PER_SIDE, 1)
    nn.init.ones_(last.bias)  # pyright: ignore[reportArgumentType]
    return nn.Sequential(ConvUnit(c_in, width, 3), ConvUnit(width, width, 3), last)


def _class_branch(c_in: int, width: int, num_classes: int, stride: int) -> nn.Sequential:
    """Its bias starts from few objects: five in an image of 640 x 640 pixels."""
    last = nn.Conv2d(width, num_classes, 1)
    nn.init.constant_(last.bias, math.log(5 / num_classes / (640 / stride) ** 2))  # pyright: ignore[reportArgumentType]
    return nn.Sequential(
        nn.Sequential(depthwise_unit(c_in, c_in, 3), ConvUnit(c_in, width)),
        nn.Sequential(depthwise_unit(width, width, 3), ConvUnit(width, width)),
        last,
    )


class FixedBins(nn.Module):
    """The bin values 0 ... 15 as published checkpoints store them: constants that are counted as parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(BINS_PER_SIDE, 1, 1, bias=False).requires_grad_(False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.arange(float(BINS_PER_SIDE)).view(1, -1, 1, 1))


def _anchors_first(map_BCHW: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, H * W, C); a view when the map is channels-last."""
    return map_BCHW.flatten(2).transpose(1, 2)
