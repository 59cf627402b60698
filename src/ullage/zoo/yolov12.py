"""YOLOv12 (arXiv:2502.12524): n, s, m, l, x, in both releases.

``YOLOv12`` is the authors' "turbo" release, the default; ``YOLOv12First`` is the first release (v1.0). Written from the
paper and the published tables, not from their code.

Shape letters: B batch, C channels, H W feature map, N heads, T tokens (row-major), D head dimension.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import interpolate

from ullage.errors import ConfigError
from ullage.nn.attention import FusedAttention, to_map, to_tokens
from ullage.nn.detector import Detector, Scale
from ullage.nn.head import DetectHead
from ullage.nn.layers import C3k, C3k2, ConvUnit, depthwise_unit, unit_range
from ullage.nn.outputs import RawDetections

HEAD_DIM = 32


class AreaAttention(nn.Module):
    """Attention inside ``area`` groups of consecutive tokens (section 3.2 of the paper).

    ``qk`` is [q | k], each laid out as channel = head * 32 + d; ``v`` has a convolution of its own.
    """

    pe_kernel: ClassVar[int] = 5

    def __init__(self, dim: int, area: int) -> None:
        super().__init__()
        self.area, self.heads = area, dim // HEAD_DIM
        self.add_projections(dim)
        self.proj = ConvUnit(dim, dim, activate=False)
        self.pe = depthwise_unit(dim, dim, self.pe_kernel, activate=False)
        self.attend = FusedAttention()

    def add_projections(self, dim: int) -> None:
        """Add the convolutions that make queries, keys and values."""
        self.qk = ConvUnit(dim, 2 * dim, activate=False)
        self.v = ConvUnit(dim, dim, activate=False)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, C, H, W) to q, k, v of shape (B, N, T, D)."""
        q, k = (to_tokens(part, self.heads) for part in self.qk(x).chunk(2, 1))
        return q, k, to_tokens(self.v(x), self.heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W); raises ConfigError when H x W does not divide into the areas."""
        size_hw = (x.shape[2], x.shape[3])
        q, k, v = self.project(x)
        return self.proj(to_map(self.attend_in_areas(q, k, v), size_hw) + self.pe(to_map(v, size_hw)))

    def attend_in_areas(self, *qkv_BNTD: torch.Tensor) -> torch.Tensor:
        """Attend with the areas as independent batch entries: (B, N, area * t, D) as (B * area, N, t, D) and back."""
        tokens = qkv_BNTD[0].shape[2]
        if self.area == 1:
            return self.attend(*qkv_BNTD)
        if tokens % self.area:
            raise ConfigError(
                f"area attention cuts a feature map into {self.area} equal parts, but this one has {tokens} cells; "
                "use an image size that is a multiple of 32 in both directions"
            )
        areas = (x.unflatten(2, (self.area, -1)).transpose(1, 2).flatten(0, 1) for x in qkv_BNTD)
        return self.attend(*areas).unflatten(0, (-1, self.area)).transpose(1, 2).flatten(2, 3)


class FirstAreaAttention(AreaAttention):
    """Area attention of the first release: one ``qkv`` convolution, per head [q (32) | k (32) | v (32)]."""

    pe_kernel: ClassVar[int] = 7

    def add_projections(self, dim: int) -> None:
        """Add the convolution that makes queries, keys and values."""
        self.qkv = ConvUnit(dim, 3 * dim, activate=False)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, C, H, W) to q, k, v of shape (B, N, T, D)."""
        q, k, v = to_tokens(self.qkv(x), self.heads).split(HEAD_DIM, -1)
        return q, k, v


class AreaBlock(nn.Module):
    """Area attention, then a two-layer perceptron, each added to its input."""

    def __init__(self, attention: type[AreaAttention], dim: int, area: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attn = attention(dim, area)
        self.mlp = nn.Sequential(ConvUnit(dim, hidden), ConvUnit(hidden, dim, activate=False))
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # PyTorch looks at what it draws
                nn.init.trunc_normal_(module.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class AttentionStage(nn.Module):
    """R-ELAN with attention (section 3.3): pairs of area blocks, every intermediate kept, optionally residual.

    Args:
        attention: Kind of area attention.
        channels: Input and output channels.
        repeats: Pairs of area blocks in the chain.
        area: Areas of each attention.
        mlp_ratio: Width of the perceptrons.
        residual: Add ``gamma`` times the result to the input; gamma starts at .01.
    """

    def __init__(
        self,
        attention: type[AreaAttention],
        channels: int,
        repeats: int,
        *,
        area: int,
        mlp_ratio: float,
        residual: bool,
    ) -> None:
        super().__init__()
        hidden = channels // 2
        self.cv1 = ConvUnit(channels, hidden)
        self.cv2 = ConvUnit((1 + repeats) * hidden, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 0.01)) if residual else None
        self.m = nn.ModuleList(
            nn.Sequential(*(AreaBlock(attention, hidden, area, mlp_ratio) for _ in range(2))) for _ in range(repeats)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        kept = [self.cv1(x)]
        for pair in self.m:
            kept.append(pair(kept[-1]))
        y = self.cv2(torch.cat(kept, 1))
        return y if self.gamma is None else x + self.gamma[:, None, None] * y


class ConvStage(nn.Module):
    """The same without attention, for the neck: a chain of C3k blocks, every intermediate kept."""

    def __init__(self, c_in: int, c_out: int, repeats: int) -> None:
        super().__init__()
        hidden = c_out // 2
        self.cv1 = ConvUnit(c_in, hidden)
        self.cv2 = ConvUnit((1 + repeats) * hidden, c_out)
        self.m = nn.ModuleList(C3k(hidden, hidden) for _ in range(repeats))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) to (B, c_out, H, W)."""
        kept = [self.cv1(x)]
        for block in self.m:
            kept.append(block(kept[-1]))
        return self.cv2(torch.cat(kept, 1))


class YOLOv12(Detector):
    """The network of the turbo release; ``scale`` chooses its size, ``num_classes`` its head."""

    block_names: ClassVar[dict[int, str]] = {
        0: "stem", 1: "down2", 2: "stage2", 3: "down3", 4: "stage3", 5: "down4", 6: "stage4", 7: "down5", 8: "stage5",
        11: "top_down4", 14: "top_down3", 15: "rise4", 17: "bottom_up4", 18: "rise5", 20: "bottom_up5", 21: "head",
    }  # fmt: skip
    attention: ClassVar[type[AreaAttention]] = AreaAttention
    early_groups: ClassVar[tuple[int, int]] = (2, 4)
    residual_mlp_ratio: ClassVar[float] = 1.5

    def __init__(self, scale: Scale, num_classes: int) -> None:
        super().__init__()
        c64, c128, c256, c512, c1024 = (scale.channels(c) for c in (64, 128, 256, 512, 1024))
        twice, four_times = scale.repeats(2), scale.repeats(4)
        big = scale.letter in "mlx"  # every C3k2 of the larger scales nests C3k blocks
        residual = scale.letter in "lx"
        mlp_ratio = self.residual_mlp_ratio if residual else 2.0

        self.stem = ConvUnit(3, c64, 3, 2)
        self.down2 = ConvUnit(c64, c128, 3, 2, groups=self.early_groups[0])
        self.stage2 = C3k2(c128, c256, twice, nested=big, expansion=0.25)
        self.down3 = ConvUnit(c256, c256, 3, 2, groups=self.early_groups[1])
        self.stage3 = C3k2(c256, c512, twice, nested=big, expansion=0.25)
        self.down4 = ConvUnit(c512, c512, 3, 2)
        self.stage4 = AttentionStage(self.attention, c512, four_times, area=4, mlp_ratio=mlp_ratio, residual=residual)
        self.down5 = ConvUnit(c512, c1024, 3, 2)
        self.stage5 = AttentionStage(self.attention, c1024, four_times, area=1, mlp_ratio=mlp_ratio, residual=residual)

        self.top_down4 = ConvStage(c1024 + c512, c512, twice)
        self.top_down3 = ConvStage(c512 + c512, c256, twice)
        self.rise4 = ConvUnit(c256, c256, 3, 2)
        self.bottom_up4 = ConvStage(c256 + c512, c512, twice)
        self.rise5 = ConvUnit(c512, c512, 3, 2)
        self.bottom_up5 = C3k2(c512 + c1024, c1024, twice, nested=True)
        self.head = DetectHead(num_classes, (c256, c512, c1024), self.strides)

    def forward(self, images_B3HW: torch.Tensor) -> RawDetections:
        """Images, RGB, bytes or floats in [0, 1], height and width multiples of 32, to raw detections."""
        c3 = self.stage3(self.down3(self.stage2(self.down2(self.stem(unit_range(images_B3HW))))))
        c4 = self.stage4(self.down4(c3))
        c5 = self.stage5(self.down5(c4))

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


class YOLOv12First(YOLOv12):
    """The network of the first release: no early groups, joint projections, a 7 x 7 position encoding."""

    attention: ClassVar[type[AreaAttention]] = FirstAreaAttention
    early_groups: ClassVar[tuple[int, int]] = (1, 1)
    residual_mlp_ratio: ClassVar[float] = 1.2
