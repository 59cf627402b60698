"""``YOLO("x.onnx")``: the same calls, the same results; and files that cannot be used."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ullage import YOLO
from ullage.apps.cli.main import main
from ullage.errors import BackendUnavailable, ConfigError, DataError, WeightsError
from ullage.runtime.open_file import open_exported

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TALL = np.random.default_rng(0).integers(0, 255, (150, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def network(weights: Path) -> YOLO:
    return YOLO(weights)


@pytest.fixture(scope="module")
def file(dynamic_onnx: Path) -> YOLO:
    return YOLO(str(dynamic_onnx))


def assert_same(results: list, others: list) -> None:
    assert len(results) == len(others)
    for one, other in zip(results, others, strict=True):
        assert one.path == other.path
        assert one.names == other.names
        assert len(one.boxes) == len(other.boxes) > 0
        torch.testing.assert_close(one.boxes.data, other.boxes.data, atol=0.05, rtol=0)
        assert set(one.speed) == {"preprocess", "inference", "postprocess"}


@pytest.mark.parametrize("settings", [{"imgsz": 96}, {"imgsz": (64, 128)}, {"imgsz": 96, "batch": 3}, {"imgsz": 64}])
def test_the_same_results_at_every_size(network: YOLO, file: YOLO, pictures: list[str], settings: dict) -> None:
    for thresholds in ({"conf": 0.5}, {"conf": 0.5, "iou": 0.3, "classes": [1, 2, 3], "agnostic_nms": True}):
        mine, theirs = (model.predict([*pictures, TALL], **settings, **thresholds) for model in (file, network))
        assert_same(list(mine), list(theirs))


def test_the_size_of_the_file_is_the_default(network: YOLO, file: YOLO, static_onnx: Path, pictures: list[str]) -> None:
    assert_same(list(file(pictures, conf=0.5)), list(network(pictures, conf=0.5, imgsz=96)))
    fixed = YOLO(static_onnx)
    assert_same(list(fixed(pictures, conf=0.5, batch=3)), list(network(pictures, conf=0.5, imgsz=(64, 96))))
    assert_same(list(fixed(pictures, conf=0.5, imgsz=96)), list(network(pictures, conf=0.5, imgsz=(64, 96))))
    with pytest.raises(ConfigError, match=r"imgsz=128 was asked for, but the exported file takes 64x96 only"):
        fixed(pictures, imgsz=128)


def test_judged_the_same(network: YOLO, file: YOLO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"data": "demo", "imgsz": 64, "fraction": 0.1, "plots": False, "workers": 0, "verbose": False}
    mine, theirs = file.val(**settings, save_json=True, name="mine"), network.val(**settings)
    assert mine.box.map50 == pytest.approx(theirs.box.map50, abs=1e-4)
    assert mine.results_dict == pytest.approx(theirs.results_dict, abs=1e-3)
    assert (tmp_path / "runs/detect/mine/predictions.json").stat().st_size > 100


def test_a_file_of_a_fixed_square_is_judged_on_squares(model: object, network: YOLO, tmp_path: Path) -> None:
    file = YOLO(network.export(imgsz=64, out=tmp_path / "square.onnx", device="cpu"))
    settings = {"data": "demo", "fraction": 0.05, "plots": False, "workers": 0, "verbose": False}
    assert file.val(**settings).box.map50 == pytest.approx(
        network.val(imgsz=64, rect=False, **settings).box.map50, abs=1e-4
    )


def test_a_file_that_is_not_square_is_not_judged(static_onnx: Path) -> None:
    with pytest.raises(ConfigError, match="64x96 only, and val needs square images"):
        YOLO(static_onnx).val(data="demo", plots=False)


def test_what_an_exported_file_cannot_do(file: YOLO, dynamic_onnx: Path) -> None:
    calls = [file.info, file.export, lambda: file.save("x.pt"), lambda: file.model, lambda: file.train(data="demo")]
    for call in calls:
        with pytest.raises(ConfigError, match="is an exported file"):
            call()
    assert "yolov12n" in repr(file)
    assert file.names[3] == "three"
    with pytest.raises(ConfigError, match=r"half=True was asked for, but .* computes in fp32"):
        file.predict(TALL, half=True)
    with pytest.raises(BackendUnavailable, match="device='77' was asked for"):
        file.predict(TALL, device=77)


def test_classes_of_the_data_must_be_those_of_the_file(file: YOLO, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    (tmp_path / "a.png").write_bytes(_png())
    table.write_text("image,xmin,ymin,xmax,ymax,label,split\na.png,1,1,9,9,cat,val\n")
    with pytest.raises(DataError, match="the model tells 10 classes apart, the data set has 1"):
        file.val(data=table, plots=False)


def _png() -> bytes:
    import cv2

    return cv2.imencode(".png", TALL)[1].tobytes()


def test_files_that_are_not_ours(dynamic_onnx: Path, tmp_path: Path) -> None:
    foreign = onnx.load(dynamic_onnx)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(WeightsError, match=r"was not exported by Ullage .*takes images \['batch', 3.*'ullage export'"):
        YOLO(tmp_path / "foreign.onnx")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("schema", "2", "has schema 2, this version reads 1"),
        ("names", "[1, 2]", "damaged or incomplete"),
        ("names", "{", "are damaged"),
        ("imgsz", "null", "damaged or incomplete"),
        ("nms", '{"conf": 1}', "damaged or incomplete"),
        ("nms", '{"conf": 0.1, "iou": 0.5, "max_det": 10}', "is not what its metadata say"),
        ("names", '["a"]', "for 1 images and 1 classes"),
    ],
)
def test_metadata_that_were_changed(dynamic_onnx: Path, tmp_path: Path, key: str, value: str, words: str) -> None:
    changed = onnx.load(dynamic_onnx)
    for entry in changed.metadata_props:
        entry.value = value if entry.key == key else entry.value
    onnx.save(changed, tmp_path / "changed.onnx")
    with pytest.raises(WeightsError, match=words):
        open_exported(tmp_path / "changed.onnx")(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_files_that_are_damaged_or_missing(dynamic_onnx: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(dynamic_onnx.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="onnxruntime cannot load"):
        YOLO(broken)
    broken.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"broken\.onnx"):
        YOLO(broken)
    with pytest.raises(WeightsError, match="there is no exported file"):
        YOLO(tmp_path / "absent.onnx")


def test_without_onnxruntime_one_line_says_what_to_install(
    dynamic_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(dynamic_onnx, tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendUnavailable, match=r"needs onnxruntime, .*pip install onnxruntime.*ullage\[export\]"):
        YOLO(tmp_path / "x.onnx")


def test_the_command_line(weights: Path, tmp_path: Path, pictures: list[str], capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "cli.onnx"
    assert main(["export", f"model={weights}", "format=onnx", "imgsz=64", f"out={out}", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert "Within tolerance" in said
    assert f"the file is {out}" in said
    assert main(["predict", f"model={out}", f"source={pictures[0]}", "conf=0.5"]) == 0
    assert "64x64" not in capsys.readouterr().err
    assert main(["export", f"model={out}"]) == 2
    assert "is an exported file" in capsys.readouterr().err
    assert main(["train", f"model={out}", "data=demo"]) == 2
    assert main(["export", "format=onnx"]) == 2
    assert "export needs model=" in capsys.readouterr().err
