"""TensorRT engines: everything up to the builder is plain data; the builder itself is one small function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ullage.errors import BackendUnavailable
from ullage.export.graph import ExportGraph
from ullage.export.onnx_file import write_onnx
from ullage.export.tensorrt_plan import EnginePlan, plan_engine
from ullage.runtime.engine_file import write_engine_file
from ullage.runtime.file_info import INPUT_NAME, FileInfo
from ullage.runtime.tensorrt_session import import_tensorrt

Array = np.ndarray[Any, Any]


def write_engine(
    graph: ExportGraph,
    info: FileInfo,
    path: Path,
    *,
    opset: int,
    workspace_gib: float | None,
    calibration: Iterable[Array] | None = None,
) -> None:
    """Write a network as a TensorRT engine for the GPU of this machine.

    Args:
        graph: The network, made ready, in float32: the builder chooses where to use less.
        info: Size, batch, precision, thresholds of suppression.
        path: The file; its folder must exist.
        opset: Version of the ONNX operators on the way.
        workspace_gib: Scratch memory of the builder.
        calibration: Float32 batches in [0, 1], for int8.

    Raises:
        BackendUnavailable: There is no GPU or no TensorRT here, or it cannot build the network.
        StorageError: The file cannot be written.
    """
    trt = import_tensorrt("exporting to TensorRT")
    with TemporaryDirectory(prefix="ullage-") as folder:
        onnx_path = Path(folder) / "network.onnx"
        write_onnx(graph, info, onnx_path, opset=opset)
        content = onnx_path.read_bytes()
    plan = plan_engine(info, workspace_gib=workspace_gib, network_bytes=content)
    write_engine_file(path, info, build_engine(trt, content, plan, calibration))


def build_engine(trt: Any, network_bytes: bytes, plan: EnginePlan, calibration: Iterable[Array] | None) -> bytes:
    """Let TensorRT build an engine as planned.

    Raises:
        BackendUnavailable: It cannot read the network, or cannot build it on this GPU.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    # From 10 on every network has an explicit batch; before, it had to be asked for.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if int(trt.__version__.split(".")[0]) < 10 else 0
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(network_bytes):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise BackendUnavailable(f"TensorRT {trt.__version__} cannot read the network: {reasons[:300]}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_bytes)
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT_NAME, plan.profile.smallest, plan.profile.best, plan.profile.largest)
    config.add_optimization_profile(profile)
    if plan.precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    if plan.precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
        config.set_flag(trt.BuilderFlag.FP16)  # for layers that 8 bits do not suit
        config.int8_calibrator = _calibrator(trt, plan, calibration or ())
    known = plan.timing_cache.read_bytes() if plan.timing_cache.is_file() else b""
    cache = config.create_timing_cache(known)
    config.set_timing_cache(cache, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BackendUnavailable("TensorRT cannot build this network on this GPU; try half=False, or another workspace")
    plan.timing_cache.parent.mkdir(parents=True, exist_ok=True)
    plan.timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


class CalibrationFeed:
    """Hands calibration batches out one by one, all of the planned shape, on a device.

    Args:
        plan: Whose ``calibration_shape`` the batches must have.
        batches: Float32 in [0, 1].
        device: Where the builder reads them.
    """

    def __init__(self, plan: EnginePlan, batches: Iterable[Array], device: torch.device | str) -> None:
        self._plan, self._device = plan, torch.device(device)
        self._batches: Iterator[Array] = iter(batches)
        self._held: torch.Tensor | None = None  # the builder reads it until it asks for the next

    @property
    def batch_size(self) -> int:
        """Images a batch."""
        assert self._plan.calibration_shape is not None
        return self._plan.calibration_shape[0]

    def next_address(self) -> int | None:
        """Return where the next batch lies; None after the last."""
        batch = next(self._batches, None)
        if batch is None:
            self._held = None
            return None
        if batch.shape != self._plan.calibration_shape:
            raise ValueError(f"a calibration batch is {batch.shape}, the plan says {self._plan.calibration_shape}")
        self._held = torch.from_numpy(batch).to(self._device)
        return self._held.data_ptr()

    def read_cache(self) -> bytes | None:
        """Return what an earlier calibration of this very network found."""
        path = self._plan.calibration_cache
        return path.read_bytes() if path is not None and path.is_file() else None

    def write_cache(self, content: bytes) -> None:
        """Keep what calibration found."""
        if self._plan.calibration_cache is not None:
            self._plan.calibration_cache.parent.mkdir(parents=True, exist_ok=True)
            self._plan.calibration_cache.write_bytes(content)


def _calibrator(trt: Any, plan: EnginePlan, batches: Iterable[Array]) -> Any:
    """Wrap a feed in the class that TensorRT expects, which exists only where TensorRT does."""
    feed = CalibrationFeed(plan, batches, "cuda")

    class Calibrator(trt.IInt8MinMaxCalibrator):
        def get_batch_size(self) -> int:
            return feed.batch_size

        def get_batch(self, names: list[str]) -> list[int] | None:
            address = feed.next_address()
            return None if address is None else [address]

        def read_calibration_cache(self) -> bytes | None:
            return feed.read_cache()

        def write_calibration_cache(self, cache: Any) -> None:
            feed.write_cache(bytes(cache))

    return Calibrator()
