"""``ullage plan``: the table, the file, and calls that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ullage.apps.cli.main import main
from ullage.memory import Plan

SMALL = "plan model=yolo11n imgsz=64 batch=8 device=cpu boxes_per_image=2"


def test_the_table_and_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert main([*SMALL.split(), "memory=56MB", f"save={file}"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    for column in ("way", "batch", "peak", "time", "fits"):
        assert column in lines[0]
    chosen = [line for line in lines if line.startswith("> ")]
    assert len(chosen) == 1
    assert chosen[0].endswith("yes")
    assert any(line.endswith("no") and line.lstrip().startswith("none everywhere") for line in lines)
    assert any("of 56.0 MB on cpu" in line and "bitwise" in line for line in lines)
    assert lines[-1] == f"the plan is in {file}"
    plan = Plan.from_json(file.read_text())
    assert plan.budget_bytes == 56_000_000
    assert json.loads(file.read_text())["batch"] == 8
    assert str(plan).splitlines() == lines[:-1]


def test_settings_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wishes.yaml").write_text("model: yolo11n\nimgsz: 64\nbatch: 2\ndevice: cpu\ntechnique: none\n")
    assert main(["plan", f"cfg={tmp_path}/wishes.yaml", "batch=3"]) == 0
    assert "plan: batch 3 in one pass, technique none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "parts"),
    [
        ("memory=8Gigs", 2, ("memory='8Gigs'", "8GB")),
        ("model=yolov13n", 2, ("'yolov13n'", "Did you mean 'yolov12n'?")),
        ("technique=recompue", 2, ("'recompue'", "Did you mean 'recompute'?")),
        ("technique=none gradient_checkpointing=True", 2, ("technique=none", "gradient_checkpointing=True", "one of")),
        ("technique=nested gradient_checkpointing", 2, ("technique=nested", "one of")),
        ("memmory=8GB", 2, ("'memmory'", "Did you mean 'memory'?")),
        ("epochs=3", 2, ("plan knows no setting 'epochs'",)),
        ("micro_batch=0", 2, ("micro_batch=0", "at least 1")),
        ("memory=9MB", 1, ("nothing fits 9.00 MB on cpu", "smaller model")),
        ("memory=54MB imgsz=320", 1, ("nothing fits 54.0 MB on cpu", "of the side", "would fit")),
        ("save=/no/such/folder/plan.json", 1, ("cannot write save='/no/such/folder/plan.json'", "No such file")),
    ],
)
def test_a_wrong_call_is_one_line(
    words: str, status: int, parts: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    typed = dict(word.split("=") for word in SMALL.split()[1:])
    bare = [word for word in words.split() if "=" not in word]
    typed.update(word.split("=", 1) for word in words.split() if "=" in word)
    assert main(["plan", *(f"{key}={value}" for key, value in typed.items()), *bare]) == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "should not happen" not in err
    for part in parts:
        assert part in err, err
