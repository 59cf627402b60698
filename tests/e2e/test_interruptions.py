"""Ctrl-C, kill and resume: nothing is lost, and the weights come out as if nothing had happened."""

from __future__ import annotations

import csv
import os
import random
import shlex
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from e2e_kit import checkpoint, differing, make_data, quick, run_apart, run_here, start_apart, words

from ullage import YOLO
from ullage.zoo.checkpoint_file import read_checkpoint

# 8 images in batches of 2, two batches a step: two steps an epoch.
SETTINGS = {"epochs": 2, "batch": 2, "nbs": 4, "name": "run", "optimizer": "AdamW", "lr0": 0.001, "warmup_epochs": 0}


def signal_at_step(number: int, what: signal.Signals) -> None:
    """In the child: send itself a signal at the beginning of an optimiser step, of which nothing is left then."""
    from ullage.train.loop import Trainer

    step, taken = Trainer.step, [0]

    def counted(self: Trainer, *arguments: object) -> float:
        taken[0] += 1
        if taken[0] == number:
            os.kill(os.getpid(), what)
        return step(self, *arguments)

    Trainer.step = counted


def kill_before_write(file: str, number: int) -> None:
    """In the child: die without warning just before a checkpoint is written for the n-th time."""
    from importlib import import_module

    module = import_module("ullage.api.run")
    write, written = module.write_checkpoint, [0]

    def deadly(path: Path, payload: dict) -> None:
        written[0] += path.name == file
        if path.name == file and written[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, payload)

    module.write_checkpoint = deadly


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing interrupts."""
    home = tmp_path_factory.mktemp("unbroken")
    assert run_apart(words("train", quick(data, **SETTINGS)), folder=home).status == 0
    return home / "runs/detect/run"


@pytest.fixture(scope="module")
def broken_off(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which Ctrl-C stopped a run in its second epoch."""
    home = tmp_path_factory.mktemp("stopped")
    stop = partial(signal_at_step, 3, signal.SIGINT)
    assert run_apart(words("train", quick(data, **SETTINGS)), folder=home, before=stop).status == 130
    return home


@pytest.fixture
def stopped(broken_off: Path, here: Path) -> Path:
    """``last.pt`` of a run that was stopped, below the current folder."""
    shutil.copytree(broken_off, here, dirs_exist_ok=True)
    return here / "runs/detect/run/weights/last.pt"


def results(folder: Path) -> list[dict[str, str]]:
    """Rows of results.csv without what the clock and the memory say."""
    with (folder / "results.csv").open() as file:
        measured = ("time", "seconds", "eval_seconds", "images_per_second", "peak_bytes_measured")
        return [{key: value for key, value in row.items() if key not in measured} for row in csv.DictReader(file)]


def assert_as_if_nothing_happened(folder: Path, unbroken: Path) -> None:
    assert differing(folder / "weights/last.pt", unbroken / "weights/last.pt") == []
    assert results(folder) == results(unbroken)
    best, other = (checkpoint(run / "weights/best.pt")["weights"] for run in (folder, unbroken))
    assert all(best[key].equal(other[key]) for key in other)


@pytest.mark.parametrize(("step", "what"), [(1, signal.SIGINT), (3, signal.SIGTERM)])
def test_a_stopped_run_says_how_to_go_on_and_ends_with_the_same_bits(
    step: int, what: signal.Signals, data: Path, unbroken: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = words("train", quick(data, **SETTINGS))
    outcome = run_apart(call, folder=here, before=partial(signal_at_step, step, what))
    assert outcome.status == 130
    (line,) = outcome.err.splitlines()
    assert line == "ullage: interrupted; go on with: ullage train resume model=runs/detect/run/weights/last.pt"
    position = checkpoint(here / "runs/detect/run/weights/last.pt")["train"]["position"]
    assert (position["epoch"], position["batch"]) == ((step - 1) // 2, 2 * ((step - 1) % 2))

    advice = shlex.split(line.split("go on with: ")[1])
    assert advice[0] == "ullage"
    resumed = run_here(advice[1:], capsys)
    assert (resumed.status, resumed.err) == (0, "")
    assert_as_if_nothing_happened(here / "runs/detect/run", unbroken)


@pytest.mark.parametrize(("file", "number"), [("best.pt", 1), ("last.pt", 1), ("last.pt", 2)])
def test_a_kill_between_two_files_loses_no_epoch(
    file: str, number: int, data: Path, unbroken: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = words("train", quick(data, **SETTINGS))
    outcome = run_apart(call, folder=here, before=partial(kill_before_write, file, number))
    assert outcome.status == -signal.SIGKILL
    last = here / "runs/detect/run/weights/last.pt"
    if number == 1:  # before the first epoch was over: there is nothing yet to go on with, and it is said
        assert not last.exists()
        assert "does not exist" in run_here(["train", "resume", f"model={last}"], capsys).complaint
        return
    assert run_here(["train", "resume", f"model={last}"], capsys).status == 0
    assert_as_if_nothing_happened(here / "runs/detect/run", unbroken)


def test_kill_at_any_instant_leaves_a_whole_checkpoint(data: Path, here: Path) -> None:
    """As often as the disk allows a checkpoint is written, and in the midst of it the process dies."""
    dice = random.Random(0)
    call = words("train", quick(data, **{**SETTINGS, "epochs": 500, "batch": 8, "val": False, "imgsz": 32}))
    last = here / "runs/detect/run/weights/last.pt"
    reached = -1
    for attempt in range(3):
        program = start_apart(call, folder=here)
        began = time.monotonic()
        while not last.exists() and time.monotonic() - began < 120:
            time.sleep(0.01)
        time.sleep(dice.uniform(0.1, 0.8) + (0.5 if attempt else 0))
        program.send(signal.SIGKILL)
        assert program.wait().status == -signal.SIGKILL
        epoch = read_checkpoint(last)["train"]["position"]["epoch"]
        assert checkpoint(last)["names"] == ["red", "green"]
        assert epoch >= max(reached, 1), "a resumed run goes back"
        reached = epoch
        call = ["train", "resume", f"model={last}"]
    stop = run_apart(call, folder=here, before=partial(signal_at_step, 1, signal.SIGINT))
    assert stop.status == 130, stop.err
    assert [int(row["epoch"]) for row in results(last.parents[1])] == list(range(1, reached + 1))


def test_resume_without_a_model_finds_the_newest_run(
    stopped: Path, data: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = here / "runs/detect/older/weights"
    older.mkdir(parents=True)
    (older / "last.pt").write_bytes(stopped.read_bytes())
    os.utime(older / "last.pt", (1, 1))
    assert run_here(["train", "resume", "workers=1"], capsys).status == 0
    assert checkpoint(stopped)["train"]["position"]["epoch"] == 2
    assert checkpoint(older / "last.pt")["train"]["position"]["epoch"] == 1


def test_the_call_of_the_mission_resumes_from_any_folder(
    stopped: Path, unbroken: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = here / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = YOLO(stopped).train(resume=True)
    assert result.last == stopped
    assert_as_if_nothing_happened(stopped.parents[1], unbroken)
    assert list(elsewhere.iterdir()) == []


def test_a_finished_run_says_so(unbroken: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    complaint = run_here(["train", "resume", f"model={unbroken / 'weights/last.pt'}"], capsys).complaint
    assert "has finished all 2 epochs; there is nothing to resume" in complaint


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["epochs=5"], "epochs"), (["lr0=0.1", "batch=4"], "lr0"), (["data=demo"], "data"), (["imgsz=96"], "imgsz"),
        (["name=other"], "name"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_change_is_refused(
    changes: list[str], named: str, unbroken: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (unbroken / "weights/last.pt").read_bytes()
    outcome = run_here(["train", "resume", f"model={unbroken / 'weights/last.pt'}", *changes], capsys)
    assert outcome.status == 2
    assert named in outcome.complaint
    assert "keeps its settings" in outcome.complaint
    assert (unbroken / "weights/last.pt").read_bytes() == before


def test_what_cannot_be_resumed_is_told(unbroken: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(*call: str) -> str:
        return run_here(["train", *call], capsys).complaint

    (here / "half.pt").write_bytes((unbroken / "weights/last.pt").read_bytes()[:100_000])
    assert "holds weights only" in complaint("resume", f"model={unbroken / 'weights/best.pt'}")
    assert "half.pt" in complaint("resume=half.pt")
    assert "there is no run under" in complaint("resume")
    assert "nowhere.pt" in complaint("resume=nowhere.pt")


def test_a_data_set_with_other_classes_does_not_continue_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = make_data(here / "own")
    call = words("train", quick(own, **SETTINGS))
    run_apart(call, folder=here, before=partial(signal_at_step, 3, signal.SIGINT))
    for names in ("[green, red]", "[red, green, blue]"):
        own.write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
        assert "classes" in run_here(["train", "resume"], capsys).complaint


def test_ctrl_c_before_the_first_step_is_quiet(data: Path, here: Path) -> None:
    outcome = run_apart(words("train", quick(data)), folder=here, before=_interrupt_while_reading_data)
    assert outcome.status == 130
    assert outcome.err == "ullage: interrupted\n"


def _interrupt_while_reading_data() -> None:
    from importlib import import_module

    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    import_module("ullage.api.train_checks").open_dataset = interrupted


def test_ctrl_c_while_predicting_is_quiet(whole_run: Path, data: Path, here: Path) -> None:
    call = ["predict", f"model={whole_run / 'weights/best.pt'}", f"source={data.parent / 'images/val'}", "imgsz=64"]
    outcome = run_apart(call, folder=here, before=_interrupt_while_predicting)
    assert (outcome.status, outcome.err) == (130, "ullage: interrupted\n")


def _interrupt_while_predicting() -> None:
    from ullage.runtime.predictor import TorchPredictor

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    TorchPredictor.__call__ = interrupted
