"""The table of formats: ending, writer, libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ullage.config import ExportSettings
from ullage.export.graph import ExportGraph
from ullage.export.onnx_file import OPSET, write_onnx
from ullage.export.openvino_file import write_openvino
from ullage.export.tensorrt_file import write_engine
from ullage.export.torchscript_file import write_torchscript
from ullage.runtime.file_info import FileInfo
from ullage.runtime.open_file import OPENVINO_FOLDER

Writer = Callable[["Order"], None]


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Attributes:
        network: The network; it is not changed.
        info: What the file will say of itself.
        path: The file or folder to make.
        settings: As the user gave them.
        calibration: Makes float32 batches in [0, 1] of real images, for int8.
    """

    network: nn.Module
    info: FileInfo
    path: Path
    settings: ExportSettings
    calibration: Callable[[], Iterable[np.ndarray[Any, Any]]]

    @property
    def opset(self) -> int:
        """Version of the ONNX operators."""
        return self.settings.opset or OPSET


@dataclass(frozen=True)
class Format:
    """How one format is written.

    Attributes:
        ending: What the file's name ends in, after the stem of the weights.
        write: Writes the file; not proven yet.
        libraries: Packages whose versions the report states.
    """

    ending: str
    write: Writer
    libraries: tuple[str, ...]


def _onnx(order: Order) -> None:
    graph = ExportGraph(order.network, half=order.settings.half)
    write_onnx(graph, order.info, order.path, opset=order.opset)


def _openvino(order: Order) -> None:
    # OpenVINO halves the weights itself: a graph in float16 would run through conversions on CPUs.
    calibration = order.calibration() if order.settings.int8 else None
    write_openvino(ExportGraph(order.network), order.info, order.path, opset=order.opset, calibration=calibration)


def _torchscript(order: Order) -> None:
    write_torchscript(ExportGraph(order.network, half=order.settings.half), order.info, order.path)


def _engine(order: Order) -> None:
    write_engine(
        ExportGraph(order.network),
        order.info,
        order.path,
        opset=order.opset,
        workspace_gib=order.settings.workspace,
        calibration=order.calibration() if order.settings.int8 else None,
    )


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", _onnx, ("onnx", "onnxruntime")),
    "openvino": Format(OPENVINO_FOLDER, _openvino, ("onnx", "onnxruntime", "openvino")),
    "torchscript": Format(".torchscript", _torchscript, ()),
    "engine": Format(".engine", _engine, ("onnx", "onnxruntime", "tensorrt")),
}
