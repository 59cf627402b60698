"""``process.json`` in a run's folder: which process trains there, since when, and how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from ullage.api.processes import (
    Machine,
    Process,
    ancestors,
    command_of,
    find_process,
    is_alive,
    this_machine,
    this_process,
)
from ullage.errors import ConfigError, DataError, StorageError
from ullage.zoo.atomic_file import replacing

NOTE_FILE = "process.json"
Outcome = Literal["finished", "interrupted", "failed"]
_OUTCOMES = ("finished", "interrupted", "failed")


@dataclass(frozen=True)
class Note:
    """What ``process.json`` holds.

    Attributes:
        pid: Number of the process.
        start: When it began, in the words of its system: with it, the number means this process alone.
        host: Name of its machine.
        boot: See ``Machine``.
        namespace: See ``Machine``.
        command: What was called.
        writer_pid: Which process writes how it ended: itself, or one that it launched.
        writer_start: When that one began.
        since: When it took the folder, seconds since 1970.
        detached: Whether it lives without a terminal.
        stop_asked: Whether somebody asked it to stop.
        ended: When it ended, seconds since 1970; None: it lives, or could not say so any more.
        outcome: How it ended.
        error: Why it failed.
    """

    pid: int
    start: str
    host: str
    boot: str
    namespace: str
    command: tuple[str, ...]
    writer_pid: int
    writer_start: str
    since: float
    detached: bool = False
    stop_asked: bool = False
    ended: float | None = None
    outcome: Outcome | None = None
    error: str = ""

    @property
    def machine(self) -> Machine:
        """Where the process runs."""
        return Machine(self.host, self.boot, self.namespace)

    @property
    def is_running(self) -> bool | None:
        """Whether the process is at work; None when that cannot be seen from here."""
        if self.ended is not None:
            return False
        here = this_machine()
        if self.machine == here:
            return is_alive(self.pid, self.start)
        # the same container or machine, started anew: nothing of before it lives
        rebooted = self.host == here.host and self.boot != here.boot and self.boot != ""
        return False if rebooted else None


def note_of(process: Process, command: Sequence[str], *, detached: bool, writer: Process | None = None) -> Note:
    """Return what is to be noted of a process of this machine that begins now; None: it writes its end itself."""
    here, writer = this_machine(), writer or process
    return Note(
        pid=process.pid,
        start=process.start,
        host=here.host,
        boot=here.boot,
        namespace=here.namespace,
        command=tuple(command),
        writer_pid=writer.pid,
        writer_start=writer.start,
        since=round(time.time(), 3),
        detached=detached,
    )


def read_note(folder: Path) -> Note | None:
    """Read ``process.json``; None where there is none.

    Raises:
        DataError: It is damaged.
        StorageError: It cannot be read.
    """
    path = folder / NOTE_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return _checked(values)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read '{path}': {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"'{path}' is damaged: it does not tell which process trains there") from None


def write_note(folder: Path, note: Note) -> None:
    """Replace ``process.json``, whole or not at all.

    Raises:
        StorageError: The disk is full, or the folder is gone or read-only.
    """
    with replacing(folder / NOTE_FILE) as temporary:
        temporary.write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def noted_process(folder: Path, *, was_noted: bool = False) -> Iterator[None]:
    """Note that this process trains in a folder, and at the end how that ended.

    Of several processes, the one that launched the others is noted, for it would start them again when they are ended.
    What it has noted itself stays.

    Args:
        folder: The run's folder; it exists.
        was_noted: Whoever started this process has noted it already; how it ends is still to be noted.

    Raises:
        ConfigError: Another process trains there.
        StorageError: The note cannot be written.
    """
    before, me = _readable_note(folder), this_process()
    is_ours = before is not None and before.ended is None and _is_ours(before)
    if before is not None and is_ours and not was_noted and is_alive(before.writer_pid, before.writer_start):
        yield
        return
    refuse_running(folder)
    speaker = _launcher_of(me) or me
    note = note_of(speaker, command_of(speaker), detached=was_noted, writer=me)
    write_note(folder, replace(note, stop_asked=before.stop_asked) if was_noted and before is not None else note)
    try:
        yield
    except KeyboardInterrupt:
        end_note(folder, note, "interrupted")
        raise
    except BaseException as error:
        words = " ".join(str(error).encode("utf-8", "replace").decode().split())
        end_note(folder, note, "failed", error=words[:500] or type(error).__name__)
        raise
    end_note(folder, note, "finished")


def end_note(folder: Path, note: Note, outcome: Outcome, *, error: str = "") -> None:
    """Write how a process ended; what it left tells as much, should the folder be gone or the disk be full."""
    latest = _readable_note(folder)
    if latest is not None and (latest.pid, latest.start, latest.machine) != (note.pid, note.start, note.machine):
        return  # another process has taken the folder since
    with contextlib.suppress(StorageError):
        write_note(folder, replace(latest or note, ended=round(time.time(), 3), outcome=outcome, error=error))


def refuse_running(folder: Path) -> None:
    """Refuse to train where another process trains.

    Raises:
        ConfigError: One does.
    """
    note = _readable_note(folder)
    if note is not None and note.is_running and not _is_ours(note):
        raise ConfigError(
            f"'{folder}' is already in use: process {note.pid} on {note.host} trains there; "
            f"stop it first: ullage runs stop {folder}"
        )


def noted(note: Note) -> Process | None:
    """Return the process that a note is of, while it lives."""
    found = find_process(note.pid)
    return found if found is not None and found.start == note.start else None


def _launcher_of(process: Process) -> Process | None:
    """Return the elastic launcher that started a process; None without one."""
    return find_process(process.parent) if "TORCHELASTIC_RUN_ID" in os.environ else None


def _is_ours(note: Note) -> bool:
    return note.machine == this_machine() and (note.pid, note.start) in ancestors()


def _readable_note(folder: Path) -> Note | None:
    try:
        return read_note(folder)
    except DataError:
        return None  # it is about to be replaced


def _checked(values: Any) -> Note:
    """Make a note of what was read.

    Raises:
        ValueError: Something is missing or of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    known = {field.name for field in fields(Note)}
    kept: dict[str, Any] = {key: value for key, value in values.items() if key in known}
    note = Note(**{**kept, "command": tuple(kept["command"])})
    texts = (note.start, note.writer_start, note.host, note.boot, note.namespace, note.error, *note.command)
    times = (note.since, 0.0 if note.ended is None else note.ended)
    if not (
        type(note.pid) is int
        and note.pid > 0
        and type(note.writer_pid) is int
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(when, int | float) for when in times)
        and note.outcome in (None, *_OUTCOMES)
    ):
        raise ValueError("a value of the wrong type")
    return note
