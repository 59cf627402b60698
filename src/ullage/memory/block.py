"""Technique ``block``: keep what enters a block, run the block again when backward needs its inside (arXiv:1604.06174).

Fidelity: bitwise. The second run repeats dropout's random numbers and autocast's types, and leaves BatchNorm's running
statistics alone: they move once a step, as without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from ullage.errors import ConfigError

Forward = Callable[..., Any]


class Applied:
    """A technique in force, until ``remove`` or the end of the ``with`` block."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self._blocks = blocks

    def remove(self) -> None:
        """Return the blocks to plain training; parameters, buffers and hooks were never touched."""
        for block in self._blocks:
            block.__dict__.pop("forward", None)
        self._blocks = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def recompute_blocks(blocks: Iterable[nn.Module]) -> Applied:
    """Keep only the inputs of these blocks in training; their inside is computed again in backward.

    Args:
        blocks: Modules that are called once a forward pass, none inside another.

    Returns:
        A handle that takes it back.

    Raises:
        ConfigError: A block lies inside another, or has the technique already.
    """
    chosen = list(blocks)
    inside = {id(child) for block in chosen for child in block.modules() if child is not block}
    for block in chosen:
        if id(block) in inside:
            raise ConfigError(f"a {type(block).__name__} is named as a block and lies inside another named block")
        if "forward" in block.__dict__:
            raise ConfigError(f"a {type(block).__name__} recomputes already; remove that first")
    for block in chosen:
        block.forward = _recomputing(block, block.forward)
    return Applied(chosen)


def _recomputing(block: nn.Module, plain: Forward) -> Forward:
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), _statistics_at_rest(norms)

    def forward(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs)
        return checkpoint(plain, *inputs, use_reentrant=False, context_fn=contexts)

    return forward


@contextlib.contextmanager
def _statistics_at_rest(norms: list[_NormBase]) -> Generator[None]:
    """Let BatchNorm record the second run in copies that are thrown away."""
    recorded = [norm._buffers for norm in norms]  # pyright: ignore[reportPrivateUsage]
    for norm, buffers in zip(norms, recorded, strict=True):
        norm._buffers = {  # pyright: ignore[reportPrivateUsage]
            name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()
        }
    try:
        yield
    finally:
        for norm, buffers in zip(norms, recorded, strict=True):
            norm._buffers = buffers  # pyright: ignore[reportPrivateUsage]
