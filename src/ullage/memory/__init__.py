"""Techniques that train in less memory, for any ``nn.Module``, applied from outside; imports torch, errors, units."""

from ullage.memory.apply import Applied, apply_techniques, block_names
from ullage.memory.technique import Technique

__all__ = ["Applied", "Technique", "apply_techniques", "block_names"]
