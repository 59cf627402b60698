"""The benchmark of exactness: it sees what differs, and counts what a kill leaves."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import exact  # noqa: E402  # pyright: ignore[reportMissingImports]
import exact_layouts  # noqa: E402  # pyright: ignore[reportMissingImports]


def test_every_bit_counts() -> None:
    one = {"weights": {"a": torch.ones(3)}, "train": {"state": [torch.zeros(2)], "random": 1}, "meta": {"when": 1}}
    same = {"weights": {"a": torch.ones(3)}, "train": {"state": [torch.zeros(2)], "random": 2}, "meta": {"when": 2}}
    assert exact.different(one, same) == []
    other = {**same, "weights": {"a": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}}
    assert exact.different(one, other) == [".weights.a"]


def test_weights_and_images_of_two_layouts_are_compared(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder, value in zip(folders, (2.0, 2.002), strict=True):
        folder.mkdir()
        torch.save({"w": torch.tensor([value, 0.0]), "n": torch.tensor(3)}, folder / "weights.pt")
        (folder / "seen.json").write_text("{}")
    distance, worst, seen = exact_layouts.differences(*folders)
    assert (distance, worst) == (pytest.approx(1e-3, rel=1e-3), pytest.approx(1e-3, rel=1e-3))
    assert seen
    (folders[1] / "seen.json").write_text('{"0 1": "x"}')
    assert not exact_layouts.differences(*folders)[2]


def test_layouts_are_those_that_were_promised() -> None:
    frozen = set(exact_layouts.LAYOUTS["frozen"].values())
    assert {(1, None), (1, 8), (1, 1), (2, None), (2, 8), (4, None)} <= frozen
    assert {1, 2, 4} == {ranks for ranks, _ in exact_layouts.LAYOUTS["synchronised"].values()}


def test_a_file_that_cannot_be_read_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path | None] = []
    monkeypatch.setattr(exact, "train", lambda project, options, resume=None: started.append(resume))
    counts = dict.fromkeys(
        ("kills", "mid-epoch", "while a checkpoint was written", "before the first", "unreadable"), 0
    )
    last = tmp_path / "run" / "weights" / "last.pt"

    def kill() -> None:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        exact.go_on(process, tmp_path, counts, argparse.Namespace())

    kill()
    last.parent.mkdir(parents=True)
    torch.save({"train": {"position": {"batch": 1}}}, last)
    (last.parent / ".last.pt.abcd.tmp").touch()
    kill()
    last.write_bytes(b"PK")
    kill()
    assert counts == {
        "kills": 3,
        "mid-epoch": 1,
        "while a checkpoint was written": 1,
        "before the first": 1,
        "unreadable": 1,
    }
    assert started == [None, last, None]
