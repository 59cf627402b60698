"""What training asks of the process it runs in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ullage.train.host_allocator import _glibc, reusing_host_memory
from ullage.train.process import peak_memory_bytes, repeatable_kernels

CPU = torch.device("cpu")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux") or _glibc() is None, reason="glibc is a Linux library")
def test_freed_memory_stays_during_training_and_goes_back_afterwards() -> None:
    block = 64 * 2**20
    before = resident_bytes()
    with reusing_host_memory(CPU):
        torch.zeros(block, dtype=torch.uint8).fill_(1)  # freed at once
        assert resident_bytes() - before > 0.9 * block
    assert resident_bytes() - before < 0.2 * block
    torch.zeros(block, dtype=torch.uint8).fill_(1)
    assert resident_bytes() - before < 0.2 * block


def test_peak_memory_is_at_least_what_is_resident() -> None:
    if sys.platform.startswith("linux"):
        assert peak_memory_bytes(CPU) >= 0.9 * resident_bytes()
    assert peak_memory_bytes(CPU) > 10 * 2**20


def test_on_a_cpu_nothing_global_changes() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with repeatable_kernels(CPU, True):
        assert torch.are_deterministic_algorithms_enabled() == before
