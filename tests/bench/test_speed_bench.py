"""bench/speed.py: our side answers as the peer's program does, and the lines say what the figures say."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ullage import YOLO

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCH))
    return runpy.run_path(str(BENCH / "speed.py"))


def test_our_side(tmp_path: Path, bench: dict[str, Any]) -> None:
    weights = YOLO("yolo11n").save(tmp_path / "net.pt")
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((48, 64, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
    words = ["--weights", weights, "--source", folder, "--format", "pytorch", "--imgsz", "64", "--threads", "1"]
    with bench["Side"]([sys.executable, str(BENCH / "speed.py"), "--serve", *map(str, words)]) as side:
        assert side.facts["threads"] == 1
        answer = side.run()
    assert answer["images"] == 3
    assert 0 < sum(answer["stages"].values()) < answer["seconds"]
    assert answer["cpu_seconds"] > 0


def test_a_side_that_ends_says_how_to_see_why(bench: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match="a side ended with status 3; run it alone"):
        bench["Side"]([sys.executable, "-c", "raise SystemExit(3)"])


def test_lines_say_what_holds(bench: dict[str, Any]) -> None:
    record = {
        "network": "yolo11n", "format": "pytorch", "source": "a/photos", "images": 10, "ours": [1.0, 2.0, 1.0],
        "peer": [1.4, 1.4, 1.4], "ours_cpu": [1.0, 1.0, 1.0], "peer_cpu": [1.2, 1.2, 1.2],
        "ours_stages": {"inference": 0.9},
    }  # fmt: skip
    good = bench["line"](record)
    assert "photos: ours 100.0 ms an image, peer 140.0 ms, ratio 1.40 (meets 1.3), of CPU seconds 1.20" in good
    assert good.endswith("outside the network 10% (meets 15%)")
    bad = bench["line"]({**record, "peer": [1.2] * 3, "ours_stages": {"inference": 0.7}})
    assert "ratio 1.20 (MISSES 1.3)" in bad
    assert bad.endswith("30% (MISSES 15%)")


def test_programs_of_the_peer_import_nothing_of_ours() -> None:
    for name in ("ultralytics_predict.py", "cores.py"):
        text = (BENCH / "peers" / name).read_text(encoding="utf-8")
        assert "import ullage" not in text
        assert "from ullage" not in text
    run = subprocess.run(
        [sys.executable, str(BENCH / "peers" / "ultralytics_predict.py"), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "--format" in run.stdout
    assert json.dumps(run.stderr) == '""'
