"""The verbs and the facade from Python: what goes in, what comes out, and how wrong calls end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ullage
from ullage import YOLO, api
from ullage.api.models import load_model
from ullage.config import PredictConfig, TrainConfig, ValConfig
from ullage.errors import BackendUnavailable, ConfigError, DataError, WeightsError
from ullage.runtime.results import Results
from ullage.train.events import EpochDone, RunEnded, RunStarted

SMALL = {"imgsz": 64, "workers": 0, "device": "cpu", "plots": False, "verbose": False}
LOW = {"imgsz": 64, "conf": 1e-5, "device": "cpu"}  # a fresh network is sure of nothing


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model() -> YOLO:
    """A fresh network of 80 classes; not to be trained."""
    return YOLO("yolo11n")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(((60, 90), (90, 60), (64, 64))):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_training_returns_what_it_left_and_tells_listeners(here: Path) -> None:
    heard: list[object] = []
    config = TrainConfig.load({"model": "yolo11n", "data": "demo", "epochs": 2, "fraction": 0.02, "batch": 4, **SMALL})
    result = api.train(config, listeners=[heard.append])
    assert result.run_dir == Path("runs/detect/train")
    assert (result.best, result.last) == (result.run_dir / "weights/best.pt", result.run_dir / "weights/last.pt")
    assert result.metrics is not None
    assert result.metrics.image_count == 60
    kinds = [type(event) for event in heard]
    assert kinds.count(EpochDone) == 2
    assert kinds.index(RunStarted) < kinds.index(EpochDone)
    assert kinds[-1] is RunEnded


def test_metrics_have_the_names_that_users_know(here: Path, model: YOLO) -> None:
    metrics = YOLO("yolov12n.yaml").val(data="demo", batch=4, fraction=0.1, conf=0.0001, split="val", **SMALL)
    assert len(metrics.box.maps) == 10
    figures = (metrics.box.map, metrics.box.map50, metrics.box.map75, metrics.box.mp, metrics.box.mr)
    assert all(0 <= value <= 1 for value in figures)
    assert {"metrics/mAP50-95(B)", "metrics/precision(B)", "fitness"} <= set(metrics.results_dict)
    assert set(metrics.speed) == {"preprocess", "inference", "postprocess"}
    assert all(milliseconds > 0 for milliseconds in metrics.speed.values())
    assert metrics.confusion_matrix.matrix.shape == (11, 11)
    assert len(metrics.curves.precision_recall.x_X) == 1000
    assert list(here.iterdir()) == [], "plots=False and save_json=False write nothing"


def test_results_have_the_names_that_users_know(model: YOLO, pictures: Path, here: Path) -> None:
    results = model.predict(pictures / "0.png", **LOW)
    assert isinstance(results, list)
    (found,) = results
    assert isinstance(found, Results)
    assert len(found.boxes) == len(found.boxes.xyxy) > 0
    for boxes in (found.boxes.xyxy, found.boxes.xywh, found.boxes.xyxyn, found.boxes.xywhn):
        assert boxes.shape == (len(found.boxes), 4)
    assert ((found.boxes.xyxyn >= 0) & (found.boxes.xyxyn <= 1)).all()
    assert (found.boxes.conf[:-1] >= found.boxes.conf[1:]).all()
    assert set(found.boxes.cls.int().tolist()) <= set(found.names)
    assert found.orig_img.shape == found.plot().shape == (60, 90, 3)
    assert found.path == str(pictures / "0.png")
    assert [entry["class"] for entry in json.loads(found.to_json())] == found.boxes.cls.int().tolist()
    assert found.save(here / "deep/down.png").exists()


def test_one_by_one_or_all_at_once(model: YOLO, pictures: Path) -> None:
    everything = model(str(pictures), **LOW)
    assert [Path(found.path).name for found in everything] == ["0.png", "1.png", "2.png"]
    stream = model(str(pictures), stream=True, **LOW)
    assert isinstance(stream, Iterator)
    assert not isinstance(stream, list)
    assert [found.path for found in stream] == [found.path for found in everything]


def test_batches_give_what_single_images_give(model: YOLO, pictures: Path) -> None:
    one, many = (model(str(pictures / "2.png"), **LOW)[0], model([str(pictures / "2.png")] * 3, batch=3, **LOW))
    for found in many:
        torch.testing.assert_close(found.boxes.data, one.boxes.data, rtol=1e-4, atol=1e-3)


def test_settings_narrow_what_is_found(model: YOLO, pictures: Path) -> None:
    picture = str(pictures / "0.png")
    (found,) = model(picture, **LOW)
    assert len(model(picture, max_det=3, **LOW)[0].boxes) == 3
    wanted = int(found.boxes.cls[0])
    (some,) = model(picture, classes=wanted, **LOW)
    assert set(some.boxes.cls.int().tolist()) == {wanted}
    assert len(model(picture, **{**LOW, "conf": 0.99})[0].boxes) == 0


def test_verbs_work_without_the_facade(pictures: Path, here: Path) -> None:
    config = PredictConfig.load({"model": "yolo11n", "source": pictures, "save": True, **LOW})
    prediction = ullage.predict(config)
    assert len(list(prediction)) == 3
    assert prediction.save_dir == Path("runs/detect/predict")
    assert {path.name for path in prediction.save_dir.iterdir()} == {"0.png", "1.png", "2.png"}
    judged = ullage.val(ValConfig.load({"model": "yolo11n", "data": "demo", "fraction": 0.05, **SMALL}))
    assert judged.image_count == 3


def test_a_name_stands_for_the_same_fresh_weights_each_time() -> None:
    first, second, other = (load_model("yolo11n", seed=seed) for seed in (0, 0, 1))
    states = [model.network.state_dict()["stem.conv.weight"] for model in (first, second, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_saved_weights_come_back_to_the_bit(model: YOLO, here: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        again = YOLO(model.save(here / f"weights{suffix}"))
        mine, theirs = model.model.state_dict(), again.model.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert again.info() == model.info()
    with pytest.raises(ConfigError, match=r"\.pt or \.safetensors"):
        model.save(here / "weights.bin")


@pytest.mark.parametrize(
    ("call", "kind", "named"),
    [
        (lambda: YOLO("yolov12q"), ConfigError, "yolov12q"),
        (lambda: YOLO("nowhere.pt"), WeightsError, "looked for"),
        (lambda: YOLO("x.onnx"), WeightsError, "x.onnx"),
        (lambda: YOLO("yolo11n", task="segment"), ConfigError, "segment"),
        (lambda: YOLO("yolo11n").train(data="demo", epoch=1), ConfigError, "Did you mean 'epochs'"),
        (lambda: YOLO("yolo11n").train(), ConfigError, "train needs data="),
        (lambda: YOLO("yolo11n").val(), ConfigError, "val needs data="),
        (lambda: YOLO("yolo11n").val(data="demo", batches=3), ConfigError, "Did you mean 'batch'"),
        (lambda: YOLO("yolo11n").predict(), ConfigError, "source"),
        (lambda: YOLO("yolo11n").predict([]), DataError, "empty list"),
        (lambda: YOLO("yolo11n").predict(3.5), ConfigError, "float"),
        (lambda: list(YOLO("yolo11n").predict(99)), BackendUnavailable, "camera99"),
        (lambda: YOLO("yolo11n").predict("nowhere.jpg"), DataError, "nowhere.jpg"),
        (lambda: YOLO("yolo11n").predict("x.jpg", device="cuda:99"), BackendUnavailable, "cuda:99"),
        (lambda: YOLO("yolo11n").predict(np.zeros((4, 4, 2), np.uint8)), DataError, "2"),
    ],
)
def test_wrong_calls_raise_one_of_ours(call: object, kind: type[Exception], named: str, here: Path) -> None:
    with pytest.raises(kind) as caught:
        call()  # pyright: ignore[reportCallIssue]
    assert named in str(caught.value)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("verb", ["val", "predict"])
def test_without_a_model_new_weights_are_not_passed_off_as_an_answer(verb: str) -> None:
    config = ValConfig.load({"data": "demo"}) if verb == "val" else PredictConfig.load({"source": "x.jpg"})
    with pytest.raises(ConfigError, match=f"{verb} needs model="):
        getattr(api, verb)(config)
