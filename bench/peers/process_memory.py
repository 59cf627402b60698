"""Memory and processor time of a process and its children, read from the kernel: one measure for both sides."""

from __future__ import annotations

import os
from pathlib import Path


def children_memory() -> list[dict[str, int]]:
    """Return what each child process holds and has taken (Linux).

    ``peak`` is the largest resident size so far, which counts memory that is shared with other processes in full;
    ``share`` is its proportional share now, which counts such memory divided by the processes that share it, so that
    the shares of all processes add up to what is taken; ``own`` is what it alone holds now. ``cpu_ms`` is the processor
    time that it has taken so far.
    """
    found = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        for pid in (task / "children").read_text(encoding="ascii").split():
            status, rollup = _fields(pid, "status"), _fields(pid, "smaps_rollup")
            own = rollup["Private_Clean"] + rollup["Private_Dirty"]
            sizes = {"peak": status["VmHWM"], "share": rollup["Pss"], "own": own}
            found.append({name: size * 1024 for name, size in sizes.items()} | {"cpu_ms": _cpu_ms(pid)})
    return found


def _cpu_ms(pid: str) -> int:
    # The name, which stands second, may hold anything; what follows it is fixed.
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) * 1000 // os.sysconf("SC_CLK_TCK")


def own_memory() -> int:
    """Return the bytes that this process alone holds now."""
    rollup = _fields("self", "smaps_rollup")
    return (rollup["Private_Clean"] + rollup["Private_Dirty"]) * 1024


def _fields(pid: str, name: str) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}
