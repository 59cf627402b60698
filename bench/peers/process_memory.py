"""The memory of a process and its children, read from the kernel: what both sides of a comparison are measured by."""

from __future__ import annotations

import os
from pathlib import Path


def children_memory() -> list[dict[str, int]]:
    """Return what each child process holds (Linux).

    ``peak`` is the largest resident size so far, which counts memory that is shared with other processes in full;
    ``share`` is its proportional share now, which counts such memory divided by the processes that share it, so that
    the shares of all processes add up to what is taken; ``own`` is what it alone holds now.
    """
    found = []
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        for pid in (task / "children").read_text(encoding="ascii").split():
            status, rollup = _fields(pid, "status"), _fields(pid, "smaps_rollup")
            own = rollup["Private_Clean"] + rollup["Private_Dirty"]
            found.append({"peak": status["VmHWM"] * 1024, "share": rollup["Pss"] * 1024, "own": own * 1024})
    return found


def own_memory() -> int:
    """Return the bytes that this process alone holds now."""
    rollup = _fields("self", "smaps_rollup")
    return (rollup["Private_Clean"] + rollup["Private_Dirty"]) * 1024


def _fields(pid: str, name: str) -> dict[str, int]:
    lines = (line.split() for line in Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}
