"""ONNX files: what is in the graph, what it computes, and that the network stays as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from export_kit import SIDE, filled, write

from ullage import YOLO, api
from ullage.api.models import LoadedModel
from ullage.config import ExportConfig
from ullage.data.decode import read_image
from ullage.data.source import open_dataset
from ullage.errors import ConfigError, DataError, ExportParityError
from ullage.export.graph import ExportGraph
from ullage.export.proof import letterboxed
from ullage.nn.attention import FusedAttention
from ullage.nn.outputs import decode_boxes, decode_scores
from ullage.runtime.open_file import open_exported
from ullage.runtime.predictor import TorchPredictor, predict

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def pixels(count: int, *size_hw: int) -> torch.Tensor:
    paths = open_dataset("demo", split="val").paths[:count]
    return letterboxed([read_image(path) for path in paths], (size_hw[0], size_hw[1]))


def expected(model: LoadedModel, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        raw = copy.deepcopy(model.network).eval()(images.float() / 255)
        return decode_boxes(raw), decode_scores(raw)


@pytest.mark.parametrize("shape", [(1, 96, 96), (3, 64, 96), (2, 128, 32), (5, 32, 160)])
def test_a_dynamic_file_computes_what_the_network_does(
    dynamic_onnx: Path, model: LoadedModel, shape: tuple[int, int, int]
) -> None:
    images = pixels(*shape)
    boxes, scores = open_exported(dynamic_onnx)(images)  # type: ignore[misc]
    wanted_boxes, wanted_scores = expected(model, images)
    assert float(wanted_scores.max() - wanted_scores.min()) > 0.1  # not a constant
    torch.testing.assert_close(boxes, wanted_boxes, atol=0.032, rtol=0)
    torch.testing.assert_close(scores, wanted_scores, atol=1e-3, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_static_file_runs_any_number_of_images(static_onnx: Path, model: LoadedModel, count: int) -> None:
    images = pixels(count, 64, SIDE)
    boxes, scores = open_exported(static_onnx)(images)  # type: ignore[misc]
    torch.testing.assert_close(boxes, expected(model, images)[0], atol=0.032, rtol=0)
    torch.testing.assert_close(scores, expected(model, images)[1], atol=1e-3, rtol=0)


def test_a_static_file_takes_its_size_only(static_onnx: Path) -> None:
    with pytest.raises(ConfigError, match=r"takes images of 64x96 only, got 96x96.*dynamic=True"):
        open_exported(static_onnx)(pixels(1, 96, 96))


@pytest.mark.parametrize("kind", ["static_onnx", "dynamic_onnx"])
def test_the_graph_is_plain(kind: str, request: pytest.FixtureRequest) -> None:
    graph = onnx.load(request.getfixturevalue(kind))
    kinds = {node.op_type for node in graph.graph.node}
    assert {node.domain for node in graph.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 17)]
    assert not kinds & {"BatchNormalization", "Attention", "MultiHeadAttention", "ScaledDotProductAttention"}
    assert {"Conv", "Softmax", "MatMul"} <= kinds
    assert len(graph.graph.node) < (700 if kind == "static_onnx" else 1300)
    sizes = [dim.dim_param or dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ([2, 3, 64, 96] if kind == "static_onnx" else ["batch", 3, "height", "width"])


def test_the_file_explains_itself(dynamic_onnx: Path, demo_names: tuple[str, ...]) -> None:
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(dynamic_onnx).metadata_props}
    assert entries["names"] == list(demo_names)
    assert entries["model"] == "yolov12n"
    assert entries["family"] == "yolov12"
    assert (entries["stride"], entries["imgsz"], entries["dynamic"]) == (32, [SIDE, SIDE], True)
    assert (entries["precision"], entries["nms"]) == ("fp32", None)
    assert entries["ullage"]
    assert "x1 y1 x2 y2" in entries["outputs"]


def test_a_network_is_not_changed(demo_names: tuple[str, ...], tmp_path: Path) -> None:
    model = filled("mini", demo_names)
    model.network.train()
    before = copy.deepcopy(model.network.state_dict())
    modules = [type(module) for module in model.network.modules()]
    write(model, tmp_path, format="onnx", imgsz=64, half=True)
    assert [type(module) for module in model.network.modules()] == modules
    assert FusedAttention in modules
    assert model.network.training
    after = model.network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before)
    assert all(parameter.is_leaf for parameter in model.network.parameters())


def test_the_report_says_what_was_measured(dynamic_onnx: Path) -> None:
    report = json.loads(dynamic_onnx.with_name("best.onnx.json").read_text())
    assert [tuple(one["size_hw"]) for one in report["comparisons"]] == [(96, 96), (32, 64)]
    assert all(one["found_network"] > 0 and one["agreement"] > 0.98 for one in report["comparisons"])
    assert report["failures"] == []
    assert report["file_bytes"] == dynamic_onnx.stat().st_size
    assert set(report["libraries"]) == {"ullage", "torch", "onnx", "onnxruntime"}
    assert "Within tolerance" in dynamic_onnx.with_name("best.onnx.md").read_text()
    assert [path.name for path in dynamic_onnx.parent.iterdir() if path.name.startswith(".")] == []


def test_a_file_that_computes_something_else_is_not_kept(
    mini: LoadedModel, demo_names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ExportGraph.forward

    def wrong(self: ExportGraph, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes, scores = real(self, images)
        return boxes + 0.05, scores * 0.9

    monkeypatch.setattr(ExportGraph, "forward", wrong)
    with pytest.raises(
        ExportParityError, match=r"scores differ by .* at 64x64, batch 4 \(allowed 0.001\).*boxes differ"
    ):
        write(mini, tmp_path, format="onnx", imgsz=64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.onnx.json", "best.onnx.md"]
    assert "Beyond tolerance" in (tmp_path / "best.onnx.md").read_text()


@pytest.mark.parametrize("dynamic", [False, True])
def test_suppression_in_the_graph_is_that_of_predict(
    mini: LoadedModel, tmp_path: Path, pictures: list[str], dynamic: bool
) -> None:
    limits = {"conf": 0.5, "iou": 0.4, "max_det": 20}
    file = write(mini, tmp_path, format="onnx", nms=True, dynamic=dynamic, batch=1 if dynamic else 2, **limits)
    asked = {"source": pictures, "imgsz": (SIDE, SIDE), "batch": 3, **limits}
    network = TorchPredictor(mini.network, names=mini.names)
    inside, outside = (list(predict(one, **asked)) for one in (open_exported(file), network))
    assert sum(len(one.boxes) for one in outside) > 10
    for one, other in zip(inside, outside, strict=True):
        assert len(one.boxes) == len(other.boxes)
        torch.testing.assert_close(one.boxes.conf, other.boxes.conf, atol=1e-4, rtol=0)
        assert sorted(one.boxes.cls.tolist()) == sorted(other.boxes.cls.tolist())


def test_a_file_that_suppresses_refuses_other_thresholds(
    mini: LoadedModel, tmp_path: Path, pictures: list[str]
) -> None:
    file = YOLO(write(mini, tmp_path, format="onnx", nms=True, imgsz=64))
    assert len(list(file.predict(pictures[0], conf=0.6))) == 1  # a higher one can be met
    for settings in ({"conf": 0.1}, {"iou": 0.5}, {"max_det": 301}, {"agnostic_nms": True}):
        with pytest.raises(ConfigError, match=r"suppresses by itself with conf=0.25 iou=0.7 max_det=300"):
            file.predict(pictures[0], **settings)


def test_half_precision_is_in_the_file(mini: LoadedModel, tmp_path: Path) -> None:
    file = write(mini, tmp_path, format="onnx", half=True, imgsz=64)
    graph = onnx.load(file).graph
    kernels = [one for one in graph.initializer if len(one.dims) == 4]
    assert {one.data_type for one in kernels} == {onnx.TensorProto.FLOAT16}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert open_exported(file).info.precision == "fp16"
    whole = write(mini, tmp_path / "whole", format="onnx", imgsz=64)
    assert file.stat().st_size < 0.8 * whole.stat().st_size


def test_the_data_set_judges_before_and_after(mini: LoadedModel, tmp_path: Path) -> None:
    config = ExportConfig.load(
        {"imgsz": 64, "data": "demo", "fraction": 0.1, "device": "cpu", "out": tmp_path / "best.onnx", "dynamic": True}
    )
    report = api.export(config, model=mini).report
    assert report.map_before is not None
    assert report.map_after == pytest.approx(report.map_before, abs=1e-4)
    assert "mAP50-95: network" in str(report)


def test_the_opset_can_be_chosen(mini: LoadedModel, tmp_path: Path) -> None:
    file = write(mini, tmp_path, format="onnx", imgsz=64, opset=13)
    assert [entry.version for entry in onnx.load(file).opset_import] == [13]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": "onx"}, "Did you mean 'onnx'"),
        ({"half": True, "int8": True, "format": "openvino"}, "exclude each other"),
        ({"int8": True, "data": "demo"}, "int8 is not for format=onnx, but for openvino and engine"),
        ({"int8": True, "format": "openvino"}, "int8=True needs data="),
        ({"nms": True, "format": "torchscript"}, "nms is not for format=torchscript"),
        ({"conf": 0.5}, "conf is fixed in the file with nms=True only"),
        ({"imgsz": 100}, "multiples of 32"),
        ({"opset": 30}, "at most 20"),
        ({"workspace": 4}, "workspace is not for format=onnx"),
        ({"out": "best.engine"}, "must end in '.onnx'"),
        ({"simplfy": True}, "knows no setting 'simplfy'"),
    ],
)
def test_contradictions_are_told_before_any_work(mini: LoadedModel, settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        api.export(ExportConfig.load({"device": "cpu", **settings}), model=mini)


def test_data_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the model tells 3 classes apart, the data set has 10"):
        write(filled("mini", ("a", "b", "c")), tmp_path, format="onnx", data="demo")


def test_the_size_of_the_training_is_the_default(mini: LoadedModel, tmp_path: Path) -> None:
    trained = LoadedModel(mini.network, mini.model_name, mini.names, None, {"meta": {"config": {"imgsz": [64, 96]}}})
    file = write(trained, tmp_path, format="onnx", imgsz=None)
    assert open_exported(file).info.size_hw == (96, 96)
