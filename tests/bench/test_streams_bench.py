"""bench/streams.py: it measures what it says, and can tell when a promise does not hold."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCH))
    return runpy.run_path(str(BENCH / "streams.py"))


def test_a_short_run(
    bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    words = ["streams.py", "--streams", "3", "--frames", "60", "--batch", "3", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", words)
    bench["main"]()
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0].startswith("3 streams of 15 frames/s, yolo11n at 96 px: ")
    assert [line.split(":")[1].strip() for line in lines[1:]] == ["fairness", "memory", "latency"]
    (record,) = (json.loads(line) for line in results.read_text().splitlines())
    assert record["read"] >= 60 == round(record["mean"] * 3)
    assert 0 < record["latency_ms"]["50"] <= record["latency_ms"]["95"]
    assert min(record["most_mb_by_half"]) > 50


def test_broken_promises_are_told(bench: dict[str, Any]) -> None:
    record = {
        "streams": 2, "fps": 15, "network": "x", "imgsz": 96, "frames": 10, "seconds": 1.0, "dropped": 0, "read": 10,
        "slowest": 3, "mean": 5.0, "most_mb_by_half": [100.0, 200.0],
        "latency_ms": {"50": 10.0, "95": 300.0, "99": 400.0}, "latency_ms_asked": 250.0,
    }  # fmt: skip
    assert [line.split()[0] for line in bench["lines"](record)[1:]] == ["FAILS:"] * 3
    good = {**record, "slowest": 4, "most_mb_by_half": [100.0, 110.0], "latency_ms_asked": 300.0}
    assert [line.split()[0] for line in bench["lines"](good)[1:]] == ["holds:"] * 3
