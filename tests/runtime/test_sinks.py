"""Results to disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from PIL import Image
from square_finder import scene

from ullage.errors import StorageError
from ullage.runtime.predictor import TorchPredictor, predict
from ullage.runtime.results import Boxes, Results
from ullage.runtime.sinks import ResultSink
from ullage.runtime.sinks_json import CocoSink, JsonLinesSink
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


def frame(
    number: int, *, stream: int | None, shape: tuple[int, int] = (48, 64), path: str = "rtsp://door/1"
) -> Results:
    rows = torch.tensor([[8.0, 8, 40, 40, 0.9, 0]])
    return Results(
        boxes=Boxes(rows, shape), orig_img=scene(*shape), path=path, names={0: "dog", 1: "cat"}, video_frame=number,
        time_s=number / 10, fps=10, stream=stream, received_at=1.5e9,
    )  # fmt: skip


def test_streams_are_written_side_by_side(tmp_path: Path) -> None:
    with ResultSink(tmp_path, frames=True) as sink:
        for number in range(4):
            sink.write(frame(number, stream=0))
            sink.write(frame(number, stream=1))
    assert [name for name in names(tmp_path) if name.endswith("mp4")] == ["1-2.mp4", "1.mp4"]
    assert [name for name in names(tmp_path) if name.endswith("jpg")] == [
        f"{folder}_frames/{number}.jpg" for folder in ("1-2", "1") for number in range(4)
    ]
    for name in ("1.mp4", "1-2.mp4"):
        assert [one.time_s for one in read_video(tmp_path / name)] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)


def test_what_was_written_of_a_stream_plays_without_its_end(tmp_path: Path) -> None:
    sink = ResultSink(tmp_path)
    for number in range(120):
        sink.write(frame(number, stream=0))
    # as when the program is killed: nothing is closed
    copy = tmp_path / "copy.mp4"
    copy.write_bytes((tmp_path / "1.mp4").read_bytes())
    assert len(list(read_video(copy))) >= 20
    sink.close()


def test_another_size_begins_another_file(tmp_path: Path) -> None:
    with ResultSink(tmp_path) as sink:
        for number in range(4):
            sink.write(frame(number, stream=0, shape=(48, 64) if number < 2 else (64, 48)))
    assert names(tmp_path) == ["1-2.mp4", "1.mp4"]
    assert len(list(read_video(tmp_path / "1-2.mp4"))) == 2


def test_json_lines(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "out")
    sink.write(frame(3, stream=1))
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    assert len(lines) == 1, "a line is on disk as soon as its result is there"
    sink.write(result("a/cat.png", found=False))
    sink.close()
    first, second = (json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines())
    assert {key: first[key] for key in ("source", "stream", "frame", "time_s", "received_at", "height", "width")} == {
        "source": "rtsp://door/1", "stream": 1, "frame": 3, "time_s": 0.3, "received_at": 1.5e9,
        "height": 48, "width": 64,
    }  # fmt: skip
    assert first["objects"] == frame(3, stream=1).summary()
    assert (second["stream"], second["frame"], second["objects"]) == (None, None, [])


def test_coco_file_is_read_by_cocos_tools(tmp_path: Path) -> None:
    sink = CocoSink(tmp_path)
    sink.write(frame(0, stream=None, path="walk.mp4"))
    sink.write(result("b/empty.jpg", found=False))
    sink.write(result("a/cat.png"))
    sink.close()
    assert names(tmp_path) == ["coco.json"]
    coco = COCO(str(tmp_path / "coco.json"))
    assert [(one["file_name"], one.get("frame")) for one in coco.dataset["images"]] == [
        ("walk.mp4", 0), ("b/empty.jpg", None), ("a/cat.png", None),
    ]  # fmt: skip
    assert coco.dataset["categories"] == [{"id": 0, "name": "dog"}, {"id": 1, "name": "cat"}]
    assert [(one["image_id"], one["bbox"], one["score"]) for one in coco.dataset["annotations"]] == [
        (1, [8, 8, 32, 32], 0.9), (3, [8, 8, 32, 32], 0.9),
    ]  # fmt: skip


def test_an_empty_coco_file_is_whole(tmp_path: Path) -> None:
    CocoSink(tmp_path).close()
    assert json.loads((tmp_path / "coco.json").read_text()) == {"annotations": [], "images": [], "categories": []}


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"):
        ResultSink(tmp_path / "file" / "out")
    for kind in (JsonLinesSink, CocoSink):
        with pytest.raises(StorageError, match="cannot make the folder"):
            kind(tmp_path / "file" / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "cat.png").symlink_to("/dev/full")
    with ResultSink(tmp_path) as sink, pytest.raises(StorageError, match="No space left"):
        sink.write(result("a/cat.png"))
