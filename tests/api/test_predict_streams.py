"""Streams from Python: the calls, what is saved, the statistics, several devices."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ullage import YOLO
from ullage.api.predict import Prediction
from ullage.errors import BackendUnavailable, ConfigError
from ullage.runtime.results import Results
from ullage.runtime.video import VideoWriter, read_video

LOW = {"imgsz": 64, "conf": 1e-5, "max_det": 2, "verbose": False}


@pytest.fixture(scope="module")
def model() -> YOLO:
    return YOLO("yolo11n")


@pytest.fixture
def doors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two videos of 8 and 5 frames that play side by side."""
    rng = np.random.default_rng(0)
    for name, count in (("front", 8), ("back", 5)):
        with VideoWriter(tmp_path / f"{name}.mp4", fps=10) as writer:
            for number in range(count):
                writer.write(rng.integers(0, 255, (48, 64, 3), np.uint8), time_s=number / 10)
    listing = tmp_path / "doors.streams"
    listing.write_text("front.mp4\nback.mp4\n")
    monkeypatch.chdir(tmp_path)
    return listing


def test_an_iterator_with_statistics(model: YOLO, doors: Path) -> None:
    found = model.predict(doors, batch=2, device="cpu", **LOW)
    assert isinstance(found, Prediction)
    first = next(found)
    assert (first.video_frame, first.time_s) == (0, 0)
    assert Counter(one.stream for one in (first, *found)) == {0: 8, 1: 5}
    stats = found.stats()
    assert [(Path(one.name).name, one.state, one.done) for one in stats] == [
        ("front.mp4", "ended", 8), ("back.mp4", "ended", 5),
    ]  # fmt: skip
    assert all(one.latency_ms is not None and one.latency_ms[0] <= one.latency_ms[1] for one in stats)


def test_everything_is_saved(model: YOLO, doors: Path) -> None:
    heard: list[Results] = []
    found = model.predict(
        doors, save=True, save_txt=True, save_frames=True, save_jsonl=True, save_coco=True, name="doors",
        callback=heard.append, device="cpu", **LOW,
    )  # fmt: skip
    assert isinstance(found, Prediction)
    assert found.run() == 13 == len(heard)
    folder = Path("runs/detect/doors")
    assert found.save_dir == folder
    for name, count in (("front", 8), ("back", 5)):
        assert len(list(read_video(folder / f"{name}.mp4"))) == count
        assert len(list((folder / f"{name}_frames").iterdir())) == count
        assert len(list((folder / "labels").glob(f"{name}_*.txt"))) == count
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert Counter(line["stream"] for line in lines) == {0: 8, 1: 5}
    assert all(len(line["objects"]) == 2 for line in lines)
    coco = json.loads((folder / "coco.json").read_text())
    assert (len(coco["images"]), len(coco["annotations"]), len(coco["categories"])) == (13, 26, 80)


def test_closing_early_leaves_whole_files(model: YOLO, doors: Path) -> None:
    with model.predict(doors, save=True, save_coco=True, device="cpu", **LOW) as found:  # type: ignore[union-attr]
        next(found)
        next(found)
    assert len(json.loads(Path("runs/detect/predict/coco.json").read_text())["images"]) == 2
    assert len(list(read_video("runs/detect/predict/front.mp4"))) == 1


@pytest.mark.parametrize("device", ["cpu,cpu", ["cpu", "cpu", "cpu"]])
def test_several_devices_find_the_same(model: YOLO, doors: Path, device: object) -> None:
    one = {(r.stream, r.video_frame): r.boxes.data for r in model.predict(doors, device="cpu", **LOW)}
    several = {(r.stream, r.video_frame): r.boxes.data for r in model.predict(doors, device=device, **LOW)}
    assert one.keys() == several.keys()
    assert all(np.allclose(one[key], several[key], atol=1e-4) for key in one)
    files = [Path("front.mp4"), Path("back.mp4")]
    order = [(Path(r.path).name, r.video_frame) for r in model.predict(files, device=device, **LOW)]
    assert order == [("front.mp4", n) for n in range(8)] + [("back.mp4", n) for n in range(5)]


def test_a_stride(model: YOLO, doors: Path) -> None:
    found = list(model.predict("front.mp4", vid_stride=3, device="cpu", **LOW))
    assert [(one.video_frame, one.time_s, one.fps) for one in found] == [
        (0, 0, pytest.approx(10 / 3)), (3, pytest.approx(0.3), pytest.approx(10 / 3)),
        (6, pytest.approx(0.6), pytest.approx(10 / 3)),
    ]  # fmt: skip


def test_wrong_calls(model: YOLO, doors: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy=latest is for cameras and streams.*\.streams file"):
        model.predict("front.mp4", policy="latest", device="cpu")
    with pytest.raises(ConfigError, match="latency"):
        model.predict(doors, latency=0, device="cpu")
    with pytest.raises(ConfigError, match="policy"):
        model.predict(doors, policy="newest", device="cpu")
    with pytest.raises(BackendUnavailable, match="7"):
        model.predict(doors, device="cpu,7")
    with pytest.raises(ConfigError, match="device"):
        model.predict(doors, device="cpu,")
