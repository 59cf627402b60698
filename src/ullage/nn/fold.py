"""BatchNorm folded into the convolutions before it, for inference."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Return a copy for inference in which every pair of ``conv`` and ``bn`` is one convolution.

    In evaluation mode BatchNorm is an affine map with fixed numbers, which the convolution before it can do on its own.
    A pair is any submodule with a ``Conv2d`` named ``conv`` and a ``BatchNorm2d`` named ``bn`` whose ``forward``
    applies one right after the other; its ``bn`` becomes an ``Identity``, its ``conv`` gains a bias.

    Args:
        module: A network; it is not changed.

    Returns:
        The copy, in evaluation mode, its parameters frozen.
    """
    folded = copy.deepcopy(module).eval().requires_grad_(False)
    with torch.no_grad():
        for unit in folded.modules():
            conv, norm = getattr(unit, "conv", None), getattr(unit, "bn", None)
            # BatchNorm without running statistics depends on the batch: nothing fixed to fold.
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
                _fold_pair(unit, conv, norm)
    return folded


def _fold_pair(unit: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None  # track_running_stats was checked
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight = weight.requires_grad_(False)
    conv.bias = bias.requires_grad_(False)
    unit.bn = nn.Identity()
