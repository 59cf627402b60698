"""The network as exporters see it: a folded copy, elementary attention, boxes decoded.

Shape letters: B batch, A anchors, K classes, H W the input.
"""

from __future__ import annotations

import torch
from torch import nn

from ullage.nn.attention import ExplicitAttention, set_attention
from ullage.nn.fold import fold_batchnorm
from ullage.nn.outputs import decode_boxes, decode_scores


class ExportGraph(nn.Module):
    """float32 images in [0, 1] to float32 boxes and scores of every anchor, on a copy of a network.

    BatchNorm is folded into the convolutions, and attention is written in elementary operators: fused ones have no
    counterpart in most runtimes.

    Args:
        network: Maps images to ``RawDetections``; it is not changed.
        half: Compute in float16, decode in float32.
    """

    def __init__(self, network: nn.Module, *, half: bool = False) -> None:
        super().__init__()
        copied = fold_batchnorm(network).cpu().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        set_attention(copied, ExplicitAttention)
        self.dtype = torch.float16 if half else torch.float32
        self.network = copied.to(self.dtype)

    def forward(self, images_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (boxes_xyxy_px_BA4, scores_BAK)."""
        raw = self.network(images_B3HW.to(self.dtype))
        return decode_boxes(raw), decode_scores(raw)
