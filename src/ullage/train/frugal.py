"""The memory plan of a run in force, and the steps down when it was not enough."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import replace

from torch import nn

from ullage.memory import Plan, Technique, apply_techniques, block_names

LADDER = ("recompute", "nested")


class PlannedMemory:
    """Keeps a plan in force on a network. Recomputation comes before micro-batches: it changes no result.

    Args:
        network: What is trained.
        plan: How.
        frozen_in_code: The network was compiled: its techniques cannot be changed any more, only the micro-batch.
    """

    def __init__(self, network: nn.Module, plan: Plan, *, frozen_in_code: bool = False) -> None:
        self.network, self.plan = network, plan
        self._techniques = {name: Technique.parse(text) for name, text in plan.blocks.items()}
        self._applied = apply_techniques(network, self._techniques)
        self._named = plan.technique
        self._micro_batch = min(plan.micro_batch, plan.batch)
        self._steps_left = [] if frozen_in_code else list(LADDER)
        self._is_predicted = True

    @property
    def micro_batch(self) -> int | None:
        """Images of one forward pass at most."""
        return self._micro_batch

    @property
    def predicted_bytes(self) -> int:
        """Peak that the plan predicts; 0 once the run had to leave the plan."""
        return self.planned_bytes if self._is_predicted else 0

    @property
    def planned_bytes(self) -> int:
        """Peak that the plan predicts, whether the run still keeps to it or not."""
        return self.plan.predicted.reserved_bytes

    def describe(self) -> str:
        """Say what is in force."""
        whole = self._micro_batch >= self.plan.batch
        return f"technique {self._named}" + ("" if whole else f", micro-batches of {self._micro_batch}")

    @contextlib.contextmanager
    def lifted(self) -> Generator[dict[str, str]]:
        """Take the techniques off for a while, and say what they are."""
        self._applied.remove()
        try:
            yield {name: str(technique) for name, technique in self._techniques.items()}
        finally:
            self._applied = apply_techniques(self.network, self._techniques)

    def tighten(self) -> str | None:
        """Recompute more; when all is recomputed, halve the micro-batch; None when neither is possible."""
        while self._steps_left:
            name = self._steps_left.pop(0)
            more = self._with(Technique.parse(name))
            if more != self._techniques:
                self._leave_plan()
                self._applied.remove()
                self._techniques, self._named = more, name
                self._applied = apply_techniques(self.network, more)
                return f"technique {name} in every block (same results, more time)"
        if self._micro_batch == 1:
            return None
        self._leave_plan()
        self._micro_batch = -(-self._micro_batch // 2)
        return f"micro-batches of {self._micro_batch} (BatchNorm sees that many images at a time)"

    def _with(self, technique: Technique) -> dict[str, Technique]:
        """Return the techniques in force with another one added everywhere; none is taken away."""
        more: dict[str, Technique] = {}
        for name in dict.fromkeys((*self._techniques, *block_names(self.network))):
            own = self._techniques.get(name, Technique())
            more[name] = replace(
                own, recompute=own.recompute or technique.recompute, block=own.block or technique.block
            )
        return more

    def _leave_plan(self) -> None:
        self._is_predicted = False
