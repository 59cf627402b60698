"""A folder as a user of the documentation has it, and settings small enough for a test."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageShow

from ullage import api
from ullage.config import TrainConfig, VerbConfig
from ullage.data.convert import convert
from ullage.data.source import open_dataset
from ullage.runtime.video import VideoWriter
from ullage.train.events import EpochDone

IMAGES = 4  # of each split
SMALL_SIDE, LARGER_SIDE = 64, 96
TINY_RUN = {"imgsz": SMALL_SIDE, "workers": 0, "device": "cpu", "plots": False, "verbose": False}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of every format, pictures, a video, weights, and two runs that were interrupted after one of two epochs."""
    home = tmp_path_factory.mktemp("user")
    pictures = tiny_data(home)
    for number, picture in enumerate(pictures):
        shutil.copy(picture, home / "pictures" / f"street{number}.jpg")
    for name in ("bus.jpg", "your_image.jpg"):
        shutil.copy(pictures[0], home / name)
    for name in ("coco.yaml", "coco128.yaml", "my_dataset.yaml"):
        (home / name).write_text((home / "my_data/data.yaml").read_text().replace("path: .", "path: my_data"))
    with_video(home / "clip.mp4")
    (home / "doors.streams").write_text("clip.mp4\nclip.mp4\n")
    interrupted_run(home / "runs" / "detect", data=home / "my_data" / "data.yaml")
    shutil.copytree(home / "runs/detect/train", home / "runs/detect/long")
    for name in ("yolov12n", "yolov12s", "yolov12l", "yolo11n"):  # a file says itself what it holds; small is enough
        shutil.copy(home / "runs/detect/train/weights/best.pt", home / f"{name}.pt")
    return home


def tiny_data(home: Path) -> list[str]:
    """Make a data set of a few demo images in every format; return paths of pictures."""
    (home / "few" / "images").mkdir(parents=True)
    (home / "pictures").mkdir()
    for split in ("train", "val"):
        demo = open_dataset("demo", split=split)
        for path in demo.paths[:IMAGES]:
            for source in (Path(path), Path(path.replace("/images/", "/labels/")).with_suffix(".txt")):
                target = home / "few" / source.parent.parent.name / split / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(demo.names))
    (home / "few/data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    for form, folder in (("yolo", "my_data"), ("coco", "my_coco"), ("voc", "my_voc"), ("csv", "my_csv")):
        convert(home / "few" / "data.yaml", to=form, out=home / folder)  # type: ignore[arg-type]
    shutil.rmtree(home / "few")
    return list(open_dataset(home / "my_data", split="val").paths[:2])


def with_video(path: Path) -> None:
    video = VideoWriter(path, fps=10)
    for number in range(3):
        video.write(np.full((64, 96, 3), 40 * number, np.uint8), time_s=number / 10)
    video.close()


def interrupted_run(project: Path, *, data: Path) -> None:
    """Train, and press Ctrl-C in the second epoch."""

    def stop(event: object) -> None:
        if isinstance(event, EpochDone):
            signal.raise_signal(signal.SIGINT)

    settings = {"model": "yolo11n", "data": str(data), "epochs": 2, "project": str(project), "name": "train"}
    with pytest.raises(KeyboardInterrupt):
        api.train(TrainConfig.load({**settings, **TINY_RUN}), listeners=[stop])


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Check the settings of a snippet as they are written, then run fewer epochs on smaller images and on the CPU."""
    load = VerbConfig.load.__func__  # type: ignore[attr-defined]

    def load_small(cls: type[VerbConfig], values: Mapping[str, Any], *, file: str | Path | None = None) -> VerbConfig:
        asked = load(cls, values, file=file)
        return load(cls, {**values, **smaller(asked.flat(), asked.verb)}, file=file)

    monkeypatch.setattr(VerbConfig, "load", classmethod(load_small))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setattr(ImageShow, "show", lambda image, title=None: isinstance(image, Image.Image))


def smaller(flat: Mapping[str, Any], verb: str) -> dict[str, Any]:
    """Return what a test changes of a call's settings."""
    change: dict[str, Any] = {"device": "cpu", "workers": 0, "plots": False}
    if flat.get("resume"):  # such a run keeps its settings; it is small already, two epochs
        return change
    change["imgsz"] = (SMALL_SIDE, LARGER_SIDE) if isinstance(flat.get("imgsz"), list) else SMALL_SIDE
    if verb == "train":
        change["epochs"] = flat["epochs"] if flat["epochs"] <= 2 else 1
        change["time"] = None if flat["time"] is None else 0.0001
    if verb == "bench":
        change["seconds"] = 0.05
    if flat.get("data") == "demo":
        change["fraction"] = min(flat.get("fraction", 1.0), 0.02)
    return {key: value for key, value in change.items() if key in flat}
