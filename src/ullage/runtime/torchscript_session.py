"""TorchScript files through PyTorch, without the code that made them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ullage.errors import BackendUnavailable, ConfigError, WeightsError
from ullage.runtime.file_info import FileInfo

Array = np.ndarray[Any, Any]
METADATA_FILE = "ullage.json"  # beside the code in the archive


class TorchScriptSession:
    """A TorchScript file, loaded by PyTorch.

    Args:
        path: The file.
        device: ``cpu`` or ``cuda:N``; None takes a GPU when there is one.
        threads: As many as PyTorch uses, whatever is asked; they are PyTorch's own.

    Raises:
        ConfigError: Another device, or a number of threads.
        BackendUnavailable: The device is not on this machine.
        WeightsError: The file is damaged, or was not exported by Ullage.
    """

    def __init__(self, path: Path, *, device: str | None = None, threads: int | None = None) -> None:
        if threads is not None and threads != torch.get_num_threads():
            raise ConfigError(f"threads={threads}: TorchScript uses PyTorch's; call torch.set_num_threads")
        if device is None:
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        if self._device.type == "cuda" and (self._device.index or 0) >= torch.cuda.device_count():
            raise BackendUnavailable(
                f"device='{device}' was asked for, there are {torch.cuda.device_count()} GPUs here"
            )
        extra = {METADATA_FILE: ""}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
                self._module = torch.jit.load(str(path), map_location=self._device, _extra_files=extra)
            entries = json.loads(extra[METADATA_FILE] or "{}")
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"PyTorch cannot load '{path}': {' '.join(str(error).split())[:300]}") from None
        self._info = FileInfo.from_metadata(entries, path=path, found="a TorchScript archive")

    @property
    def info(self) -> FileInfo:
        """What the file says of itself."""
        return self._info

    def run(self, images_B3HW: Array) -> list[Array]:
        """Run float32 images in [0, 1]; return the file's outputs."""
        with torch.inference_mode():
            outputs = self._module(torch.from_numpy(images_B3HW).to(self._device))
        return [output.cpu().numpy() for output in outputs]
