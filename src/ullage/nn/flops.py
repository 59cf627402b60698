"""Counting the work of a forward pass."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ullage.nn.attention import ExplicitAttention, set_attention


@dataclass(frozen=True)
class Flops:
    """Work for one image, 2 x multiply-adds, BatchNorm folded away and element-wise work left out.

    Attributes:
        convolutions: What published figures count.
        attention: The matrix products of attention, which published figures leave out.
    """

    convolutions: int
    attention: int


def count_flops(network: nn.Module, *, size_hw: tuple[int, int]) -> Flops:
    """Count without computing: the network is copied to torch's meta device."""
    shadow = copy.deepcopy(network).to("meta").eval()
    set_attention(shadow, ExplicitAttention)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, 3, *size_hw, device="meta"))
    counts = counter.get_flop_counts()["Global"]
    convolutions = counts.get(torch.ops.aten.convolution, 0)
    return Flops(convolutions, sum(counts.values()) - convolutions)
