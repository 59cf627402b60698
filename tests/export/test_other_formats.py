"""OpenVINO and TorchScript: the same proof, the same calls, the same results."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_kit import write

from ullage import YOLO
from ullage.api.models import LoadedModel
from ullage.data.decode import read_image
from ullage.data.source import open_dataset
from ullage.errors import BackendUnavailable, ConfigError, StorageError, WeightsError
from ullage.export.proof import failures, letterboxed
from ullage.runtime.open_file import open_exported
from ullage.runtime.predictor import TorchPredictor, predict

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FORMATS = ("openvino", "torchscript")


def needs(form: str) -> None:
    if form == "openvino":
        pytest.importorskip("openvino")


def images(count: int, *size_hw: int) -> torch.Tensor:
    paths = open_dataset("demo", split="val").paths[:count]
    return letterboxed([read_image(path) for path in paths], (size_hw[0], size_hw[1]))


def assert_same_results(mine: list, theirs: list) -> None:
    assert sum(len(one.boxes) for one in theirs) > 10
    for one, other in zip(mine, theirs, strict=True):
        assert len(one.boxes) == len(other.boxes)
        torch.testing.assert_close(one.boxes.conf, other.boxes.conf, atol=1e-3, rtol=0)
        rows = [sorted(map(tuple, each.boxes.data[:, [5, 0, 1, 2, 3]].round().tolist())) for each in (one, other)]
        assert np.abs(np.array(rows[0]) - np.array(rows[1])).max() <= 1  # of equal scores either may come first


@pytest.mark.parametrize("form", FORMATS)
def test_a_dynamic_file_takes_every_size_and_batch(form: str, mini: LoadedModel, tmp_path: Path) -> None:
    needs(form)
    file = open_exported(write(mini, tmp_path, format=form, dynamic=True))
    network = TorchPredictor(mini.network, names=mini.names)
    for shape in ((1, 96, 96), (3, 64, 96), (2, 128, 32), (1, 96, 96)):
        pixels = images(*shape)
        asked = {"source": [one.permute(1, 2, 0).numpy() for one in pixels], "imgsz": shape[1:], "batch": shape[0]}
        assert_same_results(*(list(predict(one, conf=0.5, **asked)) for one in (file, network)))


@pytest.mark.parametrize("form", FORMATS)
def test_a_static_file_runs_any_number_of_images(form: str, mini: LoadedModel, tmp_path: Path) -> None:
    needs(form)
    file = open_exported(write(mini, tmp_path, format=form, imgsz=(64, 96), batch=2))
    assert file.info.batch == 2
    for count in (1, 3):
        pixels = images(count, 64, 96)
        boxes, scores = file(pixels)  # type: ignore[misc]
        assert boxes.shape == (count, 126, 4)
        again, _ = file(pixels[:1])  # type: ignore[misc]
        torch.testing.assert_close(again, boxes[:1])
        assert scores.std() > 0.05
    with pytest.raises(ConfigError, match="takes images of 64x96 only"):
        file(images(1, 96, 96))


@pytest.mark.parametrize("form", FORMATS)
def test_half_precision_makes_the_file_smaller(form: str, mini: LoadedModel, tmp_path: Path) -> None:
    needs(form)
    sizes = {}
    for half in (False, True):
        path = write(mini, tmp_path / str(half), format=form, imgsz=64, half=half)
        sizes[half] = sum(part.stat().st_size for part in ([path] if path.is_file() else path.glob("*.bin")))
        assert open_exported(path).info.precision == ("fp16" if half else "fp32")
    assert sizes[True] < 0.8 * sizes[False]


def test_openvino_suppresses_inside(mini: LoadedModel, tmp_path: Path, pictures: list[str]) -> None:
    pytest.importorskip("openvino")
    limits = {"conf": 0.5, "iou": 0.4, "max_det": 20}
    file = open_exported(write(mini, tmp_path, format="openvino", nms=True, dynamic=True, **limits))
    network = TorchPredictor(mini.network, names=mini.names)
    mine, theirs = (list(predict(one, source=pictures, imgsz=96, batch=3, **limits)) for one in (file, network))
    assert [len(one.boxes) for one in mine] == [len(one.boxes) for one in theirs]
    assert sum(len(one.boxes) for one in theirs) > 10


def test_a_folder_with_something_else_is_not_replaced(mini: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    folder = write(mini, tmp_path, format="openvino", imgsz=64)
    first = next(folder.glob("*.xml")).stat().st_mtime_ns
    assert next(write(mini, tmp_path, format="openvino", imgsz=64).glob("*.xml")).stat().st_mtime_ns > first
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"holds more than an export \('notes\.txt'\)"):
        write(mini, tmp_path, format="openvino", imgsz=64)
    assert (folder / "notes.txt").read_text() == "mine"


def test_openvino_by_folder_and_by_file(mini: LoadedModel, tmp_path: Path, pictures: list[str]) -> None:
    pytest.importorskip("openvino")
    folder = write(mini, tmp_path, format="openvino", imgsz=64)
    assert folder.name == "best_openvino_model"
    assert (tmp_path / "best_openvino_model.md").is_file()
    (xml,) = folder.glob("*.xml")
    by_folder, by_file = (YOLO(path).predict(pictures[0], conf=0.5) for path in (folder, xml))
    torch.testing.assert_close(by_folder[0].boxes.data, by_file[0].boxes.data)
    xml.with_suffix(".bin").rename(tmp_path / "elsewhere.bin")
    with pytest.raises(WeightsError, match="lacks its weights"):
        YOLO(xml)
    shutil.copy(xml, folder / "second.xml")
    with pytest.raises(WeightsError, match=r"should hold one \.xml file, it holds 2"):
        YOLO(folder)


@pytest.mark.slow
def test_eight_bits_are_calibrated_and_judged(mini: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf", reason="8-bit OpenVINO files need NNCF: pip install nncf")
    path = write(mini, tmp_path, format="openvino", imgsz=64, int8=True, data="demo", fraction=0.03)
    file = open_exported(path)
    assert file.info.precision == "int8"
    (xml,) = path.glob("*.xml")
    kinds = xml.read_text()
    assert 'type="FakeQuantize"' in kinds or 'element_type="i8"' in kinds or 'precision="I8"' in kinds
    report = (tmp_path / "best_openvino_model.md").read_text()
    assert "mAP50-95: network" in report


def test_eight_bits_may_cost_a_point_and_a_half() -> None:
    assert failures((), "int8", map_loss=0.014) == []
    assert failures((), "int8", map_loss=0.016) == ["mAP50-95 falls by 0.0160 (allowed 0.015)"]


def test_eight_bits_of_any_size_are_refused(mini: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dynamic=True does not go with int8=True in OpenVINO"):
        write(mini, tmp_path, format="openvino", int8=True, dynamic=True, data="demo")


@pytest.mark.parametrize("form", FORMATS)
def test_files_that_cannot_be_read(form: str, mini: LoadedModel, tmp_path: Path) -> None:
    needs(form)
    path = write(mini, tmp_path, format=form, imgsz=64)
    file = path if path.is_file() else next(path.glob("*.xml"))
    file.write_bytes(file.read_bytes()[:900])
    with pytest.raises(WeightsError, match="cannot load"):
        YOLO(path)


def test_foreign_torchscript(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning):
        torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(tmp_path / "foreign.torchscript"))
    with pytest.raises(WeightsError, match="was not exported by Ullage"):
        YOLO(tmp_path / "foreign.torchscript")


@pytest.mark.parametrize("library", ["openvino", "onnx"])
def test_without_the_library_one_line_says_what_to_install(
    library: str, mini: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(BackendUnavailable, match=rf"needs {library}, .*pip install {library}"):
        write(mini, tmp_path, format="openvino", imgsz=64)
    assert list(tmp_path.iterdir()) == []
