"""What a newcomer's first calls leave behind, right ones and wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ullage import YOLO
from ullage.api.train import TrainResult
from ullage.data.index import DetectionSet
from ullage.data.loader import EvalLoader
from ullage.errors import BackendUnavailable, DataError

SMALL = {"imgsz": 64, "workers": 0, "plots": False, "verbose": False, "device": "cpu"}
RUN_ULLAGE = "import sys; from ullage.apps.cli.main import main; sys.exit(main())"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notices(result: TrainResult) -> str:
    events = map(json.loads, (result.run_dir / "events.jsonl").read_text().splitlines())
    return " ".join(event["message"] for event in events if event["event"] == "Notice")


def test_a_wrong_call_of_train_leaves_no_run_folder(here: Path) -> None:
    model = YOLO("yolo11n")
    with pytest.raises(DataError, match="no data set"):
        model.train(data="nowhere.yaml", **SMALL)
    with pytest.raises(BackendUnavailable):
        model.train(data="demo", **{**SMALL, "device": "cuda:99"})
    assert list(here.iterdir()) == []


def test_the_run_folder_tells_where_the_time_of_loading_went(here: Path) -> None:
    result = YOLO("yolo11n").train(data="demo", epochs=2, fraction=0.05, batch=4, val=False, **SMALL)
    events = map(json.loads, (result.run_dir / "events.jsonl").read_text().splitlines())
    one, two = (event for event in events if event["event"] == "EpochLoaded")
    assert (one["epoch"], two["epoch"]) == (0, 1)
    assert one["images"] == two["images"] > 0
    assert one["decoded"] > 0
    assert one["decode_s"] + one["augment_s"] > 0


def test_trained_weights_know_the_data_set_that_they_come_from(here: Path) -> None:
    model = YOLO("yolo11n")
    result = model.train(data="demo", epochs=1, fraction=0.02, val=False, **SMALL)
    assert model.val(fraction=0.1, **SMALL).image_count == 6
    assert YOLO(result.last).val(fraction=0.1, **SMALL).image_count == 6
    assert result.metrics is None


def test_settings_that_auto_decides_itself_are_named(here: Path) -> None:
    settings = {"data": "demo", "epochs": 1, "fraction": 0.02, "val": False, "lr0": 0.005}
    heard = [
        notices(YOLO("yolo11n").train(**settings, **SMALL)),
        notices(YOLO("yolo11n").train(optimizer="SGD", **settings, **SMALL)),
    ]
    assert ["lr0=0.005 is not used" in text for text in heard] == [True, False]


def test_multi_scale_is_judged_at_the_size_that_was_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_at = []

    class Recorder(EvalLoader):
        def __init__(self, dataset: DetectionSet, *, imgsz: int, **options: Any) -> None:
            judged_at.append(imgsz)
            super().__init__(dataset, imgsz=imgsz, **options)

    monkeypatch.setattr(import_module("ullage.api.run"), "EvalLoader", Recorder)
    few = {"data": "demo", "epochs": 1, "fraction": 0.02}
    YOLO("yolo11n").train(multi_scale=True, **few, **SMALL)
    YOLO("yolo11n").train(**few, **{**SMALL, "imgsz": (64, 96)})
    assert judged_at == [64, 96]


def test_a_skipped_file_is_one_line_without_source_code(here: Path) -> None:
    YOLO("yolo11n").save(here / "w.pt")
    (here / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(here / "pictures/good.png")
    (here / "pictures/bad.jpg").write_bytes(b"no picture")
    words = ["predict", "model=w.pt", "source=pictures", "imgsz=64", "device=cpu"]
    run = subprocess.run(
        [sys.executable, "-c", RUN_ULLAGE, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0
    lines = run.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ullage: warning: skipped: ")
    assert "bad.jpg" in lines[0]
