"""This process: its memory, and whether its kernels repeat themselves."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Iterator
from typing import Any

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak so far: reserved by the allocator on a GPU, resident size of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def cap_process_memory(device: torch.device, budget_bytes: int) -> None:
    """Let allocations beyond the budget fail on a GPU; a CPU has no such limit, there the rehearsal watches."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(budget_bytes / total, 1.0), device)


@contextlib.contextmanager
def repeatable_kernels(device: torch.device, wanted: bool) -> Iterator[None]:
    """Ask CUDA for repeatable kernels while the run lasts; CPUs repeat themselves anyway."""
    if device.type != "cuda" or not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill
