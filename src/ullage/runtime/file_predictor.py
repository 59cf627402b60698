"""Exported files as predictors: one class for every runtime; a runtime only has to run arrays.

Shape letters: B batch, H W the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ullage.errors import ConfigError, WeightsError
from ullage.runtime.file_info import FileInfo
from ullage.runtime.outputs import DecodedDetections, SuppressedDetections, Suppression

Array = np.ndarray[Any, Any]


class Session(Protocol):
    """A file that another runtime has loaded."""

    @property
    def info(self) -> FileInfo:
        """What the file says of itself."""
        ...

    def run(self, images_B3HW: Array) -> list[Array]:
        """Run float32 images in [0, 1]; return the file's outputs in the order that ``FileInfo`` names them."""
        ...


class FilePredictor:
    """A ``Predictor`` that runs an exported file.

    Args:
        session: The loaded file.
        path: Where it came from, for messages.
    """

    def __init__(self, session: Session, *, path: Path) -> None:
        self._session, self._path = session, path
        self._names = dict(enumerate(session.info.names))

    @property
    def info(self) -> FileInfo:
        """What the file says of itself."""
        return self._session.info

    @property
    def names(self) -> Mapping[int, str]:
        """Class name by id."""
        return self._names

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return self.info.stride

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size that the file was exported at."""
        return self.info.size_hw

    @property
    def fixed_size(self) -> bool:
        """Whether the file takes that size only."""
        return not self.info.dynamic

    @property
    def suppression(self) -> Suppression | None:
        """Thresholds inside the file; None when it returns every anchor."""
        return self.info.suppression

    def __call__(self, images_B3HW: torch.Tensor) -> DecodedDetections | SuppressedDetections:
        """Run uint8 RGB images; a file of a fixed batch runs as often as needed, its last pass filled up with grey.

        Raises:
            ConfigError: The file takes another size.
            WeightsError: The file returns something else than its metadata say.
        """
        info = self.info
        count, _, height, width = images_B3HW.shape
        if not info.dynamic and (height, width) != info.size_hw:
            raise ConfigError(
                f"'{self._path}' takes images of {info.size_hw[0]}x{info.size_hw[1]} only, got {height}x{width}: "
                f"use imgsz={info.size_hw[0]},{info.size_hw[1]}, or export it with dynamic=True"
            )
        images = torch.empty(images_B3HW.shape, dtype=torch.float32).copy_(images_B3HW).div_(255).numpy()
        if info.dynamic or count == info.batch:
            outputs = self._session.run(images)
        else:
            passes = [self._session.run(part) for part in _parts(images, info.batch)]
            outputs = [np.concatenate(parts)[:count] for parts in zip(*passes, strict=True)]
        return self._checked(outputs, count)

    def _checked(self, outputs: list[Array], count: int) -> DecodedDetections | SuppressedDetections:
        shapes, classes = [output.shape for output in outputs], len(self._names)
        if self.info.suppression is not None:
            fits = len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][::2] == (count, 6)
        else:
            anchors = shapes[0][1] if len(shapes[0]) > 1 else -1
            fits = shapes == [(count, anchors, 4), (count, anchors, classes)]
        if not fits:
            raise WeightsError(
                f"'{self._path}' returned arrays of {', '.join(map(str, shapes))} for {count} images and {classes} "
                f"classes, not its {' and '.join(self.info.output_names)}: the file was changed; export it again"
            )
        tensors = [torch.from_numpy(np.ascontiguousarray(output)) for output in outputs]
        return SuppressedDetections(*tensors) if self.info.suppression is not None else DecodedDetections(*tensors)


def _parts(images_B3HW: Array, batch: int) -> list[Array]:
    """Cut images into batches of exactly that many."""
    missing = -len(images_B3HW) % batch
    if missing:
        filler = np.full((missing, *images_B3HW.shape[1:]), 0.5, np.float32)
        images_B3HW = np.concatenate((images_B3HW, filler))
    return np.split(images_B3HW, len(images_B3HW) // batch)
