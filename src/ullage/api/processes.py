"""Processes, told apart safely: a number is given again after a while, a number with its start is not."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ullage.errors import StorageError

_PROC = Path("/proc")
_DEAD_STATES = "ZXx"  # ended, only not yet collected by the parent


@dataclass(frozen=True)
class Machine:
    """Where process numbers mean something.

    Attributes:
        host: Its name.
        boot: Changes when the machine starts anew; empty where the system does not tell.
        namespace: Containers count their processes for themselves; empty where there are none.
    """

    host: str
    boot: str = ""
    namespace: str = ""


@dataclass(frozen=True)
class Process:
    """One living process.

    Attributes:
        pid: Its number.
        start: When it began, in the words of the system; compared, never read.
        parent: Number of its parent.
        group: Number of its process group.
    """

    pid: int
    start: str
    parent: int
    group: int


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Return the machine, or the container, that this process runs on."""
    boot = _text(_PROC / "sys/kernel/random/boot_id")
    try:
        namespace = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        namespace = ""
    return Machine(platform.node(), boot, namespace)


def find_process(pid: int) -> Process | None:
    """Return a living process; None when there is none of that number, or it has ended and is not yet collected."""
    if _has_proc():
        return _from_stat(pid)
    return _from_ps("-p", str(pid)).get(pid)


def is_alive(pid: int, start: str) -> bool | None:
    """Say whether the process that began then still lives; None when this user may not see it."""
    found = find_process(pid)
    if found is not None:
        return found.start == start
    try:
        os.kill(pid, 0)  # asks, sends nothing
    except PermissionError:
        return None  # somebody has that number, and the system hides who
    except (ProcessLookupError, OverflowError):
        return False
    return False  # ended, not yet collected


def this_process() -> Process:
    """Return this process."""
    found = find_process(os.getpid())
    if found is None:
        raise StorageError("cannot read this process from /proc or ps; mount /proc or install ps")
    return found


def command_of(process: Process) -> tuple[str, ...]:
    """Return what was called, as far as the system tells."""
    words = tuple(word for word in _text(_PROC / str(process.pid) / "cmdline").split("\0") if word)
    if words:
        return words
    return tuple(sys.argv) if process.pid == os.getpid() else ()


def ancestors() -> set[tuple[int, str]]:
    """Return number and start of this process, its parent, and so on."""
    found: set[tuple[int, str]] = set()
    process = this_process()
    while process is not None and (process.pid, process.start) not in found:
        found.add((process.pid, process.start))
        process = find_process(process.parent) if process.parent > 0 else None
    return found


def descendants(pid: int) -> list[Process]:
    """Return the living children of a process, theirs, and so on."""
    everyone = _from_ps("-A") if not _has_proc() else _from_proc()
    found, parents = [], {pid}
    while children := [one for one in everyone.values() if one.parent in parents and one.pid != pid]:
        found += children
        parents = {child.pid for child in children}
        everyone = {number: one for number, one in everyone.items() if number not in parents}
    return found


def send(process: Process, number: signal.Signals) -> bool:
    """Send a signal to this very process; False when it has ended.

    Raises:
        StorageError: It belongs to another user.
    """
    try:
        if sys.platform == "linux":
            handle = os.pidfd_open(process.pid)  # stays with the process, whoever gets its number later
            try:
                if is_alive(process.pid, process.start) is False:
                    return False
                signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)
        else:
            if is_alive(process.pid, process.start) is False:
                return False
            os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise StorageError(f"process {process.pid} belongs to another user, who alone can stop it") from None
    return True


def kill_all(process: Process) -> bool:
    """End a process, its group if it leads one, and all its descendants, at once and without asking them.

    Returns:
        Whether it is gone; what the kernel holds in a disk or driver call may take longer.
    """
    if send(process, signal.SIGSTOP):  # from here on it starts nothing, and its number stays its own
        below = descendants(process.pid)
        if process.group == process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.group, signal.SIGKILL)
        for one in (*below, process):
            send(one, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_alive(process.pid, process.start) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(process.pid, process.start)


def _has_proc() -> bool:
    return (_PROC / "self/stat").exists()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _from_stat(pid: int) -> Process | None:
    text = _text(_PROC / str(pid) / "stat")
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    if len(fields) < 20 or fields[0] in _DEAD_STATES:
        return None
    return Process(pid, start=fields[19], parent=int(fields[1]), group=int(fields[2]))


def _from_proc() -> dict[int, Process]:
    found = [_from_stat(int(name)) for name in os.listdir(_PROC) if name.isdecimal()]
    return {process.pid: process for process in found if process is not None}


def _from_ps(*which: str) -> dict[int, Process]:
    """Ask ``ps``, where there is no /proc."""
    columns = "pid=,ppid=,pgid=,stat=,lstart="
    run = subprocess.run(
        ["ps", *which, "-o", columns], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    found = {}
    for line in run.stdout.splitlines():
        pid, parent, group, state, start = line.split(maxsplit=4)
        if state[0] not in _DEAD_STATES:
            found[int(pid)] = Process(int(pid), start=start.strip(), parent=int(parent), group=int(group))
    return found
