"""``ullage runs``, and ``ullage train detach``: call the api, show what came out."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ullage.api import runs as api
from ullage.api.detached import Detached, resume_detached, start_detached, wait_for_start
from ullage.api.folders import DEFAULT_PROJECT
from ullage.api.runs import Run
from ullage.config import TrainConfig
from ullage.config.runs import RunsFollowConfig, RunsListConfig, RunsResumeConfig, RunsStopConfig
from ullage.errors import TrainingError
from ullage.units import format_duration

_WIDE = 100  # characters of a reason that are shown in the list


def start_run(config: TrainConfig) -> None:
    """Start a training that outlives the terminal, and say what it is called and how to follow it.

    Raises:
        UllageError: It cannot be started, or fails while it prepares.
    """
    _say_started(start_detached(config), project=config.folder.project)


def resume_run(config: RunsResumeConfig) -> None:
    """Go on with an interrupted run, detached.

    Raises:
        UllageError: It cannot go on, or fails while it prepares.
    """
    run = api.find_run(config.runs.name, project=config.runs.project)
    _say_started(resume_detached(run, force=config.runs.force), project=config.runs.project)


def list_runs(config: RunsListConfig) -> None:
    """Print a line for every run."""
    found = api.list_runs(config.runs.project)
    if not found:
        print(f"no runs in '{config.runs.project or DEFAULT_PROJECT}'; project= names another folder")
        return
    head = ("name", "state", "epoch", "fitness", "started", "time", "pid")
    rows = [head, *(_columns(run) for run in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row, run in zip(rows, (None, *found), strict=True):
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
        if run is not None and run.detail:
            print(f"  {run.detail if len(run.detail) <= _WIDE else run.detail[: _WIDE - 3] + '...'}")


def follow_run(config: RunsFollowConfig) -> None:
    """Print a run's log as it grows, until the run ends; Ctrl-C leaves the run alone.

    Raises:
        UllageError: There is no such run or log, or the run has failed.
    """
    run = api.find_run(config.runs.name, project=config.runs.project)
    try:
        for text in api.follow(run, lines=config.runs.lines):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"\n'{run.name}' goes on; 'ullage runs stop {_call_of(run, config.runs.project)}' would stop it")
        return
    run = api.read_run(run.folder, name=run.name)
    if run.state == "failed":
        raise TrainingError(f"'{run.name}' has {api.ended_words(run)}")
    print(f"'{run.name}' has {api.ended_words(run)}")


def stop_run(config: RunsStopConfig) -> None:
    """Stop a run and say what it left.

    Raises:
        UllageError: There is no such run, it is not running, or it does not end in time.
    """
    chosen = config.runs
    before = api.find_run(chosen.name, project=chosen.project)
    run = api.stop(before, force=chosen.force, wait_s=chosen.wait, tell=lambda text: print(text, flush=True))
    print(f"'{run.name}' has {api.ended_words(run)}")
    if run.state == "finished":
        print(f"results in {run.folder}")
    elif run.last.is_file():
        print(f"go on with: ullage runs resume {_call_of(run, chosen.project)}      (from {run.last})")
    else:
        print("it has no checkpoint yet: there is nothing to go on with")


def _say_started(started: Detached, *, project: str | None) -> None:
    root = Path(project).expanduser() if project is not None else DEFAULT_PROJECT
    inside = started.folder.is_relative_to(root)
    name = started.folder.relative_to(root).as_posix() if inside else str(started.folder)
    call = _call(name, project if inside else None)
    print(f"'{name}' starts detached, process {started.pid}, in {started.folder}", flush=True)
    run = wait_for_start(started)
    print("it still prepares; the log tells when it trains" if run is None else "it trains")
    print(f"  ullage runs follow {call}      shows its log, {started.log}")
    print(f"  ullage runs stop {call}      stops it, so that it can go on")


def _call_of(run: Run, project: str | None) -> str:
    root = Path(project).expanduser() if project is not None else DEFAULT_PROJECT
    is_inside = run.folder == root / run.name
    return _call(run.name if is_inside else str(run.folder), project if is_inside else None)


def _call(name: str, project: str | None) -> str:
    return shlex.join([name, *([f"project={project}"] if project is not None else [])])


def _columns(run: Run) -> Sequence[str]:
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)) if run.started is not None else "-"
    here = run.state != "unknown"
    pid = "-" if run.pid is None else str(run.pid) if here else f"{run.pid} on {run.host}"
    fitness = "-" if run.fitness is None else f"{run.fitness:.3f}"
    seconds = format_duration(round(run.seconds)) if run.seconds else "-"
    return run.name, run.state, run.progress, fitness, started, seconds, pid
