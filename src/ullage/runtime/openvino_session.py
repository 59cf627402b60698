"""OpenVINO files (``.xml`` with its ``.bin``) through OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ullage.errors import ConfigError, WeightsError
from ullage.runtime.extras import import_extra
from ullage.runtime.file_info import INPUT_NAME, FileInfo

Array = np.ndarray[Any, Any]
METADATA_KEY = "ullage"  # rt_info: one section, the entries below it


class OpenVinoSession:
    """An OpenVINO file, compiled for the CPU.

    Args:
        path: The ``.xml`` file.
        device: ``cpu``; None is the same.
        threads: CPU threads; None takes as many as PyTorch uses.

    Raises:
        BackendUnavailable: OpenVINO is not installed.
        ConfigError: Another device.
        WeightsError: The file is damaged, or was not exported by Ullage.
    """

    def __init__(self, path: Path, *, device: str | None = None, threads: int | None = None) -> None:
        ov = import_extra("openvino", needed_for=f"running '{path.name}'")
        if device not in (None, "cpu"):
            raise ConfigError(f"device={device!r}: OpenVINO files run on the CPU here; leave device out")
        if not path.with_suffix(".bin").is_file():
            raise WeightsError(f"'{path}' lacks its weights, '{path.with_suffix('.bin').name}': keep the two together")
        core = ov.Core()
        try:
            model = core.read_model(path)
        except RuntimeError as error:
            raise WeightsError(f"OpenVINO cannot load '{path}': {' '.join(str(error).split())[:300]}") from None
        found = f"takes {', '.join(map(str, model.inputs))}; returns {', '.join(map(str, model.outputs))}"
        self._info = FileInfo.from_metadata(_entries(model), path=path, found=found)
        self._outputs = _named_outputs(model, self._info)
        if self._outputs is None or INPUT_NAME not in model.inputs[0].get_names():
            raise WeightsError(f"'{path}' is not what its metadata say ({found}): it was changed; export it again")
        # Left to itself, OpenVINO computes in bf16 where the processor can, which is not what the file was proven in.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or torch.get_num_threads()}
        self._compiled = core.compile_model(model, "CPU", settings)

    @property
    def info(self) -> FileInfo:
        """What the file says of itself."""
        return self._info

    def run(self, images_B3HW: Array) -> list[Array]:
        """Run float32 images in [0, 1]; return the file's outputs."""
        results = self._compiled({INPUT_NAME: images_B3HW})
        return [np.array(results[index]) for index in self._outputs or ()]  # a copy: the next run writes there


def _entries(model: Any) -> dict[str, str]:
    if not model.has_rt_info([METADATA_KEY]):
        return {}
    section = model.get_rt_info([METADATA_KEY])
    values = section.value if hasattr(section, "value") else section
    return {str(key): str(getattr(value, "value", value)) for key, value in dict(values).items()}


def _named_outputs(model: Any, info: FileInfo) -> list[int] | None:
    names = [output.get_names() for output in model.outputs]
    places = [[index for index, known in enumerate(names) if name in known] for name in info.output_names]
    return [place[0] for place in places] if all(places) else None
