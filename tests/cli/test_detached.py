"""``train detach`` and ``runs`` as processes: the terminal dies, the run does not."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ullage.api.detached import start_detached, wait_for_start
from ullage.api.note import read_note
from ullage.api.processes import find_process, is_alive, kill_all
from ullage.api.runs import list_runs, read_run
from ullage.apps.cli.main import main
from ullage.config import TrainConfig
from ullage.errors import ConfigError

COMMAND = [sys.executable, "-m", "ullage"]
TINY = {
    "model": "yolo11n", "data": "demo", "fraction": 0.02, "imgsz": 64, "batch": 2, "workers": 0, "device": "cpu",
    "plots": False, "val": False,
}  # fmt: skip
ENDLESS = {**TINY, "epochs": 100_000}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what still runs below it at the end is killed."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for run in list_runs():
        process = find_process(run.pid) if run.state == "running" and run.pid else None
        if process is not None:
            kill_all(process)


def words(settings: dict[str, object]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def wait_until(is_so: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


def in_a_terminal(script: str) -> tuple[int, int]:
    """Run a shell script in a terminal of its own; return the shell's number and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may be immune to it
        os.execv("/bin/sh", ["sh", "-c", script])
    return pid, terminal


def read_until(terminal: int, text: bytes) -> str:
    found = b""
    while text not in found:
        found += os.read(terminal, 4096)  # ends with an error when the shell does
    return found.decode()


@pytest.mark.slow
def test_a_run_outlives_its_terminal_and_is_followed_stopped_and_resumed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("runs/detect/night")
    call = " ".join([*COMMAND, "train", *words(ENDLESS), "name=night", "detach"])
    shell, terminal = in_a_terminal(f"{call}; echo status $?; sleep 600")
    said = read_until(terminal, b"status")
    note = read_note(folder)
    assert note is not None
    assert f"'night' starts detached, process {note.pid}, in {folder}" in said
    assert "ullage runs follow night" in said

    os.close(terminal)  # the window is closed: SIGHUP for whoever belongs to it
    assert os.waitstatus_to_exitcode(os.waitpid(shell, 0)[1]) == -signal.SIGHUP
    assert is_alive(note.pid, note.start)
    assert os.getsid(note.pid) == os.getpgid(note.pid) == note.pid
    assert os.readlink(f"/proc/{note.pid}/fd/0") == "/dev/null"

    follower = subprocess.Popen([*COMMAND, "runs", "follow", "night"], stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    first = next(line for line in follower.stdout if re.match(r" *\d+/100000 ", line))
    later = next(line for line in follower.stdout if re.match(r" *\d+/100000 ", line))
    assert int(later.split("/")[0]) == int(first.split("/")[0]) + 1
    follower.send_signal(signal.SIGINT)
    rest, _ = follower.communicate(timeout=240)
    assert follower.returncode == 0
    assert "'night' goes on; 'ullage runs stop night' would stop it" in rest

    capsys.readouterr()
    assert main(["runs"]) == 0
    assert re.search(rf"^night +running +\d+/100000 .* {note.pid}$", capsys.readouterr().out, re.MULTILINE)
    assert main(["runs", "resume", "night"]) == 2
    assert "already running" in capsys.readouterr().err
    assert main(["train", "resume", f"model={folder}/weights/last.pt", "detach"]) == 2
    assert "is already in use" in capsys.readouterr().err

    assert main(["runs", "stop", "night"]) == 0
    assert "go on with: ullage runs resume night" in capsys.readouterr().out
    stopped = read_run(folder)
    assert (stopped.state, stopped.last.is_file(), is_alive(note.pid, note.start)) == ("interrupted", True, False)
    assert main(["runs", "stop"]) == 2
    assert "nothing is running" in capsys.readouterr().err

    before = (folder / "log.txt").read_text()
    assert main(["runs", "resume", "night"]) == 0
    resumed = read_note(folder)
    assert resumed is not None
    assert resumed.pid != note.pid
    assert f"'night' starts detached, process {resumed.pid}, in {folder}" in capsys.readouterr().out
    log = folder / "log.txt"
    following = f"\n{stopped.epoch + 2}/100000"  # one that was stopped at its very end prints no line
    wait_until(lambda: following in log.read_text().replace(" ", ""), "it goes on where it was", seconds=60)
    assert "\n1/100000" not in log.read_text()[len(before) :].replace(" ", "")
    assert log.read_text().startswith(before)
    capsys.readouterr()
    assert main(["runs", "stop", "force"]) == 0
    assert "'night' has been interrupted" in capsys.readouterr().out
    assert not is_alive(resumed.pid, resumed.start)


@pytest.mark.slow
def test_a_run_that_ends_ends_whoever_follows_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = start_detached(TrainConfig.load({**TINY, "epochs": 2, "name": "short", "detach": True}))
    wait_for_start(started)
    assert main(["runs", "follow", "short", "lines=1000"]) == 0
    text = capsys.readouterr().out
    assert "2/2" in text
    assert text.splitlines()[-1] == "'short' has finished; epochs done: 2/2"
    assert main(["runs", "resume", "short"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert "detach: false" in (started.folder / "args.yaml").read_text()
    assert "name: short" in (started.folder / "args.yaml").read_text()
    note = read_note(started.folder)
    assert note is not None
    assert (note.detached, note.outcome, note.pid) == (True, "finished", started.pid)
    assert {"ullage", "train", "name=short", "epochs=2"} <= set(note.command)


@pytest.mark.slow
def test_what_goes_wrong_before_training_is_said_in_the_terminal_and_leaves_nothing(home: Path) -> None:
    call = [*COMMAND, "train", *words({**TINY, "data": "nowhere.yaml"}), "detach"]
    run = subprocess.run(call, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("ullage: there is no data set 'nowhere.yaml'")
    assert list(Path("runs/detect").iterdir()) == []


@pytest.mark.slow
def test_a_resume_that_cannot_work_says_so_and_keeps_the_run(home: Path) -> None:
    folder = Path("runs/detect/old")
    (folder / "weights").mkdir(parents=True)
    (folder / "weights/last.pt").write_bytes(b"no checkpoint")
    (folder / "log.txt").write_text("of before\n")
    (folder / "events.jsonl").write_text('{"event":"RunEnded","unix_time":1.0,"reason":"interrupted"}\n')
    started = start_detached(TrainConfig.load({"resume": str(folder / "weights/last.pt"), "imgsz": 64}))
    with pytest.raises(Exception, match=r"last\.pt.*the log is") as caught:
        wait_for_start(started)
    assert "ullage: " not in str(caught.value)
    assert (folder / "log.txt").read_text().startswith("of before\n")
    assert read_run(folder).state == "failed"
    assert "last.pt" in read_run(folder).detail


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("runs strop", ("'runs strop' is unknown", "runs stop", "Did you mean 'stop'?")),
        ("runs stop night", ("no run 'night'", "there are none")),
        ("runs stop", ("nothing is running",)),
        ("runs follow", ("nothing is running",)),
        ("runs resume", ("needs 'name'",)),
        ("runs follow a b", ("'b' is not a setting of runs follow",)),
        ("runs project=nowhere", ("project='nowhere'", "no such folder")),
        ("runs stop x wait=-1", ("wait=-1", "at least 0")),
        ("runs list night", ("'night'", "runs list")),
        ("train detach", ("train needs data=",)),
        ("train data=demo detach=maybe", ("detach='maybe'",)),
        ("train data=demo detach epoch=3", ("'epoch'", "Did you mean 'epochs'?")),
        ("demo detach", ("demo sets 'detach' itself",)),
        ("train detach resume model=none/last.pt", ("none/last.pt",)),
    ],
)
def test_a_wrong_call_is_one_line_and_starts_nothing(
    line: str, parts: tuple[str, ...], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    for part in parts:
        assert part in output.err
    assert not Path("runs").exists()


def test_a_folder_without_runs_is_no_error(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    assert capsys.readouterr().out.startswith("no runs in 'runs/detect'")
    assert main(["runs", "list"]) == 0


def test_python_refuses_to_detach_in_one_line(home: Path) -> None:
    from ullage import YOLO

    with pytest.raises(ConfigError, match="detach=True"):
        YOLO("yolo11n").train(data="demo", detach=True)
    assert not Path("runs").exists()


@pytest.mark.parametrize("words", [["runs", "--help"], ["runs", "stop", "--help"], ["help", "runs"]])
def test_help_lists_what_can_be_done(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    assert ("follow" in text and "resume" in text) or ("force" in text and "NAME" in text)
