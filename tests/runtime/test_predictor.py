"""From any source to results, with a detector whose answers are known."""

from __future__ import annotations

import gc
import weakref
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from square_finder import NAMES, SquareFinder, scene

from ullage.errors import BackendUnavailable, ConfigError, DataError
from ullage.runtime.predictor import TorchPredictor, precision_for, predict
from ullage.runtime.results import Results
from ullage.runtime.sources import open_source
from ullage.runtime.video import VideoWriter
from ullage.zoo.registry import build


def centre(result: Results, row: int = 0) -> tuple[float, float]:
    x, y, _, _ = result.boxes.xywh[row].tolist()
    return x, y


def test_known_squares_are_found_where_they_are(predictor: TorchPredictor) -> None:
    (found,) = predict(predictor, source=scene(64, 96, white=(8, 24), red=(40, 64)), imgsz=96)
    assert str(found) == "1 white square, 1 red square"
    by_class = {int(box.cls): box.xyxy[0].tolist() for box in found.boxes}
    assert by_class[0] == pytest.approx([20, 4, 36, 20], abs=0.01)
    assert by_class[1] == pytest.approx([60, 36, 76, 52], abs=0.01)
    assert found.names == dict(enumerate(NAMES))
    assert found.boxes.xyxy.dtype == torch.float32
    assert set(found.speed) == {"preprocess", "inference", "postprocess"}
    assert all(value > 0 for value in found.speed.values())


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 128), (128, 48), (200, 120), (500, 700)])
def test_boxes_come_back_to_the_original_frame(predictor: TorchPredictor, height: int, width: int) -> None:
    image = np.full((height, width, 3), 20, np.uint8)
    top, left = height // 2, width // 4
    side = max(height, width) // 8
    image[top : top + side, left : left + side] = 255
    (found,) = predict(predictor, source=image, imgsz=256, conf=0.1)
    assert len(found) >= 1
    hits = [centre(found, row) for row in range(len(found))]
    assert all(left - 2 <= x <= left + side + 2 and top - 2 <= y <= top + side + 2 for x, y in hits)


def test_input_is_as_small_as_the_picture_allows(finder: SquareFinder) -> None:
    predictor = TorchPredictor(finder, names=NAMES, fold=False)
    seen = predictor._network.calls  # pyright: ignore
    list(predict(predictor, source=np.zeros((360, 640, 3), np.uint8), imgsz=320))
    list(predict(predictor, source=np.zeros((360, 640, 3), np.uint8), imgsz=(320, 320)))
    list(
        predict(
            predictor, source=[np.zeros((360, 640, 3), np.uint8), np.zeros((640, 360, 3), np.uint8)], imgsz=320, batch=2
        )
    )
    list(predict(predictor, source=[np.zeros((10, 8000, 3), np.uint8), np.zeros((1, 1, 3), np.uint8)], imgsz=320))
    assert seen == [(1, 3, 192, 320), (1, 3, 320, 320), (2, 3, 320, 320), (1, 3, 32, 320), (1, 3, 320, 320)]


def test_batches_do_not_change_results(predictor: TorchPredictor, picture_folder: Path) -> None:
    for number, size in enumerate([(64, 96), (96, 64), (64, 64), (80, 80)]):
        Image.fromarray(scene(*size, red=(16, 8 * number))).save(picture_folder / f"x{number}.png")
    single = list(predict(predictor, source=picture_folder, imgsz=96))
    for batch in (2, 3, 16):
        many = list(predict(predictor, source=picture_folder, imgsz=96, batch=batch))
        assert [one.path for one in many] == [one.path for one in single]
        assert [len(one) for one in many] == [len(one) for one in single]
        for a, b in zip(many, single, strict=True):
            torch.testing.assert_close(a.boxes.xyxy, b.boxes.xyxy, atol=8.0, rtol=0)  # margins move the grid
    assert sum(len(one) for one in single) >= 6


def test_thresholds_and_filters(predictor: TorchPredictor) -> None:
    image = scene(64, 96, white=(8, 24), red=(40, 64))
    assert [str(one) for one in predict(predictor, source=image, imgsz=96, classes=[1])] == ["1 red square"]
    assert len(next(predict(predictor, source=image, imgsz=96, max_det=1))) == 1
    assert len(next(predict(predictor, source=image, imgsz=96, conf=0.99999))) == 0
    assert len(next(predict(predictor, source=image, imgsz=96, classes=[]))) == 0


def test_nothing_in_the_picture(predictor: TorchPredictor) -> None:
    (found,) = predict(predictor, source=scene(50, 70))
    assert len(found) == 0
    assert found.boxes.xywhn.shape == (0, 4)
    assert str(found) == "nothing found"
    assert (found.plot() == found.orig_img).all()
    assert found.summary() == []


def test_orig_img_is_the_rgb_that_was_given(predictor: TorchPredictor, tmp_path: Path) -> None:
    image = scene(40, 60, red=(8, 8))
    Image.fromarray(image).save(tmp_path / "a.png")
    (from_array,) = predict(predictor, source=image)
    (from_file,) = predict(predictor, source=tmp_path / "a.png")
    assert (from_array.orig_img == image).all()
    assert (from_file.orig_img == image).all()


def test_results_can_be_changed_in_place(predictor: TorchPredictor) -> None:
    (found,) = predict(predictor, source=scene(white=(8, 8)), imgsz=64)
    found.boxes.xyxy[:, 0] += 1  # an inference tensor would refuse
    assert not found.boxes.data.is_inference()


def test_videos_stream_in_constant_memory(predictor: TorchPredictor, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=10) as writer:
        for number in range(40):
            writer.write(scene(64, 96, white=(8, 8 * (number % 10))), time_s=number / 10)
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    numbers = []
    for found in predict(predictor, source=tmp_path / "a.mp4", imgsz=96, batch=4):
        alive.append(weakref.ref(found.orig_img))
        numbers.append(found.video_frame)
        assert found.fps == pytest.approx(10)
        gc.collect(0)
        most = max(most, sum(ref() is not None for ref in alive))
    assert numbers == list(range(40))
    assert most <= 8, "two batches at most"


def test_real_video_frames(predictor: TorchPredictor, shared: Path) -> None:
    stream = predict(predictor, source=shared / "data/videos/bottle-detection.mp4", imgsz=320, batch=3)
    found = list(islice(stream, 5))
    assert [one.video_frame for one in found] == [0, 1, 2, 3, 4]
    assert found[0].orig_shape == (360, 640)


def test_zoo_network_on_real_images(shared: Path) -> None:
    torch.manual_seed(0)
    network = build("yolov12n", num_classes=80)
    names = [f"class {number}" for number in range(80)]
    files = sorted((shared / "data/coco128/images").rglob("*.jpg"))[:3]
    folded = list(predict(TorchPredictor(network, names=names), source=files, imgsz=160, conf=0, max_det=20, batch=3))
    plain = list(
        predict(
            TorchPredictor(network, names=names, fold=False, channels_last=False),
            source=files,
            imgsz=160,
            conf=0,
            max_det=20,
            batch=3,
        )
    )
    for a, b in zip(folded, plain, strict=True):
        assert len(a) == len(b) == 20
        assert a.boxes.xyxy.min() >= 0
        torch.testing.assert_close(a.boxes.conf, b.boxes.conf, rtol=1e-3, atol=1e-6)
        height, width = a.orig_shape
        assert float(a.boxes.xyxy[:, 2].max()) <= width
        assert float(a.boxes.xyxy[:, 3].max()) <= height


def test_the_given_network_is_not_changed(finder: SquareFinder) -> None:
    before = {name: tensor.clone() for name, tensor in finder.state_dict().items()}
    finder.train()
    predictor = TorchPredictor(finder, names=NAMES, precision="bf16")
    list(predict(predictor, source=scene(white=(8, 8)), imgsz=64))
    assert finder.training
    assert finder.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in finder.state_dict().items())
    assert finder.calls == []


def test_half_on_a_cpu_is_bf16(finder: SquareFinder) -> None:
    assert precision_for("cpu", half=True) == "bf16"
    assert precision_for("cpu", half=False) == "fp32"
    half = TorchPredictor(finder, names=NAMES, precision="bf16")
    (found,) = predict(half, source=scene(64, 96, white=(8, 24)), imgsz=96)
    assert centre(found) == pytest.approx((28, 12), abs=0.5)
    assert found.boxes.data.dtype == torch.float32
    with pytest.raises(BackendUnavailable, match="fp16"):
        TorchPredictor(finder, names=NAMES, precision="fp16")


def test_devices(finder: SquareFinder) -> None:
    with pytest.raises(ConfigError, match="no device"):
        TorchPredictor(finder, names=NAMES, device="gpu7")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(BackendUnavailable, match=f"'{absent}' was asked for"):
        TorchPredictor(finder, names=NAMES, device=absent)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_gpu(finder: SquareFinder, precision: str) -> None:
    predictor = TorchPredictor(finder, names=NAMES, device="cuda:0", precision=precision)  # pyright: ignore
    (found,) = predict(predictor, source=scene(64, 96, white=(8, 24)), imgsz=96)
    assert centre(found) == pytest.approx((28, 12), abs=0.5)
    assert found.boxes.data.device.type == "cpu"


def test_names_as_a_mapping_and_their_number(finder: SquareFinder) -> None:
    predictor = TorchPredictor(finder, names={0: "a", 1: "b"})
    assert predictor.names == {0: "a", 1: "b"}
    with pytest.raises(ConfigError, match=r"2 classes apart, but 3 names"):
        list(predict(TorchPredictor(finder, names="abc"), source=scene()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"imgsz": 100}, "multiples of 32"),
        ({"imgsz": (64, 100)}, "multiples of 32"),
        ({"imgsz": 0}, "multiples of 32"),
        ({"imgsz": (64, 64, 64)}, "multiples of 32"),
        ({"conf": 1.0}, "conf=1.0"),
        ({"conf": -0.1}, "conf=-0.1"),
        ({"iou": 0.0}, "iou=0.0"),
        ({"max_det": 0}, "max_det=0"),
        ({"batch": 0}, "batch=0"),
        ({"classes": [0, 2]}, "no class 2"),
    ],
)
def test_wrong_settings_are_told_before_the_first_frame(predictor: TorchPredictor, options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        predict(predictor, source=scene(), **options)


def test_missing_source_is_told_before_the_first_frame(predictor: TorchPredictor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        predict(predictor, source=tmp_path / "gone.jpg")


def test_an_opened_source_counts_what_it_skips(predictor: TorchPredictor, picture_folder: Path) -> None:
    (picture_folder / "1.png").write_bytes(b"broken")
    source = open_source(picture_folder)
    with pytest.warns(UserWarning, match=r"1\.png"):
        found = list(predict(predictor, source=source, imgsz=64))
    assert [Path(one.path).name for one in found] == ["0.png", "2.png"]
    assert len(source.skipped) == 1
