"""bench/deploy.py: what it compares, that it goes on where it stopped, that it can tell a wrong file."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("onnxruntime")
BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCH))
    made = runpy.run_path(str(BENCH / "deploy.py"))
    small = made["main"].__globals__
    small.update(DATA="demo", SIZES_HW=((128, 160), (160, 160)), BATCHES=(4,))
    return small


def run(bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch, results: Path) -> None:
    words = ["deploy.py", "parity", "--networks", "yolo12n", "--formats", "onnx", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", words)
    bench["main"]()


def test_a_network_in_every_form(
    bench: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    results = tmp_path / "results.jsonl"
    run(bench, monkeypatch, results)
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert summary.startswith("4 of 4 combinations of 1 networks within 0.001 or twice the network's own rounding (")
    assert "(asked: 4; within 0.001 alone: 4); worst: scores " in summary
    kept = results.read_text()
    assert kept.count("\n") == 4
    for record in map(json.loads, kept.splitlines()):
        assert 0 < record["own_score_diff"] < 0.01
        assert 0 < record["own_box_diff_unit"] < 0.01
    assert all("; PyTorch from float64: " in line for line in lines)

    def again(record: object) -> None:
        raise AssertionError("what is in the results is not measured again")

    bench["measure"] = again
    run(bench, monkeypatch, results)
    assert results.read_text() == kept
    assert capsys.readouterr().out.splitlines() == [*lines, summary]


def test_a_wrong_file_is_not_within(bench: dict[str, Any]) -> None:
    record = {"score_diff": 1e-5, "box_diff_unit": 1e-5}
    assert bench["within"](record)
    assert not bench["within"]({**record, "score_diff": 2e-3})
    assert not bench["within"]({**record, "box_diff_unit": 2e-3})
    assert not bench["within"]({**record, "score_diff": float("nan")})
    rough = {**record, "own_score_diff": 3e-3, "own_box_diff_unit": 1e-6}
    assert bench["within"]({**rough, "score_diff": 5e-3})
    assert not bench["within"]({**rough, "score_diff": 7e-3})
    assert not bench["within"]({**rough, "box_diff_unit": 2e-3})
    assert torch.is_tensor(bench["images"]((64, 96), 2))
