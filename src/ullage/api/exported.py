"""Exported files where a model is named: they predict and are judged, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ullage.api.models import LoadedModel, load_model
from ullage.errors import ConfigError
from ullage.runtime.file_info import FileInfo
from ullage.runtime.file_predictor import FilePredictor
from ullage.runtime.open_file import is_exported, open_exported
from ullage.train.precision import choose_device


@dataclass(frozen=True)
class ExportedModel:
    """A file in another runtime.

    Attributes:
        path: The file, or the folder of an OpenVINO export.
        predictor: The file, loaded where its runtime likes to run it.
    """

    path: Path
    predictor: FilePredictor

    @property
    def info(self) -> FileInfo:
        """What the file says of itself."""
        return self.predictor.info

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by id."""
        return self.info.names

    def on(self, device: str | None, *, half: bool = False) -> FilePredictor:
        """Return a predictor on the device that the user named.

        Raises:
            ConfigError: ``half`` of a file whose precision is another, or not a device.
            BackendUnavailable: The device is not on this machine, or the runtime cannot use it.
        """
        if half and self.info.precision == "fp32":
            raise ConfigError(
                f"half=True was asked for, but '{self.path}' computes in fp32: leave it out, or export with half=True"
            )
        return self.predictor if device is None else open_exported(self.path, device=str(choose_device(device)))


def open_model(model: str | Path) -> LoadedModel | ExportedModel:
    """Load whatever the user names: a network, a weights file or an exported file; see ``load_model``."""
    if is_exported(model):
        path = Path(model).expanduser()
        return ExportedModel(path, open_exported(path))
    return load_model(model)


def device_of(device: str | None, model: LoadedModel | ExportedModel) -> torch.device:
    """Say where images must be for a model: files take them on the host."""
    return torch.device("cpu") if isinstance(model, ExportedModel) else choose_device(device)
