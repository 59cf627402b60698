"""What is done when memory runs out: say so, free what can be freed, take the next more frugal plan, or stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from ullage.errors import MemoryBudgetError
from ullage.train.events import OutOfMemory
from ullage.train.process import peak_memory_bytes
from ullage.train.protocols import MemoryControl
from ullage.units import format_bytes

_SIGNS = (
    "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "MPS backend out of memory",
    "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def reason_of(error: BaseException) -> str:
    """Return the first line of what an allocator said."""
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__


@dataclass(frozen=True)
class Relief:
    """Answers to a failed allocation.

    Attributes:
        device: Where training runs.
        memory: The plan in force.
        on_oom: ``"raise"`` stops at the first failed allocation.
        tell: Hears of every change.
    """

    device: torch.device
    memory: MemoryControl | None = None
    on_oom: Literal["replan", "raise"] = "replan"
    tell: Callable[[object], None] = lambda event: None

    def retreat(self, where: str, reason: str) -> None:
        """Take the next more frugal plan.

        Raises:
            MemoryBudgetError: There is none, or none is wanted.
        """
        self._free_cached()
        taken = self.memory.tighten() if self.memory is not None and self.on_oom == "replan" else None
        if taken is None:
            raise self.refusal(where, reason)
        self.tell(OutOfMemory(where, reason, taken))

    def once_more(self, where: str, reason: str) -> None:
        """Free what is cached, so that the same may be tried again where no plan can help.

        Raises:
            MemoryBudgetError: ``on_oom="raise"``.
        """
        self._free_cached()
        if self.on_oom == "raise":
            raise self.refusal(where, reason)
        self.tell(OutOfMemory(where, reason, "the same, after freeing what was cached"))

    def refusal(self, where: str, reason: str) -> MemoryBudgetError:
        """Make the error that ends the run: what was predicted, what was used, what to do."""
        used = f"{format_bytes(peak_memory_bytes(self.device))} used at most"
        planned = self.memory.planned_bytes if self.memory is not None else 0
        figures = f"{format_bytes(planned)} predicted, {used}" if planned else used
        hint = "on_oom=replan goes on in less memory"
        if self.on_oom == "replan":
            hint = "no more frugal plan is left: use a smaller model or imgsz"
        return MemoryBudgetError(f"out of memory in {where} ({figures}): {reason}; {hint}")

    def _free_cached(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
