"""What training asks of the process it runs in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from ullage.train.host_allocator import _glibc
from ullage.train.process import peak_memory_bytes, repeatable_kernels

CPU = torch.device("cpu")


# In a process of its own: what the heap of a test runner has room for, nobody knows.
STEPS = """
import json, resource
from pathlib import Path
import torch
from ullage.train.host_allocator import reusing_host_memory

def page_faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.zeros(64 * 2**20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = page_faults(10)
with reusing_host_memory(torch.device("cpu")):
    page_faults(40)  # the heap grows until it has room
    during, kept = page_faults(10), resident_bytes()
print(json.dumps({"before": before, "during": during, "given_back": kept - resident_bytes()}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or _glibc() is None, reason="glibc is a Linux library")
def test_a_step_reuses_the_memory_of_the_step_before() -> None:
    run = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, timeout=240)
    measured = json.loads(run.stdout)
    assert measured["during"] < 0.2 * measured["before"]
    assert measured["given_back"] > 0.9 * 64 * 2**20


def test_peak_memory_is_that_of_a_process_with_torch() -> None:
    assert peak_memory_bytes(CPU) > 10 * 2**20


def test_on_a_cpu_nothing_global_changes() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with repeatable_kernels(CPU, True):
        assert torch.are_deterministic_algorithms_enabled() == before
