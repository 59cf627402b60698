"""Validation that takes fewer images at a time when memory runs out, instead of ending the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import torch

from ullage.errors import MemoryBudgetError
from ullage.train.events import OutOfMemory
from ullage.train.relief import is_out_of_memory, reason_of

Part = TypeVar("Part")


class Patience:
    """Cuts batches into parts of ``limit`` images, and halves the limit each time memory runs out.

    Args:
        limit: Images at a time; 0 takes batches whole.
        on_oom: ``"raise"`` stops at the first failed allocation.
        tell: Hears of it.
    """

    def __init__(
        self,
        *,
        limit: int = 0,
        on_oom: Literal["replan", "raise"] = "replan",
        tell: Callable[[object], None] = lambda event: None,
    ) -> None:
        self.limit, self.on_oom, self.tell = limit, on_oom, tell

    def __call__(self, judge: Callable[[int, int], Part], images: int) -> list[Part]:
        """Return ``judge(start, stop)`` of all parts of a batch of ``images`` images.

        Raises:
            MemoryBudgetError: Not even one image fits.
        """
        while True:
            size = min(self.limit or images, images)
            try:
                return [judge(start, min(start + size, images)) for start in range(0, images, size)]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            self.halve(size, reason)

    def halve(self, size: int, reason: str) -> None:
        """Take fewer than ``size`` images at a time from now on.

        Raises:
            MemoryBudgetError: There is only one, or ``on_oom="raise"``.
        """
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise MemoryBudgetError(
                f"out of memory in validation with one image at a time: {reason}; use a smaller imgsz, or val=False"
            )
        if self.on_oom == "raise":
            raise MemoryBudgetError(
                f"out of memory in validation with {size} images at a time: {reason}; on_oom=replan takes fewer"
            )
        self.limit = -(-size // 2)
        self.tell(OutOfMemory("validation", reason, f"validation takes {self.limit} images at a time"))
