"""The network as exporters see it: a folded copy, elementary attention, boxes decoded.

Shape letters: B batch, A anchors, K classes, H W the input.
"""

from __future__ import annotations

import torch
from torch import nn

from ullage.nn.attention import ExplicitAttention, set_attention
from ullage.nn.fold import fold_batchnorm
from ullage.nn.outputs import RawDetections, decode_scores


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
        return _boxes(raw), decode_scores(raw)


def _boxes(raw: RawDetections) -> torch.Tensor:
    """Decode as ``decode_boxes`` does, the expectation as a sum: runtimes are slow at products with a vector.

    Measured in onnxruntime on a yolo11n of 640x640: 5.8 ms of 86 ms as a product.
    """
    sides = raw.bins_BAR.float().unflatten(-1, (4, -1))
    bins = torch.arange(sides.shape[-1], dtype=torch.float32, device=sides.device)
    left_top, right_bottom = (sides.softmax(-1) * bins).sum(-1).split(2, -1)
    cells = torch.cat((raw.centres_A2 - left_top, raw.centres_A2 + right_bottom), -1)
    return cells * raw.strides_A[:, None]
