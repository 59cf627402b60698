"""Techniques that train in less memory, for any ``nn.Module``, applied from outside; imports torch, errors, units."""

from ullage.memory.block import Applied, recompute_blocks

__all__ = ["Applied", "recompute_blocks"]
