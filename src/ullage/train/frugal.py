"""The memory plan of a run in force, and the steps down when it was not enough."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

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
        self._technique: str | None = None
        self._micro_batch = plan.micro_batch
        self._steps_left = [] if frozen_in_code else [name for name in LADDER if self._would_save(name)]
        self._is_predicted = True

    @property
    def micro_batch(self) -> int | None:
        """Images of one forward pass at most."""
        return self._micro_batch

    @property
    def predicted_bytes(self) -> int:
        """Peak that the plan predicts; 0 once the run had to leave the plan."""
        return self.plan.predicted.reserved_bytes if self._is_predicted else 0

    def describe(self) -> str:
        """Say what is in force."""
        name = self.plan.technique if self._technique is None else self._technique
        whole = self._micro_batch >= self.plan.batch
        return f"technique {name}" + ("" if whole else f", micro-batches of {self._micro_batch}")

    @contextlib.contextmanager
    def lifted(self) -> Generator[dict[str, str]]:
        """Take the techniques off for a while, and say what they are."""
        self._applied.remove()
        try:
            yield {name: str(technique) for name, technique in self._techniques.items()}
        finally:
            self._applied = apply_techniques(self.network, self._techniques)

    def tighten(self) -> str | None:
        """Recompute more; when all is recomputed, halve the micro-batch."""
        self._is_predicted = False
        if self._steps_left:
            name = self._steps_left.pop(0)
            self._applied.remove()
            self._technique = name
            self._techniques = dict.fromkeys(block_names(self.network), Technique.parse(name))
            self._applied = apply_techniques(self.network, self._techniques)
            return f"technique {name} in every block (same results, more time)"
        if self._micro_batch == 1:
            return None
        self._micro_batch = -(-self._micro_batch // 2)
        return f"micro-batches of {self._micro_batch} (BatchNorm sees that many images at a time)"

    def _would_save(self, name: str) -> bool:
        """Whether a technique everywhere keeps less than the plan does."""
        names = set(self.plan.blocks.values()) if len(self.plan.blocks) >= len(block_names(self.network)) else {"none"}
        rank = {"none": 0, "recompute": 1, "block": 2, "block+recompute": 3}
        return min((rank.get(used, 0) for used in names), default=0) < rank.get(str(Technique.parse(name)), 0)
