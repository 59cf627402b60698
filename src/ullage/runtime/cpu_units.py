"""Convolution, bias and activation in one go on CPUs: one write of the map instead of two writes and a read."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ullage.nn.layers import ConvUnit

_ACTIVATIONS = {nn.SiLU: "swish", nn.Identity: "none"}


class FusedConvolution(nn.Module):
    """A convolution and what follows it as one operator of oneDNN.

    Args:
        conv: With zero padding.
        activation: What follows.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.activation = _ACTIVATIONS[type(activation)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
        conv = self.conv
        return _operator()(
            x, conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups, self.activation, [], ""
        )


def fuse_units(network: nn.Module) -> None:
    """Replace the folded units and the convolutions of a network, where PyTorch was built with oneDNN.

    Elsewhere the network stays as it is.
    """
    if _operator() is None or not torch.backends.mkldnn.is_available():
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is ConvUnit and isinstance(child.bn, nn.Identity) and type(child.act) in _ACTIVATIONS:
                setattr(parent, name, FusedConvolution(child.conv, child.act))
            elif type(child) is nn.Conv2d and child.padding_mode == "zeros" and type(parent) is not ConvUnit:
                setattr(parent, name, FusedConvolution(child, nn.Identity()))


def _operator() -> Any:
    """Return PyTorch's operator; its compiler uses the same one. None when this build has none."""
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
