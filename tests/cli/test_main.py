"""The command as a process: exit statuses, one line an error, pipes, Ctrl-C, and the verbs at work."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ullage.apps.cli.main import main
from ullage.apps.cli.watch import RunWatch
from ullage.train.events import RunEnded

COMMAND = [sys.executable, "-c", "import sys; from ullage.apps.cli.main import main; sys.exit(main())"]
SMALL = ["model=yolo11n", "imgsz=64", "batch=4", "workers=0", "device=cpu"]


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A data set of bright squares: six images to train on, two to judge."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        (tmp_path / "squares/images" / split).mkdir(parents=True)
        (tmp_path / "squares/labels" / split).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 80, (64, 64, 3), np.uint8)
            left, top = random.integers(0, 40, 2)
            pixels[top : top + 20, left : left + 20] = 230
            Image.fromarray(pixels).save(tmp_path / "squares/images" / split / f"{number}.png")
            row = f"0 {(left + 10) / 64} {(top + 10) / 64} {20 / 64} {20 / 64}\n"
            (tmp_path / "squares/labels" / split / f"{number}.txt").write_text(row, encoding="utf-8")
    file = tmp_path / "squares/data.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [square]\n", encoding="utf-8")
    return file


def test_train_val_and_predict_from_the_command_line(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"data={squares}", "epochs=1", "plots=False", *SMALL]) == 0
    output = capsys.readouterr().out
    run = tmp_path / "runs/detect/train"
    for part in ("Epoch", "box", "cls", "dfl", "Instances", "Size", "Images/s", "mAP50-95", "best.pt", "last.pt"):
        assert part in output
    assert (run / "weights/best.pt").is_file()
    assert len((run / "results.csv").read_text().splitlines()) == 2

    best = f"model={run}/weights/best.pt"
    assert main(["val", best, f"data={squares}", "plots=False", *SMALL[1:]]) == 0
    output = capsys.readouterr().out
    assert "mAP50-95" in output
    assert re.search(r"^all +2 +2 ", output, re.MULTILINE)

    assert main(["predict", best, f"source={squares.parent}/images/val", "imgsz=64", "save", "device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert re.search(r"0\.png: 64x64, .+, [\d.]+ ms$", lines[0])
    assert "2 images done" in lines[2]
    saved = Path(lines[2].split("saved in ")[1])
    assert len([path for path in saved.iterdir() if path.suffix in (".png", ".jpg")]) == 2

    assert main(["train", f"data={squares}", "epochs=1", "plots=False", "verbose=False", *SMALL]) == 0
    assert capsys.readouterr().out == ""


def test_data_check_and_convert(squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    assert main(["data", "check", f"data={squares}", f"report={report}"]) == 0
    assert "1 classes" in capsys.readouterr().out
    assert json.loads(report.read_text())["splits"]["train"]["images"] == 6
    assert main(["data", "convert", f"data={squares}", "to=coco", f"out={tmp_path}/coco"]) == 0
    assert "6 images" in capsys.readouterr().out
    assert (
        json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())["categories"][0]["name"]
        == "square"
    )
    assert main(["data", "convert", f"data={squares}", "to=coco", f"out={tmp_path}/coco"]) == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert main(["data", "check", f"data={squares}", f"report={tmp_path}"]) == 1
    assert "cannot write report=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "status", "part"),
    [
        ("train data=nowhere.yaml epochs=1", 1, "nowhere.yaml"),
        ("train epochs=1", 2, "data="),
        ("val model=nothing.pt data=demo", 1, "nothing.pt"),
        ("val model=yolov13n data=demo", 2, "Did you mean"),
        ("predict model=yolo11n", 2, "source="),
        ("predict model=yolo11n source=nowhere.jpg", 1, "nowhere.jpg"),
        ("data check data=nowhere", 1, "nowhere"),
        ("train resume model=nothing.pt", 1, "nothing.pt"),
        ("train data=demo project=/proc/nowhere model=yolo11n", 1, "/proc/nowhere"),
    ],
)
def test_work_that_cannot_be_done_is_one_line_and_its_status(
    line: str,
    status: int,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == status
    error = capsys.readouterr().err
    assert error.startswith("ullage: ")
    assert error.count("\n") == 1
    assert part in error


def test_the_debug_switch_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ULLAGE_DEBUG", "1")
    assert main(["train", "epochs=x"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("ullage: epochs='x'")


def test_an_error_that_nobody_foresaw_is_reported_with_its_traceback_in_a_file(tmp_path: Path) -> None:
    code = """
import sys
from ullage.apps.cli import main as module
def broken(words, watch):
    raise ZeroDivisionError("seven\\nwonders")
module._run = broken
sys.argv = ["ullage", "train"]
sys.exit(module.main())
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "ULLAGE_DEBUG": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240, check=False
    )
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "ZeroDivisionError: seven wonders" in run.stderr
    (file,) = tmp_path.glob("ullage-*.txt")
    assert str(file) in run.stderr
    assert "in broken" in file.read_text()


def test_a_reader_that_goes_away_is_no_error(squares: Path) -> None:
    for words in (["train", "--help"], ["data", "check", f"data={squares}"]):
        reader, writer = os.pipe()
        os.close(reader)
        run = subprocess.run(
            [*COMMAND, *words], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=240, check=False
        )
        os.close(writer)
        assert run.stderr == ""
        assert run.returncode == 141  # what a shell shows for a broken pipe


def test_a_full_disk_is_one_line() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as disk:
        run = subprocess.run(
            [*COMMAND, "train", "--help"], stdout=disk, stderr=subprocess.PIPE, text=True, timeout=240, check=False
        )
    assert run.returncode == 1
    assert run.stderr.startswith("ullage: ")
    assert "No space left" in run.stderr
    assert run.stderr.count("\n") == 1


def test_ctrl_c_leaves_a_whole_checkpoint_and_says_how_to_go_on(squares: Path, tmp_path: Path) -> None:
    words = [
        "train",
        f"data={squares}",
        "epochs=100000",
        "plots=False",
        "val=False",
        f"project={tmp_path}/runs",
        *SMALL,
    ]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "runs/train/events.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (log.exists() and "StepDone" in log.read_text()):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=240)
    last = tmp_path / "runs/train/weights/last.pt"
    assert process.returncode == 130
    assert error.splitlines()[-1] == f"ullage: interrupted; go on with: ullage train resume model={last}"
    assert last.is_file()
    assert '"reason":"interrupted"' in log.read_text().splitlines()[-1]


def test_a_finished_run_is_not_offered_for_resuming(tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    last.touch()
    watch = RunWatch()
    watch(RunEnded("all epochs done", 3, 2, 1.0, {"last": last}))
    assert watch.advice() == ""
    watch(RunEnded("interrupted", 3, 2, 1.0, {"last": last}))
    assert watch.advice().endswith(f"ullage train resume model={last}")
