"""What training asks of the process it runs in."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from ullage.train.host_allocator import _glibc, reusing_host_memory
from ullage.train.process import peak_memory_bytes, repeatable_kernels

CPU = torch.device("cpu")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def page_faults(rounds: int = 10) -> int:
    """Pages that the system handed out while a block of 64 MB was made, filled and freed again and again."""
    torch.zeros(64 * 2**20, dtype=torch.uint8).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.zeros(64 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux") or _glibc() is None, reason="glibc is a Linux library")
def test_a_step_reuses_the_memory_of_the_step_before() -> None:
    before = page_faults()
    with reusing_host_memory(CPU):
        page_faults(rounds=20)  # the heap grows until it has room
        during = page_faults()
        kept = resident_bytes()
    assert during < 0.2 * before
    assert kept - resident_bytes() > 0.9 * 64 * 2**20  # given back at the end


def test_peak_memory_is_at_least_what_is_resident() -> None:
    if sys.platform.startswith("linux"):
        assert peak_memory_bytes(CPU) >= 0.9 * resident_bytes()
    assert peak_memory_bytes(CPU) > 10 * 2**20


def test_on_a_cpu_nothing_global_changes() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with repeatable_kernels(CPU, True):
        assert torch.are_deterministic_algorithms_enabled() == before
