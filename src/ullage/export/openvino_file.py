"""OpenVINO files: read from the ONNX graph; weights in float32 or float16, or quantised to 8 bits by NNCF."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ullage.errors import StorageError
from ullage.export.graph import ExportGraph
from ullage.export.onnx_file import write_onnx
from ullage.runtime.extras import import_extra
from ullage.runtime.file_info import FileInfo
from ullage.runtime.openvino_session import METADATA_KEY

CALIBRATION_IMAGES = 300
_OUTSIDE_THE_NETWORK = r"^(?!.*/network/).*"  # decoding and suppression: pixels and probabilities, not features


def write_openvino(
    graph: ExportGraph,
    info: FileInfo,
    folder: Path,
    *,
    opset: int,
    calibration: Iterable[np.ndarray[Any, Any]] | None = None,
) -> None:
    """Write a network as a folder with an OpenVINO ``.xml`` and ``.bin``.

    Args:
        graph: The network, made ready; in float32 whatever the file's precision.
        info: Size, batch, precision, thresholds of suppression.
        folder: The folder to make.
        opset: Version of the ONNX operators on the way.
        calibration: Float32 batches in [0, 1], for int8.

    Raises:
        BackendUnavailable: OpenVINO, or NNCF for int8, is not installed.
        StorageError: The folder cannot be written.
    """
    ov = import_extra("openvino", needed_for="exporting to OpenVINO")
    with TemporaryDirectory(prefix="ullage-") as place:
        onnx_path = Path(place) / "network.onnx"
        write_onnx(graph, info, onnx_path, opset=opset)
        model = ov.Core().read_model(onnx_path)
        if info.precision == "int8":
            model = _quantised(model, calibration or ())
        for key, value in info.to_metadata().items():
            model.set_rt_info(value, [METADATA_KEY, key])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ov.save_model(model, folder / f"{info.model_name}.xml", compress_to_fp16=info.precision == "fp16")
        except (OSError, RuntimeError) as error:
            raise StorageError(f"cannot write '{folder}': {' '.join(str(error).split())[:200]}") from None


def _quantised(model: Any, calibration: Iterable[np.ndarray[Any, Any]]) -> Any:
    nncf = _import_nncf()
    batches = list(calibration)
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,  # activations on both sides of zero, as SiLU's are, asymmetrically
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(patterns=[_OUTSIDE_THE_NETWORK], validate=False),
    )


def _import_nncf() -> Any:
    """Import NNCF without its reports to its makers, which it sends unasked unless this is set while it is imported."""
    if "nncf" in sys.modules:
        return import_extra("nncf", needed_for="int8=True")
    before = os.environ.get("NNCF_CI")
    os.environ["NNCF_CI"] = "1"
    try:
        return import_extra("nncf", needed_for="int8=True")
    finally:
        if before is None:
            del os.environ["NNCF_CI"]
        else:
            os.environ["NNCF_CI"] = before
