"""Parameter groups, freezing, the optimiser step and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ullage.errors import ConfigError
from ullage.nn.detector import Detector
from ullage.train.schedule import OptimChoice

CLIP_NORM = 10.0
EMA_DECAY, EMA_RAMP_STEPS = 0.9999, 2000
BIASES = 0  # index of the parameter group whose rate has a warm-up of its own


def freeze_blocks(network: Detector, freeze: int | list[int] | None) -> list[nn.Module]:
    """Stop some blocks from learning: no gradients, and BatchNorm keeps its statistics.

    Args:
        network: The detector.
        freeze: The first n blocks, counted as in the published tables, or a list of such numbers.

    Returns:
        The frozen blocks; keep them in eval mode (``set_training_mode``).

    Raises:
        ConfigError: A number is not a block's, or nothing would be left to learn.
    """
    if freeze is None:
        return []
    blocks = network.blocks()
    numbers = [n for n in blocks if n < freeze] if isinstance(freeze, int) else freeze
    last = max(blocks)
    wrong = [n for n in numbers if n < 0 or n > last]
    if wrong or (isinstance(freeze, int) and not 0 <= freeze <= last):
        raise ConfigError(f"freeze={freeze}: blocks are numbered 0 to {last}, and the last one must stay free")
    frozen = [blocks[n] for n in numbers if n in blocks]
    for block in frozen:
        block.requires_grad_(False)
    return frozen


def set_training_mode(network: nn.Module, frozen: Iterable[nn.Module]) -> None:
    """Put the network into training mode, the frozen blocks into eval mode."""
    network.train()
    for block in frozen:
        block.eval()


def make_optimiser(network: nn.Module, choice: OptimChoice, weight_decay: float) -> torch.optim.Optimizer:
    """Make the optimiser with three groups: biases; norms and other vectors; weights, the only ones that decay."""
    biases, vectors, weights = [], [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, _BatchNorm) or parameter.ndim < 2:
                vectors.append(parameter)
            else:
                weights.append(parameter)
    groups = [{"params": biases}, {"params": vectors}, {"params": weights, "weight_decay": weight_decay}]
    if choice.kind == "AdamW":
        return torch.optim.AdamW(groups, lr=choice.lr0, betas=(choice.momentum, 0.999), weight_decay=0.0, fused=True)
    return torch.optim.SGD(groups, lr=choice.lr0, momentum=choice.momentum, nesterov=True, fused=True)


def adopt_layouts(optimiser: torch.optim.Optimizer) -> None:
    """Give the moments the memory layout of their weights, which files do not keep.

    Fused steps walk through weights, gradients and moments side by side in memory, whatever the strides say.
    """
    for parameter, moments in optimiser.state.items():
        for name, moment in moments.items():
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def set_rates(optimiser: torch.optim.Optimizer, lr: float, bias_lr: float, momentum: float) -> None:
    """Set learning rates and momentum for the next step."""
    for index, group in enumerate(optimiser.param_groups):
        group["lr"] = bias_lr if index == BIASES else lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum


def rescale_and_clip(optimiser: torch.optim.Optimizer, factor: torch.Tensor) -> torch.Tensor:
    """Multiply all gradients by ``factor`` and limit their norm, in one pass over memory.

    Returns:
        The norm before the limit; not finite when a gradient is not.
    """
    gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=factor.device)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))) * factor  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_mul_(gradients, factor * (CLIP_NORM / (norm + 1e-6)).clamp(max=1.0))  # pyright: ignore[reportPrivateImportUsage]
    return norm


class MovingAverage:
    """Exponential moving average of weights and BatchNorm statistics, in float32; the network that is judged and kept.

    The decay rises from 0 towards .9999 with the number of steps: .9999 (1 - e^(-steps / 2000)).
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the network's present weights."""
        decay = EMA_DECAY * (1 - math.exp(-(self.steps + 1) / EMA_RAMP_STEPS))
        averaged, present = [], []
        for mine, theirs in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mine.is_floating_point():
                averaged.append(mine)
                present.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(averaged, present, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        self.steps += 1  # at last: what failed for want of memory can be done again
