"""The one place where attention is computed, and the way between feature maps and tokens.

Shape letters: B batch, C channels, H W feature map, T tokens (H x W, row-major), N heads, D head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class FusedAttention(nn.Module):
    """Softmax(Q K^T / sqrt(D)) V through PyTorch's fused kernels: FlashAttention-2 (arXiv:2307.08691) where it runs."""

    def forward(self, q_BNTD: torch.Tensor, k_BNTD: torch.Tensor, v_BNTD: torch.Tensor) -> torch.Tensor:
        """Attend; ``v``'s last dimension may differ from ``q``'s. Returns (B, N, T, D of v)."""
        return F.scaled_dot_product_attention(_heads_together(q_BNTD), _heads_together(k_BNTD), _heads_together(v_BNTD))


def _heads_together(tokens_BNTD: torch.Tensor) -> torch.Tensor:
    """Lay a head's values side by side: without it the fused kernels refuse, and PyTorch keeps the (T, T) matrix."""
    return tokens_BNTD if tokens_BNTD.stride(-1) == 1 else tokens_BNTD.contiguous()


class ExplicitAttention(nn.Module):
    """The same in elementary operators, for exporters that know no fused attention."""

    def forward(self, q_BNTD: torch.Tensor, k_BNTD: torch.Tensor, v_BNTD: torch.Tensor) -> torch.Tensor:
        """Attend as ``FusedAttention`` does, keeping the whole (T, T) matrix."""
        scores_BNTT = (q_BNTD * q_BNTD.shape[-1] ** -0.5) @ k_BNTD.transpose(-2, -1)
        return scores_BNTT.softmax(-1) @ v_BNTD


def set_attention(network: nn.Module, kernel: type[FusedAttention] | type[ExplicitAttention]) -> None:
    """Choose how a network computes attention. Weights and results (up to rounding) stay the same."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, FusedAttention | ExplicitAttention):
                setattr(module, name, kernel())


def to_tokens(map_BCHW: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N * D, H, W) to (B, N, T, D); a view when the map is channels-last."""
    return map_BCHW.flatten(2).transpose(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)


def to_map(tokens_BNTD: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """(B, N, T, D) to (B, N * D, H, W), channels-last in memory."""
    map_BCT = tokens_BNTD.transpose(1, 2).flatten(2).transpose(1, 2)
    return map_BCT.view(-1, map_BCT.shape[1], *size_hw)  # so written, exporters leave batch and size open
