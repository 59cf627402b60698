"""Convolutional blocks that several families share.

Shape letters: B batch, C channels, H W height and width of a feature map. Attribute names (``cv1``, ``m``, ``bn`` ...)
are those of the published checkpoints, so that an adapter only renames the blocks themselves.
"""

from __future__ import annotations

import math

import torch
from torch import nn

BN_EPS = 1e-3
BN_MOMENTUM = 0.03


class ConvUnit(nn.Module):
    """Convolution without bias, BatchNorm, activation.

    Args:
        c_in: Input channels.
        c_out: Output channels.
        kernel: Kernel size; the padding keeps the size at stride 1.
        stride: Stride.
        groups: Convolution groups.
        activate: False leaves the activation out.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, activate: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = nn.SiLU() if activate else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
        return self.act(self.bn(self.conv(x)))


def unit_range(images_B3HW: torch.Tensor) -> torch.Tensor:
    """Bytes to floats in [0, 1]; floats are that already.

    Networks do it themselves: the memory engine sees it there, and keeps a quarter of the bytes for the first layer.
    """
    return images_B3HW.float() / 255 if images_B3HW.dtype is torch.uint8 else images_B3HW


def depthwise_unit(c_in: int, c_out: int, kernel: int, *, activate: bool = True) -> ConvUnit:
    """Return a unit with as many groups as both channel counts allow."""
    return ConvUnit(c_in, c_out, kernel, groups=math.gcd(c_in, c_out), activate=activate)


class Bottleneck(nn.Module):
    """Two convolutions, with the input added when the channels allow (arXiv:1512.03385)."""

    def __init__(self, c_in: int, c_out: int, *, shortcut: bool = True, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = ConvUnit(c_in, hidden, 3)
        self.cv2 = ConvUnit(hidden, c_out, 3)
        self.adds = shortcut and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) to (B, c_out, H, W)."""
        return x + self.cv2(self.cv1(x)) if self.adds else self.cv2(self.cv1(x))


class C3k(nn.Module):
    """Cross-stage partial block with three 1x1 convolutions around a chain of bottlenecks (arXiv:1911.11929)."""

    def __init__(self, c_in: int, c_out: int, repeats: int = 2) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = ConvUnit(c_in, hidden)
        self.cv2 = ConvUnit(c_in, hidden)
        self.cv3 = ConvUnit(2 * hidden, c_out)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, expansion=1.0) for _ in range(repeats)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) to (B, c_out, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3k2(nn.Module):
    """Cross-stage partial block that keeps every intermediate result (ELAN, arXiv:2211.04800).

    Args:
        c_in: Input channels.
        c_out: Output channels.
        repeats: Inner blocks in the chain.
        nested: The inner block is a ``C3k`` instead of a ``Bottleneck``.
        expansion: Width of the inner blocks as a part of ``c_out``.
    """

    def __init__(self, c_in: int, c_out: int, repeats: int, *, nested: bool, expansion: float = 0.5) -> None:
        super().__init__()
        hidden = int(c_out * expansion)
        self.cv1 = ConvUnit(c_in, 2 * hidden)
        self.cv2 = ConvUnit((2 + repeats) * hidden, c_out)
        self.m = nn.ModuleList(C3k(hidden, hidden) if nested else Bottleneck(hidden, hidden) for _ in range(repeats))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) to (B, c_out, H, W)."""
        kept = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            kept.append(block(kept[-1]))
        return self.cv2(torch.cat(kept, 1))
