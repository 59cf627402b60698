"""ONNX files through onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ullage.errors import BackendUnavailable, ConfigError, WeightsError
from ullage.runtime.extras import import_extra
from ullage.runtime.file_info import INPUT_NAME, FileInfo

Array = np.ndarray[Any, Any]


class OnnxSession:
    """An ONNX file, loaded by onnxruntime.

    Args:
        path: The file.
        device: ``cpu`` or ``cuda:N``; None takes a GPU when both onnxruntime and PyTorch have one.
        threads: CPU threads; None takes as many as PyTorch uses.

    Raises:
        BackendUnavailable: onnxruntime, or its CUDA part, is not installed.
        WeightsError: The file is damaged, or was not exported by Ullage.
    """

    def __init__(self, path: Path, *, device: str | None = None, threads: int | None = None) -> None:
        ort = import_extra("onnxruntime", needed_for=f"running '{path.name}'")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # what it warns of is said in errors here
        provider = _provider(ort, device)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=[provider])
        except _errors(ort) as error:
            raise WeightsError(f"onnxruntime cannot load '{path}': {' '.join(str(error).split())[:300]}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = "; ".join(
            f"{word} {', '.join(f'{one.name} {one.shape}' for one in part)}"
            for word, part in (("takes", inputs), ("returns", outputs))
        )
        entries = dict(self._session.get_modelmeta().custom_metadata_map)
        self._info = FileInfo.from_metadata(entries, path=path, found=found)
        if [one.name for one in inputs] != [INPUT_NAME] or not set(self._info.output_names) <= {
            o.name for o in outputs
        }:
            raise WeightsError(
                f"'{path}' is not what its metadata say ({found}): the file was changed; export it again"
            )

    @property
    def info(self) -> FileInfo:
        """What the file says of itself."""
        return self._info

    def run(self, images_B3HW: Array) -> list[Array]:
        """Run float32 images in [0, 1]; return the file's outputs."""
        return self._session.run(list(self._info.output_names), {INPUT_NAME: images_B3HW})


def _errors(ort: Any) -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: classes that have no base of their own but Exception."""
    members = vars(ort.capi.onnxruntime_pybind11_state).values()
    return tuple(member for member in members if isinstance(member, type) and issubclass(member, Exception))


def _provider(ort: Any, device: str | None) -> Any:
    if device is None:
        has_gpu = "CUDAExecutionProvider" in ort.get_available_providers() and torch.cuda.is_available()
        device = "cuda:0" if has_gpu else "cpu"
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return "CPUExecutionProvider"
    if kind != "cuda":
        raise ConfigError(f"device={device!r}: onnxruntime runs on 'cpu' and 'cuda:N'")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise BackendUnavailable(
            f"device='{device}' was asked for, this onnxruntime has only {', '.join(ort.get_available_providers())}: "
            "pip install onnxruntime-gpu, or use device=cpu"
        )
    return ("CUDAExecutionProvider", {"device_id": int(index or 0)})
