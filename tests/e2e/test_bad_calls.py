"""Wrong calls and a machine that says no: one line that names what is wrong, the right exit status, nothing lost."""

from __future__ import annotations

import errno
import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from e2e_kit import Outcome, checkpoint, quick, run_apart, start_apart, words

Run = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"imgsz": 65}, ["imgsz=65", "multiples of 32", "64"]),
        ({"imgsz": 0}, ["imgsz=0"]),
        ({"imgsz": "96,64"}, ["imgsz=(96, 64)", "smaller size comes first"]),
        ({"imgsz": "32,64", "multi_scale": True}, ["multi_scale"]),
        ({"epoch": 3}, ["'epoch'", "Did you mean 'epochs'?"]),
        ({"epochs": "many"}, ["epochs='many'", "int"]),
        ({"epochs": 0}, ["epochs=0", "at least 1"]),
        ({"epochs": "True"}, ["epochs=True"]),
        ({"lr0": -1}, ["lr0=-1", "above 0"]),
        ({"lr0": "nan"}, ["lr0=nan"]),
        ({"optimizer": "Adam"}, ["optimizer='Adam'", "'AdamW'"]),
        ({"rect": True}, ["rect", "mosaic=0"]),
        ({"amp": "fp16", "device": "cpu"}, ["amp='fp16'", "GPU"]),
        ({"amp": "fp8"}, ["amp='fp8'"]),
        ({"device": "gpu"}, ["device='gpu'"]),
        ({"device": "cpu,tpu"}, ["device='tpu'", "not a device"]),
        ({"freeze": 99}, ["freeze=99", "0 to 23"]),
        ({"cache": "cloud"}, ["cache='cloud'", "'ram'"]),
        ({"fraction": 0}, ["fraction=0"]),
        ({"name": "../out"}, ["name='../out'"]),
        ({"model": "yolov13n"}, ["yolov13n", "Did you mean 'yolov12n'?"]),
        ({"model": "exported.onnx"}, ["exported.onnx"]),
        ({"cfg": "nowhere.yaml"}, ["nowhere.yaml"]),
        ({"data": None}, ["data="]),
    ],
    ids=lambda value: "-".join(f"{key}={text}" for key, text in value.items()) if isinstance(value, dict) else "",
)
def test_wrong_settings_of_train(changes: dict, named: list[str], data: Path, ullage: Run, here: Path) -> None:
    outcome = ullage("train", **{**quick(data), **changes})
    assert outcome.status == 2
    assert [part for part in named if part not in outcome.complaint] == []
    assert outcome.out == ""
    assert not list(here.rglob("*.pt"))


def test_wrong_words(ullage: Run, here: Path) -> None:
    for call, named in {
        "trian": "Did you mean 'train'?", "doctor": "not in this version", "data": "data needs an action",
        "data chekc": "Did you mean 'check'?", "train data": "data=True", "predict --source": "source=True",
        "train epochs=1 epochs=2": "given twice", "train -x": "'-x'", "segment train": "segment",
    }.items():  # fmt: skip
        outcome = ullage(call)
        assert outcome.status == 2, call
        assert named in outcome.complaint
    assert list(here.iterdir()) == []


def test_wrong_calls_of_val_and_predict(whole_run: Path, data: Path, ullage: Run, here: Path) -> None:
    best = whole_run / "weights/best.pt"
    picture = data.parent / "images/val/0.jpg"
    calls = [
        ("val", {}, 2, "val needs data="), ("val", {"data": data, "split": "foo"}, 2, "split='foo'"),
        ("val", {"data": data, "split": "test"}, 1, "no split 'test'; it has: train, val"),
        ("val", {"data": data, "conf": 2}, 2, "conf=2"), ("val", {"data": data, "imgsz": "64,96"}, 2, "imgsz"),
        ("predict", {}, 2, "predict needs source="), ("predict", {"source": picture, "classes": 9}, 2, "class 9"),
        ("predict", {"source": picture, "iou": 0}, 2, "iou=0"),
        ("predict", {"source": "rtsp://127.0.0.1:9/x", "reconnect": 0}, 1, "no stream gives pictures"),
        ("predict", {"source": picture, "latency": 50}, 2, "latency=50.0 is for cameras and streams"),
        ("predict", {"source": "nowhere.jpg"}, 1, "nowhere.jpg"), ("predict", {"source": "*.jpg"}, 1, "matches no"),
        ("predict", {"source": data}, 1, "neither an image nor a video"), ("predict", {"source": "s3://x"}, 2, "s3://x"),
        ("predict", {"source": "x" * 5000}, 1, "File name too long"),
    ]  # fmt: skip
    for verb, settings, status, named in calls:
        outcome = ullage(verb, model=best, device="cpu", **{"imgsz": 64, **settings})
        assert (outcome.status, named in outcome.complaint) == (status, True), (settings, outcome.err)
    assert list(here.iterdir()) == []


def test_sources_that_hold_nothing(whole_run: Path, ullage: Run, here: Path) -> None:
    (here / "folder").mkdir()
    (here / "list.txt").write_text("# nothing\n")
    (here / "empty.mp4").write_bytes(b"")
    (here / "header.mp4").write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom")
    (here / "bad.jpg").write_bytes(b"no picture")
    for name in ("folder", "list.txt", "empty.mp4", "header.mp4", "bad.jpg"):
        outcome = ullage("predict", model=whole_run / "weights/best.pt", source=name, save=True, device="cpu")
        assert outcome.status == 1
        assert name in outcome.complaint


class Bomb:
    """Unpickled carelessly, it makes a file."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("exploded",)


def test_weights_that_are_none(whole_run: Path, data: Path, ullage: Run, here: Path) -> None:
    best = (whole_run / "weights/best.pt").read_bytes()
    (here / "text.pt").write_bytes(b"not a checkpoint")
    (here / "empty.pt").write_bytes(b"")
    (here / "half.pt").write_bytes(best[: len(best) // 2])
    flipped = bytearray(best)
    flipped[len(best) // 3] ^= 0xFF
    (here / "flipped.pt").write_bytes(flipped)
    (here / "folder.pt").mkdir()
    (here / "bomb.pt").write_bytes(pickle.dumps({"model": Bomb()}))
    torch.save({"model": Bomb(), "ema": None}, here / "zipped_bomb.pt")
    torch.save({"weights": [1, 2, 3]}, here / "list.pt")
    (here / "text.safetensors").write_bytes(b"not a checkpoint")
    names = ("text.pt", "empty.pt", "half.pt", "flipped.pt", "folder.pt", "bomb.pt", "zipped_bomb.pt", "list.pt",
             "text.safetensors", "missing.pt")  # fmt: skip
    for name in names:
        for outcome in (
            ullage("predict", model=name, source=data.parent / "images/val/0.jpg"),
            ullage("train", **quick(data, model=name)),
            ullage("train", **quick(data, pretrained=name)),
        ):
            assert outcome.status == 1, name
            assert name in outcome.complaint
    assert not (here / "exploded").exists()
    assert not (here / "runs").exists()


def test_weights_of_another_network_are_not_mixed(whole_run: Path, data: Path, ullage: Run) -> None:
    outcome = ullage("train", **quick(data, model="yolov12n", pretrained=whole_run / "weights/best.pt"))
    assert outcome.status == 2
    assert "yolo11n" in outcome.complaint
    assert "yolov12n" in outcome.complaint


@pytest.mark.parametrize("project", ["a_file", "/proc/nowhere", "/dev/null", "n" * 300])
def test_a_project_that_cannot_be_a_folder(project: str, data: Path, whole_run: Path, ullage: Run, here: Path) -> None:
    (here / "a_file").write_text("mine")
    best = whole_run / "weights/best.pt"
    for outcome in (
        ullage("train", **quick(data, project=project)),
        ullage("val", model=best, data=data, imgsz=64, project=project, device="cpu"),
        ullage("predict", model=best, source=data.parent / "images/val", save=True, imgsz=64, project=project),
    ):
        assert outcome.status == 1
        assert project in outcome.complaint
    assert (here / "a_file").read_text() == "mine"


def test_a_read_only_folder(data: Path, ullage: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal is made here."""

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    outcome = ullage("train", **quick(data))
    assert outcome.status == 1
    assert "runs" in outcome.complaint
    assert "Permission denied" in outcome.complaint


def small_files(limit_bytes: int) -> None:
    """In the child: no file may grow beyond this, which fails a write as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


@pytest.mark.parametrize("limit_bytes", [600, 20_000, 5_000_000, 20_000_000])
def test_a_full_disk_while_training(limit_bytes: int, data: Path, here: Path) -> None:
    """At the settings, at the pictures, at best.pt, at last.pt."""
    call = words("train", quick(data, epochs=2, plots=True, verbose=False))
    outcome = run_apart(call, folder=here, before=partial(small_files, limit_bytes))
    assert outcome.status == 1
    assert "cannot write" in outcome.complaint
    assert "File too large" in outcome.complaint
    for kept in here.rglob("*.pt"):
        checkpoint(kept)
    assert not list(here.rglob(".*")), "temporary files are left"


def test_a_disk_that_fills_up_keeps_the_last_checkpoint_whole(data: Path, ullage: Run, here: Path) -> None:
    disk = here / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    try:
        outcome = ullage("train", **quick(data, epochs=3, val=False, verbose=False, project=disk))
        assert "No space left on device" in outcome.complaint
        assert (disk / "train/weights/last.pt").exists()
        for kept in (disk / "train/weights").iterdir():
            checkpoint(kept)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_reader_that_goes_away_ends_the_run_as_it_ends_every_program(data: Path, here: Path) -> None:
    """``ullage train ... | head -1``."""
    os.mkfifo("pipe")
    program = start_apart(words("train", quick(data)), folder=here, stdout="pipe")
    with open("pipe") as reader:
        first = reader.readline()
    outcome = program.wait()
    assert first.startswith("yolo11n: ")
    assert (outcome.status, outcome.err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_the_output(data: Path, here: Path) -> None:
    outcome = run_apart(words("train", quick(data)), folder=here, stdout="/dev/full")
    assert outcome.status == 1
    assert "No space left on device" in outcome.complaint


def test_no_output_at_all(whole_run: Path, data: Path, here: Path) -> None:
    """``>&-``, as some schedulers start programs."""
    settings = {"model": whole_run / "weights/best.pt", "source": data.parent / "images/val", "imgsz": 64, "save": True}
    outcome = run_apart(words("predict", settings), folder=here, before=_close_output)
    assert (outcome.status, outcome.err) == (0, "")
    assert len(list((here / "runs/detect/predict").iterdir())) == 4


def _close_output() -> None:
    sys.stdout.close()
    sys.stdout = None


def test_what_nobody_foresaw_is_one_line_and_a_report(data: Path, here: Path) -> None:
    """A defect of ours must not flood the user; the traceback is kept in a file that the line names."""
    outcome = run_apart(words("train", quick(data)), folder=here, before=partial(_plant_a_defect, here))
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert "this should not happen: ZeroDivisionError" in line
    (report,) = here.glob("ullage-*.txt")
    assert str(report) in line
    assert "Traceback" in report.read_text()


def _plant_a_defect(reports: Path) -> None:
    tempfile.tempdir = str(reports)
    importlib.import_module("ullage.api.train_checks").open_dataset = lambda *_, **__: 1 / 0
