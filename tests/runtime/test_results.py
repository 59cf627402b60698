"""What a prediction gives back."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageShow

from ullage.errors import BackendUnavailable, ConfigError, DataError, StorageError
from ullage.geometry.detections import Detections
from ullage.runtime.results import Boxes, Results

NAMES = {0: "dog", 1: "cat", 2: "bus"}


def results(rows: list[tuple[float, ...]] | None = None, size_hw: tuple[int, int] = (100, 200)) -> Results:
    rows = [(20, 10, 120, 60, 0.9, 0), (0, 0, 50, 50, 0.8, 1), (100, 50, 200, 100, 0.7, 0)] if rows is None else rows
    data = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    image = np.full((*size_hw, 3), 90, np.uint8)
    return Results(boxes=Boxes(data, size_hw), orig_img=image, path="a/dogs.jpg", names=NAMES, speed={"inference": 1.0})


def test_the_four_formats_agree() -> None:
    boxes = results().boxes
    assert boxes.xyxy[0].tolist() == [20, 10, 120, 60]
    assert boxes.xywh[0].tolist() == [70, 35, 100, 50]
    assert boxes.xyxyn[0].tolist() == pytest.approx([0.1, 0.1, 0.6, 0.6])
    assert boxes.xywhn[0].tolist() == pytest.approx([0.35, 0.35, 0.5, 0.5])
    assert boxes.conf.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert boxes.cls.tolist() == [0, 1, 0]
    for tensor in (boxes.xyxy, boxes.xywh, boxes.xyxyn, boxes.xywhn, boxes.conf, boxes.cls, boxes.data):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == torch.float32
    assert boxes.shape == (3, 6)


def test_indexing_and_iterating() -> None:
    boxes = results().boxes
    assert len(boxes) == 3
    assert boxes[1].xyxy.tolist() == [[0, 0, 50, 50]]
    assert boxes[-1].xyxy.tolist() == boxes[2].xyxy.tolist()
    assert boxes[np.int64(1)].shape == (1, 6)
    assert len(boxes[1:]) == 2
    assert boxes[boxes.conf > 0.75].cls.tolist() == [0, 1]
    assert [int(box.cls) for box in boxes] == [0, 1, 0]
    assert [float(box.conf) for box in boxes] == pytest.approx([0.9, 0.8, 0.7])
    with pytest.raises(IndexError):
        boxes[3]
    found = results()
    assert len(found) == 3
    assert len(found[:2]) == 2
    assert found[0].boxes.shape == (1, 6)
    assert [str(one) for one in found] == ["1 dog", "1 cat", "1 dog"]


def test_numpy_and_back() -> None:
    found = results().numpy()
    assert isinstance(found.boxes.xywhn, np.ndarray)
    assert found.boxes.xyxy.dtype == np.float32
    assert found.boxes[0].xyxy.shape == (1, 4)
    assert isinstance(found.cpu().boxes.xyxy, torch.Tensor)
    assert results().boxes.cpu().numpy().conf.shape == (3,)
    assert found.plot().shape == (100, 200, 3)
    assert str(found) == str(results())


def test_from_detections() -> None:
    found = Detections(torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0.5]), torch.tensor([2]))
    boxes = Boxes.from_detections(found, (10, 20))
    assert boxes.data.tolist() == [[1, 2, 3, 4, 0.5, 2]]
    with pytest.raises(DataError, match=r"\(2, 4\)"):
        Boxes(torch.zeros(2, 4), (1, 1))


def test_words() -> None:
    assert str(results()) == "2 dogs, 1 cat"
    assert str(results([(0, 0, 1, 1, 0.5, 2)] * 2)) == "2 buses"
    assert str(results([])) == "nothing found"
    assert str(results([(0, 0, 1, 1, 0.5, 9)])) == "1 class 9"
    assert "dogs.jpg" in repr(results())
    assert results().orig_shape == (100, 200)


def test_summary_and_json() -> None:
    summary = results().summary()
    assert summary[0] == {
        "name": "dog", "class": 0, "confidence": 0.9, "box": {"x1": 20.0, "y1": 10.0, "x2": 120.0, "y2": 60.0},
    }  # fmt: skip
    assert json.loads(results().to_json()) == summary
    assert results().summary(normalize=True)[0]["box"]["x2"] == 0.6
    assert json.loads(results([]).to_json()) == []
    unicode = Results(boxes=results().boxes, orig_img=results().orig_img, path="", names={0: "собака", 1: "b"})
    assert "собака" in unicode.to_json()


def test_plot_draws_on_a_copy_and_options_count() -> None:
    found = results()
    plain = found.orig_img.copy()
    drawn = found.plot()
    assert (found.orig_img == plain).all()
    assert (drawn != plain).any()
    assert not (drawn == found.plot(conf=False)).all()
    assert not (drawn == found.plot(labels=False)).all()
    assert not (drawn == found.plot(line_width=9)).all()
    assert (results([]).plot() == plain).all()
    assert results([(0, 0, 9, 9, 0.5, 77)]).plot().shape == (100, 200, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif", ".JPG"])
def test_save(tmp_path: Path, suffix: str) -> None:
    target = results().save(tmp_path / "new" / f"a{suffix}")
    with Image.open(target) as picture:
        difference = np.abs(np.asarray(picture.convert("RGB")).astype(int) - results().plot())
    assert difference.mean() < 6


def test_save_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.jpq.*allowed: \.jpg.*Did you mean '\.jpg'"):
        results().save(tmp_path / "a.jpq")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the picture"):
        results().save(tmp_path / "file" / "a.jpg")
    with pytest.raises(StorageError, match="cannot write"):
        results().save_txt(tmp_path / "file" / "a.txt")
    with pytest.raises(ConfigError, match=r"65535 pixels.*use \.png"):
        results([], (1, 70_000)).save(tmp_path / "a.jpg")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.txt"):
        (tmp_path / name).symlink_to("/dev/full")
    for name in ("a.jpg", "a.png"):
        with pytest.raises(StorageError, match="No space left"):
            results().save(tmp_path / name)
    with pytest.raises(StorageError, match="No space left"):
        results().save_txt(tmp_path / "a.txt")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        results().save(tmp_path / "a.jpg")


def test_yolo_rows(tmp_path: Path) -> None:
    rows = results().save_txt(tmp_path / "a.txt").read_text().splitlines()
    assert rows[0] == "0 0.350000 0.350000 0.500000 0.500000"
    scored = results().save_txt(tmp_path / "b.txt", save_conf=True).read_text().splitlines()
    assert scored[1].endswith(" 0.800000")
    assert results([]).save_txt(tmp_path / "c.txt").read_text() == ""


def test_show_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(BackendUnavailable, match=r"no display.*save"):
        results().show()


def test_show_hands_the_picture_to_the_viewer(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []

    class Viewer(ImageShow.Viewer):
        def show(self, image: Image.Image, **options: object) -> int:
            shown.append(image.size)
            return 1

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()])
    results().show()
    assert shown == [(200, 100)]
    monkeypatch.setattr(ImageShow, "_viewers", [])
    with pytest.raises(BackendUnavailable, match="no program to show pictures"):
        results().show()


def test_supervision() -> None:
    try:
        import supervision  # pyright: ignore
    except ImportError:
        with pytest.raises(BackendUnavailable, match="pip install supervision"):
            results().to_supervision()
        return
    found = results().to_supervision()
    assert isinstance(found, supervision.Detections)
    assert found.xyxy.tolist() == results().boxes.xyxy.tolist()
    assert found.class_id.tolist() == [0, 1, 0]
    assert list(found.data["class_name"]) == ["dog", "cat", "dog"]
    assert len(results([]).to_supervision()) == 0
