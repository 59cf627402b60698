"""TensorRT engines on an NVIDIA GPU, fed through PyTorch's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ullage.errors import BackendUnavailable, ConfigError, WeightsError
from ullage.runtime.engine_file import read_engine_file
from ullage.runtime.extras import import_extra
from ullage.runtime.file_info import INPUT_NAME, FileInfo

Array = np.ndarray[Any, Any]


class TensorRtSession:
    """A TensorRT engine, deserialised on a GPU.

    Args:
        path: The ``.engine`` file.
        device: ``cuda:N``; None is the first GPU.
        threads: Not used: the GPU computes.

    Raises:
        ConfigError: Another device.
        BackendUnavailable: There is no GPU or no TensorRT here, or the engine is for another of them.
        WeightsError: The file is damaged, or was not exported by Ullage.
    """

    def __init__(self, path: Path, *, device: str | None = None, threads: int | None = None) -> None:
        self._info, engine = read_engine_file(path)
        self._device = torch.device(device or "cuda:0")
        if self._device.type != "cuda":
            raise ConfigError(f"device={device!r}: TensorRT engines run on NVIDIA GPUs only; leave device out")
        trt = import_tensorrt(f"running '{path.name}'")
        with torch.cuda.device(self._device):
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BackendUnavailable(
                f"'{path}' is for another GPU or TensorRT than this one ({trt.__version__}): export it again here"
            )
        found = {self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)}
        if found != {INPUT_NAME, *self._info.output_names}:
            raise WeightsError(f"'{path}' is not what its metadata say (it has {', '.join(sorted(found))})")
        self._context = self._engine.create_execution_context()

    @property
    def info(self) -> FileInfo:
        """What the file says of itself."""
        return self._info

    def run(self, images_B3HW: Array) -> list[Array]:
        """Run float32 images in [0, 1], no more at once than the engine takes; return the file's outputs.

        Raises:
            ConfigError: The images are larger than the engine's profile allows.
        """
        most = self._info.batch
        parts = [self._run(images_B3HW[start : start + most]) for start in range(0, len(images_B3HW), most)]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, images_B3HW: Array) -> list[Array]:
        images = torch.from_numpy(images_B3HW).to(self._device)
        if not self._context.set_input_shape(INPUT_NAME, tuple(images.shape)):
            least, _, most = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
            raise ConfigError(f"the engine takes {tuple(least)} to {tuple(most)} images, got {tuple(images.shape)}")
        outputs = [
            torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=torch.float32, device=self._device)
            for name in self._info.output_names
        ]
        for name, tensor in zip((INPUT_NAME, *self._info.output_names), (images, *outputs), strict=True):
            self._context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream(self._device)
        self._context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return [output.cpu().numpy() for output in outputs]


def import_tensorrt(needed_for: str) -> Any:
    """Import TensorRT where there is a GPU for it.

    Raises:
        BackendUnavailable: One of the two is missing.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable(f"{needed_for} needs an NVIDIA GPU, and PyTorch finds none here; use format=onnx")
    return import_extra("tensorrt", needed_for=needed_for)
