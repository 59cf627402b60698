"""Move the weights by the summed gradients: whole, or not at all, also when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ullage.errors import MemoryBudgetError
from ullage.train.optim import rescale_and_clip
from ullage.train.relief import Relief, is_out_of_memory, reason_of
from ullage.train.state import TrainState

WHERE = "the optimiser's step"
Result = TypeVar("Result")


class Update:
    """The second half of an optimiser step.

    Its parts change tensors in place and allocate little. When memory runs out in one of them before it has changed
    anything, it is done once more; no frugal plan could help, for nothing is kept for backward at that time.

    Args:
        state: What is trained.
        relief: What is done when memory runs out.
        undo: Returns the network to what it was before the step, as long as no weight has moved.

    Attributes:
        is_torn: Memory ran out when the weights had moved in part: the state is of no use any more.
    """

    def __init__(self, state: TrainState, relief: Relief, undo: Callable[[], None]) -> None:
        self.state, self.relief, self.undo = state, relief, undo
        self.is_torn = False

    def finish_gradients(self, factor: torch.Tensor) -> torch.Tensor:
        """Take the loss scale out of the gradients, multiply them by ``factor`` and limit their norm; return it.

        Raises:
            MemoryBudgetError: Memory ran out twice, or half way.
        """
        optimiser, scaler = self.state.optimiser, self.state.scaler
        gradients = [p.grad for p in _parameters(optimiser) if p.grad is not None]
        self._do(lambda: scaler.unscale_(optimiser), gradients)
        return self._do(lambda: rescale_and_clip(optimiser, factor), gradients)

    def move_weights(self) -> None:
        """Take the optimiser's step, drop the gradients and move the average.

        Raises:
            MemoryBudgetError: Memory ran out twice, or half way.
        """
        state, optimiser = self.state, self.state.optimiser
        parameters = _parameters(optimiser)
        known = {p for p in parameters if optimiser.state.get(p)}
        moments = [t for p in known for t in optimiser.state[p].values() if isinstance(t, torch.Tensor)]

        def step() -> None:
            for p in parameters:
                if p not in known:  # half-made moments of a first try
                    optimiser.state.pop(p, None)
            state.scaler.step(optimiser)

        self._do(step, [*parameters, *moments], tears=True)
        self._do(state.scaler.update, (), has_moved=True)
        optimiser.zero_grad(set_to_none=True)
        averaged = [t for t in state.average.network.state_dict().values() if t.is_floating_point()]
        self._do(lambda: state.average.update(state.network), averaged, has_moved=True)

    def _do(
        self,
        change: Callable[[], Result],
        changes: Sequence[torch.Tensor],
        *,
        tears: bool = False,
        has_moved: bool = False,
        is_second: bool = False,
    ) -> Result:
        """Make a change, a second time if memory ran out before any of the tensors was changed."""
        before = _versions(changes)
        try:
            return change()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
        half_done = _versions(changes) != before
        try:
            if half_done:
                raise self.relief.refusal(WHERE, f"{reason}; half of it was done, so it cannot be done again")
            if is_second:
                raise self.relief.refusal(WHERE, reason)
            self.relief.once_more(WHERE, reason)
        except MemoryBudgetError:
            self.is_torn = has_moved or (tears and half_done)
            if not self.is_torn:
                self.undo()
            raise
        return self._do(change, changes, tears=tears, has_moved=has_moved, is_second=True)


def _parameters(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [t._version for t in tensors]  # pyright: ignore[reportPrivateUsage]
