"""Training that outlives the terminal: a process in a session of its own, its output in the run's ``log.txt``."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ullage.api.folders import FOLDER_VARIABLE, make_run_folder, remove_if_empty
from ullage.api.note import NOTE_FILE, note_of, noted_process, read_note, refuse_running, write_note
from ullage.api.processes import command_of, find_process
from ullage.api.runs import EVENTS_FILE, LOG_FILE, POLL_S, Run, ended_words, read_run
from ullage.config import TrainConfig
from ullage.errors import ConfigError, StorageError, TrainingError, UllageError

EARLY_S = 10.0  # what goes wrong within this time, once Python has imported everything, is said at the start
IMPORT_S = 60.0
_SHOWN_LINES = 20
_WRONG_CALL = 2  # the command's exit status when the call was wrong
# The numbers of processes that were started from here: while one of these objects lives, its end can be collected.
_started: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Detached:
    """A training that was started in a process of its own.

    Attributes:
        folder: Its run folder.
        pid: Its process, which leads a process group of its own.
        since: When it was started, seconds since 1970.
        is_new: Whether the folder was made for it.
        log_bytes: Size of the log before it.
        event_bytes: Size of ``events.jsonl`` before it.
    """

    folder: Path
    pid: int
    since: float
    is_new: bool
    log_bytes: int
    event_bytes: int

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder / LOG_FILE


def start_detached(config: TrainConfig) -> Detached:
    """Start a training that outlives this process and its terminal; ``wait_for_start`` tells how it begins.

    Args:
        config: As for ``train``; ``detach`` itself does not matter. ``resume`` goes on with an interrupted run, and its
            log is continued.

    Raises:
        ConfigError: There is no data, another process trains in that folder, or a setting cannot be handed over.
        StorageError: The folder cannot be made or written.
    """
    given = {key: value for key, value in config.flat().items() if key in _explicit(config) and key != "detach"}
    if config.run.resume is False:
        if config.data.data is None:
            raise ConfigError("train needs data=: a YAML, COCO JSON, folder, CSV, or 'demo'")
        words = _words(given)
        folder = make_run_folder(config.folder, verb="train")
    else:
        from ullage.api.start import checkpoint_to_resume  # brings in torch

        file = checkpoint_to_resume(config)
        if file is None or not file.is_file():
            raise ConfigError(f"resume: there is no checkpoint '{file}'; name one: model=.../weights/last.pt")
        words = _words({**given, "resume": str(file)})
        folder = (file if len(file.parts) > 2 else file.absolute()).parent.parent
    sizes = [_size(folder / name) for name in (LOG_FILE, EVENTS_FILE)]
    try:
        with _alone(folder):
            refuse_running(folder)
            process = _spawn(words, folder)
            found = find_process(process.pid)
            since = time.time()
            if found is not None:  # it will note itself, but only when it has imported everything
                note = note_of(found, command_of(found), detached=True)
                write_note(folder, note)
                since = note.since
    except OSError as error:
        raise StorageError(f"cannot start a training in '{folder}': {error.strerror or error}") from None
    return Detached(folder, process.pid, since, config.run.resume is False, *sizes)


def resume_detached(run: Run, *, force: bool = False) -> Detached:
    """Go on with an interrupted run, detached, from its last checkpoint.

    Args:
        run: The run.
        force: Also when nobody here can say whether its process still lives; on another host it may.

    Raises:
        ConfigError: It is running, has finished, has no checkpoint, or may be running elsewhere.
    """
    if run.state == "running":
        raise ConfigError(f"'{run.name}' is already running: process {run.pid} on {run.host}")
    if run.state == "finished":
        raise ConfigError(f"'{run.name}' has {ended_words(run)}; there is nothing to resume")
    if run.state == "unknown" and not force:
        raise ConfigError(f"'{run.name}' may still be running: {run.detail}; if you know that it is not: force=True")
    if not run.last.is_file():
        raise ConfigError(f"'{run.name}' ended before its first checkpoint, there is nothing to resume; train it anew")
    return start_detached(TrainConfig.load({"resume": str(run.last)}))


def wait_for_start(started: Detached) -> Run | None:
    """Wait until a detached training has begun to train.

    Args:
        started: What ``start_detached`` returned.

    Returns:
        The run; None when it still prepares.

    Raises:
        ConfigError: It ended before it began, because the call was wrong.
        TrainingError: It ended before it began, for another reason.
        KeyboardInterrupt: The user has changed their mind; the training is ended, too.
    """
    deadline, has_imported = time.monotonic() + IMPORT_S, False
    try:
        while True:
            status = _status(started.pid)
            if status is not None and status != 0:
                raise _failure(started, status)
            if status == 0 or b'"RunStarted"' in _tail(started.folder / EVENTS_FILE, started.event_bytes):
                return read_run(started.folder)
            if not has_imported and (note := read_note(started.folder)) is not None and note.since != started.since:
                deadline, has_imported = time.monotonic() + EARLY_S, True
            if time.monotonic() >= deadline:
                return None
            time.sleep(POLL_S / 2)
    except KeyboardInterrupt:
        with contextlib.suppress(ProcessLookupError):
            os.kill(started.pid, signal.SIGTERM)  # a child of this process: nobody else has its number
        raise


@contextlib.contextmanager
def detached_here() -> Iterator[None]:
    """In a process that was started detached: note it in its folder, and let SIGTERM end it as Ctrl-C does.

    Anywhere else it does nothing.

    Raises:
        ConfigError: Another process trains in that folder.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with noted_process(Path(folder), was_noted=True):
        yield


def refuse_detached(config: TrainConfig) -> None:
    """Refuse ``detach=True`` where the caller waits for the result.

    Raises:
        ConfigError: It is set.
    """
    if config.run.detach:
        raise ConfigError(
            "detach=True returns before there is a result, so it belongs to the command: ullage train ... detach=True; "
            "in Python: ullage.api.detached.start_detached(TrainConfig.load({...}))"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time look whether somebody trains in a folder, and begin; where locks work, that is."""
    with (folder / LOG_FILE).open("ab") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _explicit(config: TrainConfig) -> set[str]:
    return {key for name in config.sections() for key in getattr(config, name).model_fields_set}


def _words(given: dict[str, Any]) -> list[str]:
    """Write settings as words of a command line, and check that they are read back the same.

    Raises:
        ConfigError: One cannot be written so.
    """
    texts = {key: _word(value) for key, value in given.items()}
    wanted, found = TrainConfig.load(given).flat(), TrainConfig.load(TrainConfig.parse(texts)).flat()
    for key in given:
        if found[key] != wanted[key]:
            raise ConfigError(f"{key}={given[key]!r} cannot be handed to a detached run; choose another value")
    return [f"{key}={text}" for key, text in texts.items()]


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ",".join(_word(part) for part in value) + "]"
    return str(value)


def _spawn(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start ``ullage train`` in a session of its own, which no terminal's end reaches."""
    for earlier in _started:
        earlier.poll()  # collects those that have ended
    _started[:] = [earlier for earlier in _started if earlier.returncode is None]
    command = [sys.executable, "-P", "-u", "-m", "ullage", "train", *words]  # -P: no module of the current folder
    with (folder / LOG_FILE).open("ab") as log:
        if log.tell() > 0:
            log.write(f"\n--- {time.strftime('%Y-%m-%d %H:%M:%S')}: ullage train {' '.join(words)}\n".encode())
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, FOLDER_VARIABLE: str(folder)},
        )
    _started.append(process)
    return process


def _status(pid: int) -> int | None:
    return next(process.poll() for process in _started if process.pid == pid)


def _failure(started: Detached, status: int) -> UllageError:
    """Make an error of what the process said last; of a run that never began, nothing stays."""
    lines = _tail(started.log, started.log_bytes).decode("utf-8", errors="replace").strip().splitlines()
    last = lines[-1].removeprefix("ullage: ") if lines else f"the process ended with status {status}"
    if status < 0:
        last = f"the process was ended by signal {-status} ({signal.Signals(-status).name})"
    said = [line for line in lines[-_SHOWN_LINES:] if line.startswith("ullage: ")]
    if started.is_new and len(lines) == len(said) == 1 and started.log_bytes == started.event_bytes == 0:
        for name in (LOG_FILE, NOTE_FILE):
            (started.folder / name).unlink(missing_ok=True)
        remove_if_empty(started.folder)
    else:
        last = f"{last} (the log is '{started.log}')"
    return ConfigError(last) if status == _WRONG_CALL else TrainingError(last)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tail(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""
