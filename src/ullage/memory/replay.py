"""Technique ``block``: keep what enters a block, run the block again when backward needs its inside (arXiv:1604.06174).

The first run leaves a numbered ticket wherever autograd would keep a tensor. The first ticket that comes back runs the
block again, up to the last tensor that was wanted, and collects them in the same order. Inside the second run other
techniques may be active (``block+recompute``, blocks in blocks): then what is collected is what they keep.

Fidelity: bitwise. The second run repeats random numbers and autocast's types, and leaves BatchNorm's running statistics
alone: they move once a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_flatten, tree_unflatten

from ullage.memory.keeping import Held

Collect = Callable[[Any], None]


class _Enough(Exception):
    """Everything that backward asks for has been made."""


class _Input:
    """A tensor that enters a block."""

    __slots__ = ("held", "requires_grad")

    def __init__(self, held: Held, requires_grad: bool) -> None:
        self.held, self.requires_grad = held, requires_grad


class Ticket:
    """Stands for one tensor that a block will make again."""

    __slots__ = ("_number", "_replay")

    def __init__(self, replay: Replay, number: int) -> None:
        self._replay, self._number = replay, number

    def get(self) -> torch.Tensor:
        """Return the tensor, running the block again if need be."""
        return self._replay.redeem(self._number)


class Replay:
    """One call of one block.

    Args:
        again: Runs the block in the techniques that hold inside it, collecting what autograd keeps.
        inputs: Positional and named arguments.
        keep: How to hold a tensor that enters the block.
        surroundings: What must be as it was (random numbers, autocast, statistics) while the block runs again.
    """

    def __init__(
        self,
        again: Callable[[tuple[Any, ...], dict[str, Any], Collect], None],
        inputs: tuple[tuple[Any, ...], dict[str, Any]],
        keep: Callable[[torch.Tensor], Held],
        surroundings: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._again, self._surroundings = again, surroundings
        flat, self._structure = tree_flatten(inputs)
        self._inputs = [_Input(keep(x), x.requires_grad) if isinstance(x, torch.Tensor) else x for x in flat]
        self._issued = 0
        self._made: dict[int, Any] = {}

    def issue(self, tensor: torch.Tensor) -> Ticket:
        """Autograd wants to keep a tensor of the first run."""
        self._issued += 1
        return Ticket(self, self._issued - 1)

    def redeem(self, number: int) -> torch.Tensor:
        """Return a tensor of the first run; each is handed out once a replay.

        Raises:
            RuntimeError: The block did not do the same the second time.
        """
        if number not in self._made:
            self._run_again()
        return self._made.pop(number).get()

    def _run_again(self) -> None:
        made: list[Any] = []

        def collect(held: Any) -> None:
            made.append(held)
            if len(made) == self._issued:
                raise _Enough

        flat = [
            x.held.get().detach().requires_grad_(x.requires_grad) if isinstance(x, _Input) else x for x in self._inputs
        ]
        arguments, keywords = tree_unflatten(flat, self._structure)
        with contextlib.suppress(_Enough), self._surroundings(), torch.enable_grad():
            self._again(arguments, keywords, collect)
        if len(made) != self._issued:
            raise RuntimeError(
                f"a block kept {self._issued} tensors the first time and {len(made)} when it was run again: its forward "
                "depends on something that changes; train it with technique='recompute' or 'none'"
            )
        self._made = dict(enumerate(made))


@contextlib.contextmanager
def statistics_at_rest(norms: list[_NormBase]) -> Generator[None]:
    """Let BatchNorm record a second run in copies that are thrown away."""
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
