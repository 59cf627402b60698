"""Results to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from square_finder import scene

from ullage.errors import StorageError
from ullage.runtime.predictor import TorchPredictor, predict
from ullage.runtime.results import Boxes, Results
from ullage.runtime.sinks import ResultSink
from ullage.runtime.video import VideoWriter, read_video


def result(path: str, *, found: bool = True) -> Results:
    image = scene(48, 64)
    rows = torch.tensor([[8.0, 8, 40, 40, 0.9, 0]])
    return Results(boxes=Boxes(rows if found else rows[:0], (48, 64)), orig_img=image, path=path, names={0: "dog"})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pictures_and_rows(tmp_path: Path) -> None:
    with ResultSink(tmp_path / "out", text=True, text_scores=True) as sink:
        assert sink.write(result("a/cat.png")) == tmp_path / "out" / "cat.png"
        sink.write(result("b/empty.jpg", found=False))
    assert names(tmp_path / "out") == ["cat.png", "empty.jpg", "labels/cat.txt", "labels/empty.txt"]
    assert (tmp_path / "out/labels/cat.txt").read_text() == "0 0.375000 0.500000 0.500000 0.666667 0.900000\n"
    assert (np.asarray(Image.open(tmp_path / "out/cat.png")) == result("").plot()).all()


def test_clashes_are_numbered_and_formats_kept_where_they_can_be(tmp_path: Path) -> None:
    with ResultSink(tmp_path) as sink:
        for path in (
            "a/cat.jpg",
            "b/cat.jpg",
            "c/cat.png",
            "CAT.jpg",
            "scan.gif",
            "http://host/x/photo.png?size=2",
            "noname",
        ):
            sink.write(result(path))
    assert names(tmp_path) == ["CAT-4.jpg", "cat-2.jpg", "cat-3.png", "cat.jpg", "noname.jpg", "photo.png", "scan.jpg"]


def test_rows_alone(tmp_path: Path) -> None:
    with ResultSink(tmp_path, pictures=False, text=True) as sink:
        sink.write(result("a/cat.png"))
    assert names(tmp_path) == ["labels/cat.txt"]


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "cat.png"
    Image.fromarray(scene()).save(source)
    before = source.read_bytes()
    with ResultSink(tmp_path) as sink:
        assert sink.write(result(str(source))).name == "cat-2.png"
    assert source.read_bytes() == before


def test_videos(tmp_path: Path, predictor: TorchPredictor) -> None:
    for name in ("a/walk.mp4", "b/walk.mp4"):
        (tmp_path / name).parent.mkdir()
        with VideoWriter(tmp_path / name, fps=12.5) as writer:
            for number in range(6):
                writer.write(scene(64, 96, white=(24, 8 * number + 16)), time_s=number / 12.5)
    Image.fromarray(scene(white=(8, 8))).save(tmp_path / "z.png")
    source = [tmp_path / "a/walk.mp4", tmp_path / "b/walk.mp4", tmp_path / "z.png"]
    with ResultSink(tmp_path / "out", text=True) as sink:
        for one in predict(predictor, source=source, imgsz=96, batch=4):
            sink.write(one)
    pictures = [name for name in names(tmp_path / "out") if "labels" not in name]
    assert pictures == ["walk-2.mp4", "walk.mp4", "z.png"]
    assert len([name for name in names(tmp_path / "out") if name.startswith("labels/walk_")]) == 6
    for name in ("walk.mp4", "walk-2.mp4"):
        frames = list(read_video(tmp_path / "out" / name))
        assert len(frames) == 6
        assert frames[0].fps == pytest.approx(12.5)
        drawn = np.abs(frames[0].image_HW3.astype(int) - scene(64, 96, white=(24, 16))).max(-1) > 60
        assert drawn.sum() > 40, "the box is drawn in the video"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"):
        ResultSink(tmp_path / "file" / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "cat.png").symlink_to("/dev/full")
    with ResultSink(tmp_path) as sink, pytest.raises(StorageError, match="No space left"):
        sink.write(result("a/cat.png"))
