"""What TensorRT's builder is told, as plain data: made, checked and tested on machines without it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ullage.errors import ConfigError
from ullage.runtime.file_info import FileInfo, FilePrecision

GIB = 1024**3
DEFAULT_WORKSPACE_GIB = 4.0


@dataclass(frozen=True)
class Profile:
    """Shapes (batch, 3, height, width) that an engine takes: the smallest, the one it is tuned for, the largest."""

    smallest: tuple[int, int, int, int]
    best: tuple[int, int, int, int]
    largest: tuple[int, int, int, int]


@dataclass(frozen=True)
class EnginePlan:
    """How an engine is built.

    Attributes:
        profile: Shapes of the input.
        precision: Fastest products that the builder may choose; it keeps float32 where that is faster.
        workspace_bytes: Scratch memory for its trials and the engine.
        calibration_shape: Shape of the batches of images for int8; None otherwise.
        calibration_cache: File that keeps what calibration found, so that a second build need not repeat it.
        timing_cache: File that keeps how long each kernel took on this kind of GPU.
    """

    profile: Profile
    precision: FilePrecision
    workspace_bytes: int
    calibration_shape: tuple[int, int, int, int] | None
    calibration_cache: Path | None
    timing_cache: Path

    def describe(self) -> dict[str, object]:
        """Return it as plain data."""
        calibration = None if self.calibration_cache is None else str(self.calibration_cache)
        return {**asdict(self), "calibration_cache": calibration, "timing_cache": str(self.timing_cache)}


def plan_engine(info: FileInfo, *, workspace_gib: float | None, network_bytes: bytes) -> EnginePlan:
    """Choose profile, memory and caches.

    A dynamic engine takes one image of one cell up to the batch and, on each side, the size that it is exported at: a
    larger profile would cost memory that the user did not ask for. It is tuned for the largest.

    Args:
        info: Size, batch, precision.
        workspace_gib: Scratch memory; None is 4 GiB, of which the builder takes what it needs.
        network_bytes: The ONNX file, whose digest names the calibration cache.

    Raises:
        ConfigError: The size is not a multiple of the stride.
    """
    height, width = info.size_hw
    if height % info.stride or width % info.stride:
        raise ConfigError(f"imgsz={height},{width}: the sides of an engine must be multiples of {info.stride}")
    largest = (info.batch, 3, height, width)
    smallest = (1, 3, info.stride, info.stride) if info.dynamic else largest
    caches = cache_folder()
    digest = hashlib.sha256(network_bytes).hexdigest()[:16]
    int8 = info.precision == "int8"
    return EnginePlan(
        profile=Profile(smallest, largest, largest),
        precision=info.precision,
        workspace_bytes=int((workspace_gib or DEFAULT_WORKSPACE_GIB) * GIB),
        calibration_shape=largest if int8 else None,
        calibration_cache=caches / f"calibration-{digest}.bin" if int8 else None,
        timing_cache=caches / "timing.bin",
    )


def cache_folder() -> Path:
    """Return the folder of TensorRT's caches, which are the user's, not a run's; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ullage" / "tensorrt"
