"""A small painted data set, and the program run on it, in this process or in another one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ullage.apps.cli.main import main

NAMES = ("red", "green")
COLOURS = ((250, 20, 20), (20, 250, 20))
SIZES_HW = ((96, 128), (128, 96), (100, 100), (60, 90))
RUN_ULLAGE = "import sys; from ullage.apps.cli.main import main; sys.exit(main())"
# A training run of about a second.
QUICK: dict[str, Any] = {
    "model": "yolo11n", "imgsz": 64, "batch": 4, "nbs": 4, "workers": 0, "epochs": 1, "plots": False, "device": "cpu",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a call left: exit status, and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The only line on stderr, for a call that failed as it should."""
        lines = self.err.splitlines()
        assert self.status in (1, 2), (self.status, self.out[-500:], self.err[-500:])
        assert len(lines) == 1, self.err
        assert lines[0].startswith("ullage: "), self.err
        assert "Traceback" not in self.out + self.err
        assert "should not happen" not in self.err
        return lines[0]


def words(verb: str, settings: Mapping[str, Any]) -> list[str]:
    """``train``, ``{"epochs": 1}`` -> ``["train", "epochs=1"]``; None leaves a key out."""
    return [*verb.split(), *(f"{key}={value}" for key, value in settings.items() if value is not None)]


def quick(data: str | Path, **changes: Any) -> dict[str, Any]:
    return {**QUICK, "data": data, **changes}


def start_apart(
    call: list[str], *, folder: Path, before: Callable[[], None] | None = None, stdout: str | None = None
) -> Apart:
    """Start the program in a process of its own, forked from one that has imported everything."""
    logs = Path(tempfile.mkdtemp(prefix="ullage-e2e-"))
    streams = Path(stdout or logs / "out"), logs / "err"
    process = _FORKS.Process(
        target=_in_child, args=(call, folder, streams, before)
    )  # not a daemon: those may not have loader processes
    process.start()
    return Apart(process, *streams)


def run_apart(
    call: list[str], *, folder: Path, before: Callable[[], None] | None = None, stdout: str | None = None
) -> Outcome:
    """Run the program in a process of its own, to its end."""
    return start_apart(call, folder=folder, before=before, stdout=stdout).wait()


@dataclass(frozen=True)
class Apart:
    """The program in another process, its streams in files."""

    process: Any
    out: Path
    err: Path

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait(self) -> Outcome:
        """Wait for the end; what a signal ended has its negative number as status."""
        self.process.join(timeout=240)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the program hangs: {self.err.read_text()[-500:]}")
        out = self.out.read_text() if self.out.is_file() else ""
        err = self.err.read_text()
        shutil.rmtree(self.err.parent)
        return Outcome(self.process.exitcode, out, err)


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["ullage.api", "ullage.apps.cli.verbs", "ullage.apps.cli.main", "e2e_kit"])


def _in_child(call: list[str], folder: Path, streams: tuple[Path, Path], before: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may be immune to it
    os.chdir(folder)
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    if before is not None:
        before()
    sys.argv = ["ullage", *call]
    try:
        status = main()
    except ZeroDivisionError:  # what a test plants as a defect; treated as the interpreter does at its end
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.exit(status)


def run_here(call: list[str], capsys: Any) -> Outcome:
    """Run the program in this process."""
    capsys.readouterr()
    status = main(call)
    captured = capsys.readouterr()
    return Outcome(status, captured.out, captured.err)


def make_data(root: Path, *, train: int = 8, val: int = 4, seed: int = 0, suffix: str = ".jpg") -> Path:
    """Paint images with one large and one small rectangle; return the YAML.

    The boxes of a fresh network cover most of a small image, so large objects give an AP above zero without training.
    """
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(count):
            size_hw = SIZES_HW[number % len(SIZES_HW)]
            image, rows = paint(rng, size_hw)
            assert cv2.imwrite(str(root / f"images/{split}/{number}{suffix}"), image[..., ::-1])
            (root / f"labels/{split}/{number}.txt").write_text("".join(f"{row}\n" for row in rows))
    yaml = root / "data.yaml"
    yaml.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n")
    return yaml


def paint(rng: np.random.Generator, size_hw: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Paint one image; return it (RGB) with its YOLO rows."""
    height, width = size_hw
    image = np.full((height, width, 3), rng.integers(20, 90, 3), np.uint8)
    rows: list[str] = []
    for low, high in ((0.75, 0.95), (0.2, 0.3)):
        class_id = int(rng.integers(2))
        box_h, box_w = (int(rng.uniform(low, high) * side) for side in size_hw)
        left, top = int(rng.integers(width - box_w)), int(rng.integers(height - box_h))
        image[top : top + box_h, left : left + box_w] = COLOURS[class_id]
        centre = (left + box_w / 2) / width, (top + box_h / 2) / height
        rows.append(f"{class_id} {centre[0]:.6f} {centre[1]:.6f} {box_w / width:.6f} {box_h / height:.6f}")
    return image, rows


def checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint the way a stranger to Ullage would."""
    return torch.load(path, weights_only=True, map_location="cpu")


def differing(first: Path, second: Path) -> list[str]:
    """Names of the tensors in which two resumable checkpoints differ by so much as a bit; the optimiser's included."""
    one, other = checkpoint(first), checkpoint(second)
    found = [
        f"{part}.{key}"
        for part in ("weights", "ema")
        for key, tensor in one[part].items()
        if not torch.equal(tensor, other[part][key])
    ]
    moments, other_moments = (file["train"]["optimiser"]["state"] for file in (one, other))
    assert moments.keys() == other_moments.keys()
    return found + [
        f"optimiser.{number}.{key}"
        for number, entry in moments.items()
        for key, tensor in entry.items()
        if not torch.equal(tensor, other_moments[number][key])
    ]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def notices(folder: Path) -> str:
    return " | ".join(event["message"] for event in events(folder) if event["event"] == "Notice")
