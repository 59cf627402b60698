"""What the folders of runs tell: state, progress, and which process it is; damaged, shared and reused ones included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ullage.api.detached import Detached, refuse_detached, resume_detached, start_detached
from ullage.api.folders import FOLDER_VARIABLE, make_run_folder
from ullage.api.note import NOTE_FILE, Note, noted_process, read_note, refuse_running, write_note
from ullage.api.processes import (
    Process,
    descendants,
    find_process,
    is_alive,
    kill_all,
    send,
    this_machine,
    this_process,
)
from ullage.api.runs import Run, find_run, follow, list_runs, read_run, stop
from ullage.config import FolderSettings, TrainConfig
from ullage.errors import ConfigError, DataError, StorageError, TrainingError

# Ends when it is asked to, after it has taken its child along.
OBEDIENT = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
def end(*_):
    child.kill()
    child.wait()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
signal.pause()
"""
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "detect"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        for left in (*descendants(process.pid), find_process(process.pid)):
            if left is not None:
                send(left, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def begin(code: str, started: list[subprocess.Popen[str]]) -> Process:
    """Start a program that says when it is ready, in a session of its own."""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    found = find_process(process.pid)
    assert found is not None
    return found


def note_of(process: Process, **changes: object) -> Note:
    here = this_machine()
    where = {"host": here.host, "boot": here.boot, "namespace": here.namespace}
    who = {"pid": process.pid, "start": process.start, "writer_pid": process.pid, "writer_start": process.start}
    return replace(Note(**where, **who, command=("ullage", "train"), since=time.time()), **changes)


def make_run(project: Path, name: str, *, note: Note | None = None, events: str = "", epochs: int = 5) -> Path:
    """Make the folder of a run; ``events``: s began, e ended, i was interrupted, all a while ago."""
    folder = project / name
    (folder / "weights").mkdir(parents=True)
    (folder / "args.yaml").write_text(f"data: demo\nepochs: {epochs}\ntime: null\n")
    kinds = {"s": ("RunStarted", ""), "e": ("RunEnded", "all epochs done"), "i": ("RunEnded", "interrupted")}
    when = time.time() if note is None else note.since + 1
    lines = [
        json.dumps({"event": kinds[k][0], "unix_time": when, "reason": kinds[k][1]}, separators=(",", ":"))
        for k in events
    ]
    (folder / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if note is not None:
        write_note(folder, note)
    return folder


def dead(process: Process) -> Note:
    """Return a note of a process that is no more: of this number, but begun at another time."""
    return note_of(replace(process, start="1"))


def test_a_run_is_running_while_its_very_process_lives(project: Path) -> None:
    folder = make_run(project, "mine", note=note_of(this_process()), events="s")
    run = read_run(folder)
    assert (run.state, run.pid, run.host) == ("running", os.getpid(), this_machine().host)
    # the same number, given to another process since: that one must neither count nor be stopped
    write_note(folder, dead(this_process()))
    assert read_run(folder).state == "interrupted"
    with pytest.raises(ConfigError, match="'mine' is not running: it has been interrupted"):
        stop(read_run(folder), force=True)


@pytest.mark.parametrize(
    ("events", "state"), [("s", "interrupted"), ("se", "finished"), ("si", "interrupted"), ("sis", "interrupted")]
)
def test_of_a_dead_process_the_events_tell(project: Path, events: str, state: str) -> None:
    assert read_run(make_run(project, "run", note=dead(this_process()), events=events)).state == state


def test_a_run_that_died_before_it_trained_has_failed_unless_it_was_asked_to(project: Path) -> None:
    note = dead(this_process())
    folder = make_run(project, "early", note=note)
    assert read_run(folder).state == "failed"
    assert "log" in read_run(folder).detail
    # what an earlier attempt did does not count for the last one
    old = json.dumps(
        {"event": "RunEnded", "unix_time": note.since - 60, "reason": "interrupted"}, separators=(",", ":")
    )
    (folder / "events.jsonl").write_text(old + "\n")
    assert read_run(folder).state == "failed"
    write_note(folder, replace(note, stop_asked=True))
    assert read_run(folder).state == "interrupted"


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_what_another_machine_runs_is_unknown_and_left_alone(project: Path, change: dict[str, str]) -> None:
    folder = make_run(project, "far", note=note_of(this_process(), **change), events="s")
    run = read_run(folder)
    assert run.state == "unknown"
    assert run.pid == os.getpid()
    with pytest.raises(ConfigError, match="cannot be stopped from here"):
        stop(run, force=True)
    (folder / "weights/last.pt").touch()
    with pytest.raises(ConfigError, match=r"may still be running.*force=True"):
        resume_detached(run)
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event":"RunEnded","unix_time":%f,"reason":"all epochs done"}\n' % (time.time() + 9))
    assert read_run(folder).state == "finished"


def test_nothing_outlives_a_reboot(project: Path) -> None:
    folder = make_run(project, "run", note=note_of(this_process(), boot="another"), events="s")
    assert read_run(folder).state == "interrupted"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"pid": 1}', '{"pid": "x"}', "\x00\xff", "[" * 100_000, '"text"', "7"]
)
def test_a_damaged_note_is_said_and_stops_nothing(project: Path, text: str) -> None:
    folder = make_run(project, "torn", events="s")
    (folder / NOTE_FILE).write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        read_note(folder)
    (run,) = list_runs()
    assert (run.state, run.pid) == ("unknown", None)
    assert "is damaged" in run.detail
    with pytest.raises(DataError, match="is damaged"):
        stop(run)
    with noted_process(folder):  # a new attempt replaces it
        assert read_run(folder).state == "running"
    assert read_run(folder).state == "finished"


@pytest.mark.parametrize("change", [{"pid": -1}, {"pid": True}, {"start": 7}, {"outcome": "odd"}, {"since": "now"}])
def test_a_note_with_a_wrong_value_is_damaged(project: Path, change: dict[str, object]) -> None:
    folder = make_run(project, "run", events="s")
    (folder / NOTE_FILE).write_text(json.dumps({**asdict(note_of(this_process())), **change}))
    with pytest.raises(DataError, match="is damaged"):
        read_note(folder)


def test_keys_of_a_later_version_do_no_harm(project: Path) -> None:
    folder = make_run(project, "run", events="s")
    (folder / NOTE_FILE).write_text(json.dumps({**asdict(note_of(this_process())), "ranks": [1, 2]}))
    assert read_run(folder).state == "running"


def test_the_note_tells_how_it_ended(project: Path) -> None:
    folder = make_run(project, "run", events="s")
    with noted_process(folder):
        note = read_note(folder)
        assert note is not None
        assert (note.pid, note.start, note.ended) == (os.getpid(), this_process().start, None)
        with noted_process(folder):  # as a trainer within a command does
            pass
        assert read_run(folder).state == "running"
    assert read_run(folder).state == "finished"
    with pytest.raises(TrainingError), noted_process(folder):
        raise TrainingError("the loss is\nnot finite")
    assert (read_run(folder).state, read_run(folder).detail) == ("failed", "the loss is not finite")
    with pytest.raises(KeyboardInterrupt), noted_process(folder):
        raise KeyboardInterrupt
    assert read_run(folder).state == "interrupted"


def test_two_processes_do_not_train_in_one_folder(project: Path, started: list[subprocess.Popen[str]]) -> None:
    other = begin(OBEDIENT, started)
    folder = make_run(project, "run", note=note_of(other), events="s")
    with pytest.raises(ConfigError, match=f"process {other.pid} on .* trains there"):
        refuse_running(folder)
    with pytest.raises(ConfigError, match="already in use"), noted_process(folder):
        pytest.fail("it must not begin")
    (folder / "weights/last.pt").touch()
    with pytest.raises(ConfigError, match=f"already running: process {other.pid}"):
        resume_detached(read_run(folder))
    note = read_note(folder)
    assert note is not None
    assert note.pid == other.pid


def test_a_child_leaves_the_note_of_its_launcher(project: Path) -> None:
    folder = make_run(project, "run", events="s")
    code = f"""
from pathlib import Path
from ullage.api.note import noted_process
with noted_process(Path({str(folder)!r})):
    print("in")
"""
    with noted_process(folder):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
        note = read_note(folder)
    assert run.stdout == "in\n"
    assert note is not None
    assert (note.pid, note.ended) == (os.getpid(), None)


def test_of_several_processes_the_launcher_is_noted_also_when_they_are_started_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended alone, a process would only be started again."""
    folder = make_run(project, "run", events="s")
    code = f"""
import os, signal
from pathlib import Path
from ullage.api.note import noted_process, read_note
with noted_process(Path({str(folder)!r})):
    print(read_note(Path({str(folder)!r})).pid, flush=True)
    if os.environ["DIES"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ullage-1")
    for dies, state in (("1", "running"), ("0", "finished")):
        environment = {**os.environ, "DIES": dies}
        run = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment, timeout=240, check=False
        )
        assert run.stdout == f"{os.getpid()}\n"
        assert read_run(folder).state == state
    note = read_note(folder)
    assert note is not None
    assert "python" in " ".join(note.command), "pytest's, or that of a process of pytest-xdist"


def test_a_folder_that_vanishes_does_not_hide_how_the_run_ended(project: Path) -> None:
    folder = make_run(project, "run", events="s")

    def fail() -> None:
        with noted_process(folder):
            folder.rename(project / "away")
            raise TrainingError("first")

    with pytest.raises(TrainingError, match="first"):
        fail()


def test_runs_are_listed_by_age_with_their_progress(project: Path) -> None:
    first = make_run(project, "b", note=note_of(this_process(), since=time.time() - 100), events="s", epochs=9)
    make_run(project, "digits/small", events="e")
    (project / "val").mkdir()  # an evaluation's folder is no run
    (first / "results.csv").write_text("epoch,time,fitness\n1,10,0.5\n2,20.5,0.75\n3,31,0.25\n4,")
    runs = list_runs()
    assert [run.name for run in runs] == ["b", "digits/small"]
    assert (runs[0].epoch, runs[0].epochs, runs[0].progress, runs[0].fitness) == (3, 9, "3/9", 0.75)
    assert 31 <= runs[0].seconds < 60
    assert (runs[1].state, runs[1].fitness, runs[1].pid) == ("finished", None, None)
    (first / "args.yaml").write_text("epochs: 9\ntime: 2.5\n")
    assert read_run(first).progress == "3"


def test_the_latest_sign_is_found_in_a_long_file_with_a_torn_end(project: Path) -> None:
    folder = make_run(project, "run", note=dead(this_process()), events="se")
    with (folder / "events.jsonl").open("a") as file:
        file.writelines('{"event":"StepDone","unix_time":1.0,"losses":{"box":1.0,"cls":2.0}}\n' for _ in range(5000))
        file.write('{"event":"RunStarted","unix_ti')
    assert read_run(folder).state == "finished"


def test_runs_are_found_by_name_by_folder_and_by_being_the_only_one(project: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is running"):
        find_run()
    folder = make_run(project, "night", note=note_of(this_process()), events="s")
    make_run(project, "old", events="e")
    assert find_run().folder == find_run("night").folder == Path("runs/detect/night")
    assert find_run(str(folder)).name == "night"
    assert find_run("night", project=project).folder == folder
    with pytest.raises(ConfigError, match=r"no run 'nihgt'.*there are: night, old.*Did you mean 'night'"):
        find_run("nihgt")
    with pytest.raises(ConfigError, match=r"'nowhere'.*no such folder"):
        list_runs("nowhere")
    make_run(project, "noon", note=note_of(this_process()), events="s")
    with pytest.raises(ConfigError, match=r"several runs are running.*night.*noon|noon.*night"):
        find_run()
    (folder / "events.jsonl").unlink()
    (folder / NOTE_FILE).unlink()
    with pytest.raises(ConfigError, match="no folder of a run"):
        read_run(folder)
    with pytest.raises(ConfigError, match="is gone"):
        read_run(project / "never")


def test_following_ends_with_the_run_and_loses_nothing(project: Path) -> None:
    folder = make_run(project, "run", note=note_of(this_process()), events="s")
    (folder / "log.txt").write_bytes("".join(f"line {n}\n" for n in range(20)).encode() + "ä".encode()[:1])
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.extend(follow(read_run(folder), lines=3)))
    reader.start()
    deadline = time.monotonic() + 60
    while "line 19" not in "".join(texts) and time.monotonic() < deadline:
        time.sleep(0.02)
    with (folder / "log.txt").open("ab") as log:  # the rest of a letter, then the last words
        log.write("ä".encode()[1:] + b" and the end\n")
    write_note(folder, note_of(this_process(), ended=time.time(), outcome="finished"))
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert "".join(texts) == "line 18\nline 19\nä and the end\n"


@pytest.mark.parametrize(
    ("text", "lines", "shown"),
    [("", 10, ""), ("a\nb\nc\n", 2, "b\nc\n"), ("a\nb\nc", 2, "b\nc"), ("a\nb\n", 10, "a\nb\n"), ("a\nb\n", 0, "")],
)
def test_the_last_lines_of_a_log_are_shown_first(project: Path, text: str, lines: int, shown: str) -> None:
    folder = make_run(project, "run", events="e")
    (folder / "log.txt").write_text(text)
    assert "".join(follow(read_run(folder), lines=lines)) == shown


def test_a_run_without_a_log_says_where_to_look(project: Path) -> None:
    folder = make_run(project, "run", note=note_of(this_process()), events="s")
    with pytest.raises(ConfigError, match=r"no log.*events\.jsonl"):
        list(follow(read_run(folder)))


def test_stopping_asks_once_waits_and_says_what_it_left(project: Path, started: list[subprocess.Popen[str]]) -> None:
    process = begin(OBEDIENT, started)
    folder = make_run(project, "run", note=note_of(process), events="s")
    os.kill(process.pid, signal.SIGSTOP)  # one that is suspended hears, too
    said: list[str] = []
    run = stop(read_run(folder), wait_s=60, tell=said.append)
    assert run.state == "interrupted"
    assert len(said) == 1
    assert is_alive(process.pid, process.start) is False
    with pytest.raises(ConfigError, match="is not running"):
        stop(run)


def test_a_run_that_does_not_hear_is_reported_and_can_be_killed(
    project: Path, started: list[subprocess.Popen[str]]
) -> None:
    process = begin(DEAF, started)
    folder = make_run(project, "run", note=note_of(process), events="s")
    with pytest.raises(TrainingError, match=r"has not ended within 0\.1 s.*force=True"):
        stop(read_run(folder), wait_s=0.1, tell=lambda _: None)
    assert is_alive(process.pid, process.start)
    assert stop(read_run(folder), force=True).state == "interrupted"
    assert is_alive(process.pid, process.start) is False


def test_killing_takes_descendants_in_other_sessions_along_and_spares_everybody_else(
    started: list[subprocess.Popen[str]],
) -> None:
    code = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print("ready", flush=True)
import time; time.sleep(60)
"""
    process, bystander = begin(code, started), begin(DEAF, started)
    (child,) = descendants(process.pid)
    assert child.group != process.group
    assert kill_all(process)
    deadline = time.monotonic() + 30
    while is_alive(child.pid, child.start) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child.pid, child.start)
    assert is_alive(bystander.pid, bystander.start)
    # the same number with another start is another process
    assert send(replace(bystander, start="1"), signal.SIGKILL) is False
    assert is_alive(bystander.pid, bystander.start)


def test_of_a_group_that_is_not_its_own_a_run_takes_nobody_along(started: list[subprocess.Popen[str]]) -> None:
    """A run in a script shares the script's group."""
    process = find_process(os.getpid())
    assert process is not None
    child = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True)  # in this test's group
    started.append(child)
    assert child.stdout is not None
    child.stdout.readline()
    found = find_process(child.pid)
    assert found is not None
    assert found.group == process.group
    assert kill_all(found)
    assert child.wait(timeout=60) == -signal.SIGKILL


def test_an_ended_process_that_nobody_collects_is_dead(started: list[subprocess.Popen[str]]) -> None:
    process = begin("print('ready', flush=True); import time; time.sleep(60)", started)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while is_alive(process.pid, process.start) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Path(f"/proc/{process.pid}").exists() or sys.platform != "linux"
    assert is_alive(process.pid, process.start) is False


def test_what_ps_tells_is_what_proc_tells(started: list[subprocess.Popen[str]]) -> None:
    from ullage.api import processes

    process = begin(OBEDIENT, started)
    (asked,) = processes._from_ps("-p", str(process.pid)).values()
    assert (asked.pid, asked.parent, asked.group) == (process.pid, os.getpid(), process.pid)
    assert asked.start == processes._from_ps("-A")[process.pid].start
    assert processes._from_ps("-p", "999999999") == {}


@pytest.mark.parametrize(
    ("settings", "part"),
    [({}, "train needs data="), ({"data": "demo", "name": "none"}, "name='none' cannot be handed to a detached run")],
)
def test_a_call_that_cannot_work_starts_nothing(project: Path, settings: dict[str, str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        start_detached(TrainConfig.load(settings))
    assert list(project.iterdir()) == []


def test_runs_that_have_nothing_to_go_on_with_are_not_resumed(project: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        resume_detached(read_run(make_run(project, "whole", events="e")))
    with pytest.raises(ConfigError, match="before its first checkpoint"):
        resume_detached(read_run(make_run(project, "short", events="i")))
    with pytest.raises(ConfigError, match="no checkpoint"):
        start_detached(TrainConfig.load({"resume": str(project / "short/weights/last.pt")}))


def test_settings_are_handed_over_as_they_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ullage.api import detached

    heard: list[list[str]] = []

    class Silent:
        pid = 2**22 + 1

    monkeypatch.setattr(detached, "_spawn", lambda words, folder: heard.append(words) or Silent())
    settings = {
        "data": "my data/ü=1.yaml", "imgsz": (320, 608), "classes": [3], "device": [0, 1], "name": "007", "lr0": 1e-5,
        "freeze": [0, 2], "memory": "8GB", "cache": True, "resume": False, "project": str(project), "detach": True,
    }  # fmt: skip
    config = TrainConfig.load(settings)
    started = start_detached(config)
    assert isinstance(started, Detached)
    assert started.folder == project / "007"
    texts = dict(word.split("=", 1) for word in heard[0])
    assert "detach" not in texts
    given = TrainConfig.load(TrainConfig.parse(texts))
    assert given.flat() == {**config.flat(), "detach": False}
    assert sorted(texts) == sorted(set(settings) - {"detach"})


def test_a_detached_training_takes_the_folder_that_was_made_for_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FolderSettings(project=str(project), name="run")
    folder = make_run_folder(settings, verb="train")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    assert make_run_folder(settings, verb="train") == folder
    assert make_run_folder(settings, verb="val") == project / "run2"


def test_python_is_told_where_detaching_belongs() -> None:
    with pytest.raises(ConfigError, match=r"detach=True.*start_detached"):
        refuse_detached(TrainConfig.load({"data": "demo", "detach": True}))
    refuse_detached(TrainConfig.load({"data": "demo"}))


def test_an_unreadable_project_is_said(project: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser reads everything")
    project.chmod(0)
    try:
        with pytest.raises(StorageError, match="cannot read"):
            list_runs()
    finally:
        project.chmod(0o755)


def test_a_run_is_plain_data(project: Path) -> None:
    run = read_run(make_run(project, "run", events="e"))
    assert Run(**asdict(run)) == run
