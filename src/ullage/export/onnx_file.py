"""ONNX files: traced, suppression appended, simplified, checked, with metadata."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ullage.errors import StorageError
from ullage.export.graph import ExportGraph
from ullage.export.suppression import append_suppression
from ullage.runtime.extras import import_extra
from ullage.runtime.file_info import DECODED_NAMES, INPUT_NAME, FileInfo

# 17 is what onnxruntime >= 1.12, onnxruntime-web, OpenVINO >= 2022.3 and TensorRT >= 8.6 read alike.
OPSET = 17
OPSETS = (13, 20)  # older ones lack forms used here, and the tracer writes no newer one
_OPEN = {0: "batch", 1: "anchors"}


def write_onnx(graph: ExportGraph, info: FileInfo, path: Path, *, opset: int = OPSET) -> None:
    """Write a network as an ONNX file.

    Args:
        graph: The network, made ready.
        info: Size, batch, whether they are open, thresholds of suppression.
        path: The file; its folder must exist.
        opset: Version of the operators.

    Raises:
        BackendUnavailable: onnx or onnxruntime is not installed.
        StorageError: The file cannot be written.
    """
    onnx = import_extra("onnx", needed_for="exporting to ONNX")
    with TemporaryDirectory(prefix="ullage-") as folder:
        traced = Path(folder) / "traced.onnx"
        _trace(graph, info, traced, opset)
        model = onnx.load(traced)
        if info.suppression is not None:
            batch = None if info.dynamic else info.batch
            append_suppression(model, info.suppression, classes=len(info.names), batch=batch)
            onnx.save(model, traced)
        model = _simplified(onnx, traced)
    model.producer_name, model.producer_version = "ullage", info.version
    model.doc_string = f"{info.model_name}, {len(info.names)} classes"
    onnx.helper.set_model_props(model, info.to_metadata())
    onnx.checker.check_model(model)
    try:
        onnx.save(model, path)
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from None


def _trace(graph: ExportGraph, info: FileInfo, path: Path, opset: int) -> None:
    """Trace with TorchScript, not with torch.export.

    Measured on torch 2.14 with yolov12n of open batch and size: the tracer takes 2 to 6 s and its graph is right for
    every size; torch.export takes 33 s, needs one library more, and its graph mixed up height and width.
    """
    height, width = info.size_hw
    example = torch.zeros(info.batch, 3, height, width)
    axes = {INPUT_NAME: {0: "batch", 2: "height", 3: "width"}, **dict.fromkeys(DECODED_NAMES, _OPEN)}
    with warnings.catch_warnings(), torch.no_grad():
        # Of the tracer's age, and of sizes compared in Python: what these decide holds for all multiples of 32.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        torch.onnx.export(
            graph,
            (example,),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=list(DECODED_NAMES),
            dynamic_axes=axes if info.dynamic else None,
        )


def _simplified(onnx: Any, path: Path) -> Any:
    """Let onnxruntime fold constants and drop what has no effect, in standard operators only.

    Measured on yolov12n: of 2,144 nodes 538 stay in .2 s; onnxslim, which is made for this, leaves 622 in 2.3 s, and
    the files run equally fast. onnxruntime is needed for the proof anyway.
    """
    ort = import_extra("onnxruntime", needed_for="exporting to ONNX")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    folded = path.with_name("folded.onnx")
    options.optimized_model_filepath = str(folded)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = onnx.load(folded)
    used = {node.domain for node in model.graph.node}  # onnxruntime declares all of its own domains
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model
