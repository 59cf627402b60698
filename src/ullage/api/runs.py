"""The runs of a project: list, find, follow and stop them. No daemon: what is known stands in the runs' folders.

The folder tells what was done (``events.jsonl``, ``results.csv``), ``process.json`` which process does it, and the
machine whether that process lives. Nothing here imports torch.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from ullage.api.folders import DEFAULT_PROJECT
from ullage.api.note import NOTE_FILE, Note, end_note, noted, read_note, write_note
from ullage.api.processes import is_alive, kill_all, send
from ullage.errors import ConfigError, DataError, StorageError, TrainingError, nearest

State = Literal["running", "finished", "interrupted", "failed", "unknown"]
LOG_FILE, EVENTS_FILE = "log.txt", "events.jsonl"
POLL_S = 0.2
_DEPTH = 3  # a run's name may hold folders: name=digits/small
_BLOCK = 65536


@dataclass(frozen=True)
class Run:
    """One run, as its folder and its process tell.

    Attributes:
        name: Its folder below the project.
        folder: Where it is.
        state: ``unknown`` when its process runs on another host, or left no trace of how it ended.
        detail: Why it failed, or why its state is not known; empty otherwise.
        epoch: Epochs that are done.
        epochs: How many there will be; None when the time decides.
        fitness: Of the best epoch; None without an evaluation.
        started: When it first began, seconds since 1970.
        seconds: How long it has trained, earlier attempts included.
        pid: Its process while it runs; None afterwards.
        host: Where that process runs; None when nobody noted it.
        detached: Whether it runs without a terminal.
    """

    name: str
    folder: Path
    state: State
    detail: str
    epoch: int
    epochs: int | None
    fitness: float | None
    started: float | None
    seconds: float
    pid: int | None
    host: str | None
    detached: bool

    @property
    def log(self) -> Path:
        """What a detached run prints."""
        return self.folder / LOG_FILE

    @property
    def last(self) -> Path:
        """The checkpoint from which it goes on."""
        return self.folder / "weights" / "last.pt"

    @property
    def progress(self) -> str:
        """``12/100``, or ``12`` when the time decides."""
        return f"{self.epoch}/{self.epochs}" if self.epochs is not None else str(self.epoch)


def list_runs(project: str | Path | None = None) -> tuple[Run, ...]:
    """Return the runs of a project, the oldest first.

    Args:
        project: Their folder; None means ``runs/detect``.

    Raises:
        ConfigError: There is no such folder.
    """
    root = _project(project)
    found = [read_run(folder, name=folder.relative_to(root).as_posix()) for folder in _run_folders(root)]
    return tuple(sorted(found, key=lambda run: (run.started or 0.0, run.name)))


def find_run(name: str | None = None, *, project: str | Path | None = None) -> Run:
    """Find a run by name or by its folder; without a name, the only one that is running.

    Raises:
        ConfigError: There is none of that name, nothing is running, or several are.
    """
    if name is None:
        running = [run for run in list_runs(project) if run.state == "running"]
        if len(running) == 1:
            return running[0]
        if not running:
            raise ConfigError(f"nothing is running in '{_project(project)}'; 'ullage runs' lists what was")
        raise ConfigError(f"several runs are running, name one of them: {', '.join(run.name for run in running)}")
    root = Path(project).expanduser() if project is not None else DEFAULT_PROJECT
    for folder in (root / name, *([Path(name).expanduser()] if project is None else [])):
        if _is_run(folder):
            inside = folder.is_relative_to(root) and folder != root
            return read_run(folder, name=folder.relative_to(root).as_posix() if inside else folder.name)
    known = [run.relative_to(root).as_posix() for run in _run_folders(root)]
    there = f"there are: {', '.join(known[-8:])}" if known else "there are none"
    place = "" if project is not None else "; project= names another folder"
    raise ConfigError(f"there is no run '{name}' in '{root}'; {there}{place}.{nearest(name, known)}")


def read_run(folder: Path, *, name: str | None = None) -> Run:
    """Return what a run's folder and process tell.

    Raises:
        ConfigError: The folder is gone, or not that of a run.
    """
    _check_is_run(folder)
    note, state, detail = _look(folder)
    rows = _results(folder / "results.csv")
    fitness = [row["fitness"] for row in rows if "fitness" in row]
    seconds = rows[-1].get("time", 0.0) if rows else 0.0
    if state == "running" and note is not None:  # the epoch that is not over yet
        counted = (folder / "results.csv").stat().st_mtime if rows else 0.0
        seconds += max(time.time() - max(counted, note.since), 0.0)
    return Run(
        name=folder.name if name is None else name,
        folder=folder,
        state=state,
        detail=detail,
        epoch=int(rows[-1].get("epoch", 0)) if rows else 0,
        epochs=_epochs(folder / "args.yaml"),
        fitness=max(fitness) if fitness else None,
        started=_first_time(folder / EVENTS_FILE) or (note.since if note is not None else None),
        seconds=seconds,
        pid=note.pid if note is not None and state in ("running", "unknown") else None,
        host=note.host if note is not None else None,
        detached=note is not None and note.detached,
    )


def read_state(folder: Path) -> State:
    """Return a run's state alone, which is quick.

    Raises:
        ConfigError: The folder is gone, or not that of a run.
    """
    _check_is_run(folder)
    return _look(folder)[1]


def follow(run: Run, *, lines: int = 10) -> Iterator[str]:
    """Yield the end of a run's log, then what is added, as it is added, until the run ends.

    Args:
        run: The run; it goes on whether or not somebody follows it.
        lines: How many lines of what is there already.

    Raises:
        ConfigError: It has no log, or its folder is gone.
    """
    if not run.log.is_file():
        raise ConfigError(
            f"'{run.name}' has no log: it was not started with detach=True, and prints where it was started; "
            f"'{run.folder / EVENTS_FILE}' tells what happens"
        )
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    try:
        with run.log.open("rb") as log:
            log.seek(_offset_of_last_lines(run.log, lines))
            while True:
                # whether it lives is asked before reading: what it wrote at its end is read, too
                ended = read_state(run.folder) not in ("running", "unknown")
                while block := log.read(_BLOCK):
                    yield decoder.decode(block)
                if ended:
                    return
                time.sleep(POLL_S)
    except OSError as error:
        raise StorageError(f"cannot read '{run.log}': {error.strerror or error}") from None


def stop(run: Run, *, force: bool = False, wait_s: float = 120.0, tell: Callable[[str], object] = print) -> Run:
    """Ask a run to write its checkpoint and end, and wait until it has.

    Args:
        run: The run.
        force: Kill it, its process group and its descendants instead; what came after the last checkpoint is lost.
        wait_s: How long to wait.
        tell: Hears that it takes a while.

    Returns:
        The run as it is afterwards.

    Raises:
        ConfigError: It is not running, or on another host.
        TrainingError: It has not ended within that time.
        StorageError: It belongs to another user.
    """
    note = _note_to_stop(run)
    process = noted(note)
    if process is None:
        return read_run(run.folder, name=run.name)  # it has just ended
    if force:
        if not kill_all(process):
            raise TrainingError(f"'{run.name}' was killed, but process {note.pid} has not gone yet; look again later")
        end_note(run.folder, note, "interrupted")
        return read_run(run.folder, name=run.name)
    if not note.stop_asked:  # a second signal would end it at once, without a checkpoint
        write_note(run.folder, replace(note, stop_asked=True))
        send(process, signal.SIGTERM)
        send(process, signal.SIGCONT)  # one that was suspended cannot hear
    tell(f"asked '{run.name}' (process {note.pid}) to stop after this step ...")
    deadline = time.monotonic() + wait_s
    # one without a terminal ends with its run; a notebook's process does not
    while read_state(run.folder) == "running" or (note.detached and is_alive(note.pid, note.start)):
        if time.monotonic() >= deadline:
            raise TrainingError(
                f"'{run.name}' has not ended within {wait_s:g} s; it will, after its step. Wait for it (wait=600), or "
                "kill it (force=True) and lose what came after its last checkpoint"
            )
        time.sleep(POLL_S)
    return read_run(run.folder, name=run.name)


def _note_to_stop(run: Run) -> Note:
    """Return the note of a run that this machine can stop."""
    if run.state not in ("running", "unknown"):
        raise ConfigError(f"'{run.name}' is not running: it has {ended_words(run)}")
    note = read_note(run.folder)
    if note is None or note.is_running is None:
        raise ConfigError(f"'{run.name}' cannot be stopped from here: {run.detail}")
    return note


def ended_words(run: Run) -> str:
    """Say how a run ended, as the end of a sentence."""
    words = {"finished": "finished", "interrupted": "been interrupted", "failed": f"failed ({run.detail})"}
    best = f", best fitness {run.fitness:.3f}" if run.fitness is not None else ""
    return f"{words.get(run.state, run.state)}; epochs done: {run.progress}{best}"


@dataclass(frozen=True)
class _Sign:
    """The last time a run said that it began or ended."""

    kind: str
    when: float
    reason: str


def _look(folder: Path) -> tuple[Note | None, State, str]:
    """Return the note, the state and its reason: what the process noted, then whether it lives, then the events."""
    try:
        note = read_note(folder)
        why = "nobody noted which process trains there, and it did not say how it ended"
    except (DataError, StorageError) as error:
        note, why = None, str(error)
    if note is not None and note.outcome is not None:
        return note, note.outcome, note.error
    running = None if note is None else note.is_running
    if running:
        return note, "running", ""
    sign = _last_sign(folder / EVENTS_FILE)
    ended: State | None = None
    if sign is not None and sign.kind == "RunEnded":
        ended = "interrupted" if sign.reason == "interrupted" else "finished"
    if note is None:
        return note, ended or "unknown", "" if ended else why
    is_news = sign is not None and sign.when >= note.since - 1
    if running is None:
        if is_news and ended is not None:
            return note, ended, ""
        where = f"it belongs to process {note.pid} on {note.host}"
        return note, "unknown", f"{where}, which cannot be seen from here; ask there"
    if is_news:
        return note, ended or "interrupted", ""  # killed, or the power went
    if note.stop_asked:
        return note, "interrupted", ""
    return note, "failed", "it ended before it began to train; see its log"


def _check_is_run(folder: Path) -> None:
    if not _is_run(folder):
        raise ConfigError(f"'{folder}' is {'no folder of a run' if folder.is_dir() else 'gone'}")


def _project(project: str | Path | None) -> Path:
    if project is None:
        return DEFAULT_PROJECT
    root = Path(project).expanduser()
    if not root.is_dir():
        raise ConfigError(f"project='{project}': there is no such folder")
    return root


def _is_run(folder: Path) -> bool:
    return (folder / NOTE_FILE).is_file() or (folder / EVENTS_FILE).is_file()


def _run_folders(root: Path, depth: int = _DEPTH) -> list[Path]:
    """Return the folders of runs below a folder."""
    found: list[Path] = []
    try:
        below = sorted(path for path in root.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read '{root}': {error.strerror or error}") from None
    for folder in below:
        if _is_run(folder):
            found.append(folder)
        elif depth > 1:
            found += _run_folders(folder, depth - 1)
    return found


def _last_sign(path: Path) -> _Sign | None:
    for line in _lines_from_the_end(path):
        if line.startswith((b'{"event":"RunStarted"', b'{"event":"RunEnded"')):
            try:
                event = json.loads(line)
                return _Sign(event["event"], float(event["unix_time"]), str(event.get("reason", "")))
            except (ValueError, KeyError, TypeError):
                continue  # a kill left half a line
    return None


def _first_time(path: Path) -> float | None:
    try:
        with path.open("rb") as file:
            return float(json.loads(file.readline())["unix_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, the last one first, without reading more of it than is asked for."""
    try:
        with path.open("rb") as file:
            position, head = file.seek(0, 2), b""
            while position > 0:
                size = min(_BLOCK, position)
                position -= size
                file.seek(position)
                head, *lines = (file.read(size) + head).split(b"\n")
                yield from reversed(lines)
            yield head
    except OSError:
        return  # there are no events to tell


def _offset_of_last_lines(path: Path, count: int) -> int:
    offset = size = path.stat().st_size
    for number, line in enumerate(_lines_from_the_end(path)):
        # the text behind the last line feed is a line only when there is any
        offset -= len(line) + (number > 0)
        count -= not (number == 0 and not line)
        if count <= 0:
            break
    return max(offset, 0) if count >= 0 else size


def _results(path: Path) -> list[dict[str, float]]:
    """Read ``results.csv`` as far as it can be read; a run that is being written to may end in half a row."""
    rows: list[dict[str, float]] = []
    try:
        whole, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        for row in csv.DictReader(whole.splitlines()):
            with contextlib.suppress(ValueError, TypeError):  # damaged rows tell nothing
                rows.append({name: float(text) for name, text in row.items() if name and text})
    except (OSError, csv.Error):
        return rows
    return [row for row in rows if "epoch" in row]


def _epochs(path: Path) -> int | None:
    """Return the epochs that a run was asked for, None when the time decides or nothing tells."""
    try:
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None
    if not isinstance(settings, dict) or settings.get("time") is not None:
        return None
    epochs = settings.get("epochs")
    return epochs if isinstance(epochs, int) else None
