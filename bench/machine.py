"""What every measurement states: the machine, the threads, and whether somebody else was using it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

IDLE_LOAD = 0.5


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(threads: int) -> str:
    """Return processor, cores and threads in one line."""
    return f"{processor_name()}, {usable_cores()} cores, {threads} thread{'s' * (threads != 1)} a side"


def processor_name() -> str:
    """Return what the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def busy_note() -> str | None:
    """Return a sentence when other work is running here, so that times cannot be trusted; else None."""
    load = os.getloadavg()[0]
    if load < IDLE_LOAD:
        return None
    return (
        f"note: the load of this machine is {load:.1f} before the measurement; times are worth little unless it is idle"
    )


def peer_python(given: str | None) -> Path:
    """Find the Python of the peer's own environment.

    Raises:
        SystemExit: It is not there; the message says how to make it.
    """
    path = Path(given or os.environ.get("ULLAGE_PEER_PYTHON") or ".venv-peer/bin/python")
    if not path.is_file():
        raise SystemExit(
            f"the peer's Python is not at '{path}'; make its environment as bench/peers/README.md says, or name it "
            "with --peer-python or ULLAGE_PEER_PYTHON"
        )
    return path.absolute()
