"""YOLO11: n, s, m, l, x.

Facts: channels, repeats and wiring as published with the models (Ultralytics YOLO11, 2024); blocks after CSPNet
(arXiv:1911.11929), ELAN (arXiv:2211.04800) and SPP (arXiv:1406.4729). Written from that description, not from its code.

Shape letters: B batch, C channels, H W feature map, N heads, T tokens, D head dimension.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import interpolate

from ullage.nn.attention import FusedAttention, to_map, to_tokens
from ullage.nn.detector import Detector, Scale
from ullage.nn.head import DetectHead
from ullage.nn.layers import C3k2, ConvUnit, depthwise_unit, unit_range
from ullage.nn.outputs import RawDetections


class SPPF(nn.Module):
    """Spatial pyramid pooling by three chained max-poolings."""

    def __init__(self, channels: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = channels // 2
        self.cv1 = ConvUnit(channels, hidden)
        self.cv2 = ConvUnit(4 * hidden, channels)
        self.pool = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        kept = [self.cv1(x)]
        for _ in range(3):
            kept.append(self.pool(kept[-1]))
        return self.cv2(torch.cat(kept, 1))


class PSAAttention(nn.Module):
    """Multi-head self-attention over all tokens, with a depthwise convolution as position encoding.

    The ``qkv`` channels of one head lie together: [q (D / 2) | k (D / 2) | v (D)].
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = max(dim // 64, 1)
        self.value_dim = dim // self.heads
        self.key_dim = self.value_dim // 2
        self.qkv = ConvUnit(dim, dim + 2 * self.key_dim * self.heads, activate=False)
        self.proj = ConvUnit(dim, dim, activate=False)
        self.pe = depthwise_unit(dim, dim, 3, activate=False)
        self.attend = FusedAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        size_hw = (x.shape[2], x.shape[3])
        q, k, v = to_tokens(self.qkv(x), self.heads).split((self.key_dim, self.key_dim, self.value_dim), -1)
        return self.proj(to_map(self.attend(q, k, v), size_hw) + self.pe(to_map(v, size_hw)))


class PSABlock(nn.Module):
    """Attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn = PSAAttention(dim)
        self.ffn = nn.Sequential(ConvUnit(dim, 2 * dim), ConvUnit(2 * dim, dim, activate=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    """Cross-stage partial block whose second half passes through attention blocks."""

    def __init__(self, channels: int, repeats: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.cv1 = ConvUnit(channels, 2 * hidden)
        self.cv2 = ConvUnit(2 * hidden, channels)
        self.m = nn.Sequential(*(PSABlock(hidden) for _ in range(repeats)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        kept, attended = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat((kept, self.m(attended)), 1))


class YOLO11(Detector):
    """The network; ``scale`` chooses its size, ``num_classes`` its head."""

    block_names: ClassVar[dict[int, str]] = {
        0: "stem", 1: "down2", 2: "stage2", 3: "down3", 4: "stage3", 5: "down4", 6: "stage4", 7: "down5", 8: "stage5",
        9: "pool5", 10: "attention5", 13: "top_down4", 16: "top_down3", 17: "rise4", 19: "bottom_up4", 20: "rise5",
        22: "bottom_up5", 23: "head",
    }  # fmt: skip

    def __init__(self, scale: Scale, num_classes: int) -> None:
        super().__init__()
        c64, c128, c256, c512, c1024 = (scale.channels(c) for c in (64, 128, 256, 512, 1024))
        twice = scale.repeats(2)
        big = scale.letter in "mlx"  # every C3k2 of the larger scales nests C3k blocks

        self.stem = ConvUnit(3, c64, 3, 2)
        self.down2 = ConvUnit(c64, c128, 3, 2)
        self.stage2 = C3k2(c128, c256, twice, nested=big, expansion=0.25)
        self.down3 = ConvUnit(c256, c256, 3, 2)
        self.stage3 = C3k2(c256, c512, twice, nested=big, expansion=0.25)
        self.down4 = ConvUnit(c512, c512, 3, 2)
        self.stage4 = C3k2(c512, c512, twice, nested=True)
        self.down5 = ConvUnit(c512, c1024, 3, 2)
        self.stage5 = C3k2(c1024, c1024, twice, nested=True)
        self.pool5 = SPPF(c1024)
        self.attention5 = C2PSA(c1024, twice)

        self.top_down4 = C3k2(c1024 + c512, c512, twice, nested=big)
        self.top_down3 = C3k2(c512 + c512, c256, twice, nested=big)
        self.rise4 = ConvUnit(c256, c256, 3, 2)
        self.bottom_up4 = C3k2(c256 + c512, c512, twice, nested=big)
        self.rise5 = ConvUnit(c512, c512, 3, 2)
        self.bottom_up5 = C3k2(c512 + c1024, c1024, twice, nested=True)
        self.head = DetectHead(num_classes, (c256, c512, c1024), self.strides)

    def forward(self, images_B3HW: torch.Tensor) -> RawDetections:
        """Images, RGB, bytes or floats in [0, 1], height and width multiples of 32, to raw detections."""
        c3 = self.stage3(self.down3(self.stage2(self.down2(self.stem(unit_range(images_B3HW))))))
        c4 = self.stage4(self.down4(c3))
        c5 = self.attention5(self.pool5(self.stage5(self.down5(c4))))

        # Each map is let go after its last use: held until the end, they would add to the peak.
        t4 = self.top_down4(torch.cat((interpolate(c5, scale_factor=2.0), c4), 1))
        del c4
        p3 = self.top_down3(torch.cat((interpolate(t4, scale_factor=2.0), c3), 1))
        del c3
        p4 = self.bottom_up4(torch.cat((self.rise4(p3), t4), 1))
        del t4
        p5 = self.bottom_up5(torch.cat((self.rise5(p4), c5), 1))
        del c5
        return self.head((p3, p4, p5))
