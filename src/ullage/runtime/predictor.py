"""Images in, results out: PyTorch's predictor, and ``predict`` for every predictor.

Shape letters: B batch, H, W the network's input.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ullage.errors import BackendUnavailable, ConfigError
from ullage.geometry.detections import Detections
from ullage.nn.fold import fold_batchnorm
from ullage.nn.outputs import RawDetections
from ullage.runtime.cpu_units import fuse_units
from ullage.runtime.host_allocator import keep_host_memory, release_host_memory
from ullage.runtime.live import LiveResults
from ullage.runtime.outputs import Suppression
from ullage.runtime.passes import Pass, SourceFeed, run_passes
from ullage.runtime.postprocess import Outputs, detections_from_outputs
from ullage.runtime.protocol import Predictor
from ullage.runtime.results import Results
from ullage.runtime.sources import LiveSource, Source, open_source
from ullage.runtime.stream_hub import StreamHub, StreamSettings

Precision = Literal["fp32", "fp16", "bf16"]
DEFAULT_SIDE = 640
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchPredictor:
    """A PyTorch network, made ready for inference on a copy of it.

    Args:
        network: Maps float images (B, 3, H, W) in [0, 1] to ``RawDetections``; it is not changed.
        names: Class names by id, as many as the network has classes.
        device: Where to run.
        precision: Of weights and activations; boxes and scores are always decoded in float32. See ``precision_for``.
        channels_last: Memory layout that convolutions prefer on most devices.
        fold: Fold BatchNorm into the convolutions.
        stride: Sides of the input must be multiples of this.

    Raises:
        BackendUnavailable: The device is not on this machine, or does not compute in that precision.
        ConfigError: The device's name is not one.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        names: Sequence[str] | Mapping[int, str],
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        channels_last: bool = True,
        fold: bool = True,
        stride: int = 32,
    ) -> None:
        self._device = _checked_device(device)
        if precision == "fp16" and self._device.type == "cpu":
            raise BackendUnavailable("CPUs do not compute in fp16 at a useful speed: use bf16 or fp32, or a GPU")
        self._dtype = _DTYPES[precision]
        self._names = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        self._stride = stride
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        ready = fold_batchnorm(network) if fold else copy.deepcopy(network).eval()
        if self._device.type == "cpu":
            if precision == "fp32":  # in bf16 the operator needs processors that the others do not
                fuse_units(ready)
            keep_host_memory()
            weakref.finalize(self, release_host_memory)
        self._network = ready.to(self._device, self._dtype, memory_format=self._layout)  # pyright: ignore[reportCallIssue]

    @property
    def names(self) -> Mapping[int, str]:
        """Class name by id."""
        return self._names

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        return self._stride

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size of the input when the user names none."""
        return DEFAULT_SIDE, DEFAULT_SIDE

    @property
    def fixed_size(self) -> bool:
        """Whether that is the only size: a network takes every multiple of its stride."""
        return False

    @property
    def suppression(self) -> Suppression | None:
        """Thresholds inside: none, every anchor is returned."""
        return None

    def __call__(self, images_B3HW: torch.Tensor) -> RawDetections:
        """Run uint8 RGB images on the host through the network; returns when the result is there.

        Raises:
            ConfigError: The network has another number of classes than there are names.
        """
        with torch.inference_mode():
            pixels = images_B3HW.to(self._device, non_blocking=True)
            images = pixels.to(self._dtype, memory_format=self._layout).div_(255)
            raw: RawDetections = self._network(images)
        if raw.logits_BAK.shape[-1] != len(self._names):
            raise ConfigError(
                f"the network tells {raw.logits_BAK.shape[-1]} classes apart, but {len(self._names)} names were given"
            )
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return raw


def precision_for(device: torch.device | str, *, half: bool) -> Precision:
    """Say which precision ``half`` means: fp16 on GPUs, bf16 on CPUs (fp16 is slow there), fp32 without it."""
    if not half:
        return "fp32"
    return "bf16" if _checked_device(device).type == "cpu" else "fp16"


def predict(
    predictor: Predictor | Sequence[Predictor],
    *,
    source: Any,
    imgsz: int | tuple[int, int] | None = None,
    conf: float = 0.25,
    iou: float = 0.7,
    max_det: int = 300,
    classes: Sequence[int] | None = None,
    class_agnostic: bool = False,
    batch: int = 1,
    streams: StreamSettings = StreamSettings(),  # noqa: B008  (frozen)
) -> Iterator[Results]:
    """Detect objects in every frame of a source, in order.

    At most ``batch`` frames for each device are held at a time, however long a video is; of streams besides a few that
    wait. Arguments are checked before the first frame.

    Args:
        predictor: What runs the network; several take turns.
        source: What ``open_source`` accepts, or what it returned.
        imgsz: Length that the longer side is resized to, the shorter following and padded to the stride; or (h, w),
            into which every image is fitted. None: the predictor's own size.
        conf: Boxes whose score is not above this are dropped.
        iou: Of two boxes of one class that overlap more than this, the better stays.
        max_det: At most this many boxes an image.
        classes: Ids to keep; None keeps all.
        class_agnostic: Suppress across classes too.
        batch: Frames a pass.
        streams: How streams are read.

    Returns:
        A generator of results, tensors on the CPU; of streams ``LiveResults``.

    Raises:
        ConfigError: A size is not a multiple of the stride, a number is out of range, or a class does not exist.
        DataError: The source is missing or cannot be read.
    """
    predictors = list(predictor) if isinstance(predictor, Sequence) else [predictor]
    first = predictors[0]
    imgsz = input_size(first, imgsz)
    for name, value, allowed in (
        ("conf", conf, 0 <= conf < 1), ("iou", iou, 0 < iou <= 1), ("max_det", max_det, max_det >= 1),
        ("batch", batch, batch >= 1),
    ):  # fmt: skip
        if not allowed:
            raise ConfigError(f"{name}={value} is out of range; see the settings of predict")
    unknown = [class_id for class_id in classes or () if class_id not in first.names]
    if unknown:
        raise ConfigError(
            f"classes={list(classes or ())}: there is no class {unknown[0]}; ids go to {len(first.names) - 1}"
        )
    check_suppression(first, conf=conf, iou=iou, max_det=max_det, class_agnostic=class_agnostic)
    keep = None if classes is None else torch.tensor(list(classes), dtype=torch.int64)

    def select(outputs: Outputs) -> list[Detections]:
        return detections_from_outputs(
            outputs, conf=conf, iou=iou, max_det=max_det, classes=keep, class_agnostic=class_agnostic
        )

    passes = [Pass(one, imgsz=imgsz, select=select) for one in predictors]
    opened = source if isinstance(source, Source | LiveSource) else open_source(source, stride=streams.stride)
    if isinstance(opened, LiveSource):
        return LiveResults(StreamHub(opened.addresses, settings=streams, batch=batch), passes)
    return run_passes(SourceFeed(opened, batch=batch), passes)


def input_size(predictor: Predictor, imgsz: int | tuple[int, int] | None) -> int | tuple[int, int]:
    """Check a size that the user asked for; None is the predictor's own.

    Returns:
        The length of the longer side, or (h, w) when every image is fitted into exactly that.

    Raises:
        ConfigError: It is not a multiple of the stride, or the predictor takes another size only.
    """
    own = predictor.size_hw
    if predictor.fixed_size:
        if imgsz is not None and imgsz != own and imgsz != max(own):
            height, width = own
            raise ConfigError(
                f"imgsz={imgsz} was asked for, but the exported file takes {height}x{width} only: leave imgsz out, or "
                "export it with dynamic=True"
            )
        return own
    if imgsz is None:
        return own[0] if own[0] == own[1] else own
    sizes = (imgsz,) if isinstance(imgsz, int) else imgsz
    if len(sizes) not in (1, 2) or any(size < 1 or size % predictor.stride for size in sizes):
        raise ConfigError(f"imgsz={imgsz} is not allowed; sizes must be multiples of {predictor.stride}")
    return imgsz


def check_suppression(predictor: Predictor, *, conf: float, iou: float, max_det: int, class_agnostic: bool) -> None:
    """Refuse thresholds that a file which suppresses by itself cannot meet.

    Raises:
        ConfigError: Boxes are asked for that the file has dropped already, or another overlap.
    """
    inside = predictor.suppression
    if inside is None:
        return
    if conf < inside.conf or iou != inside.iou or max_det > inside.max_det or class_agnostic:
        asked = f"conf={conf:g} iou={iou:g} max_det={max_det}" + (" agnostic_nms=True" if class_agnostic else "")
        raise ConfigError(
            f"{asked} was asked for, but the file suppresses by itself with conf={inside.conf:g} iou={inside.iou:g} "
            f"max_det={inside.max_det}: ask for no lower conf, the same iou and no more boxes, or export it with "
            "nms=False"
        )


def _checked_device(device: torch.device | str) -> torch.device:
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device={str(device)!r} is no device; allowed: 'cpu', 'cuda:0', 'mps'") from None
    if checked.type == "cuda" and (checked.index or 0) >= torch.cuda.device_count():
        raise BackendUnavailable(f"device '{checked}' was asked for, this machine has {torch.cuda.device_count()} GPUs")
    if checked.type == "mps" and not torch.backends.mps.is_available():
        raise BackendUnavailable("device 'mps' was asked for, but Metal is not available on this machine")
    return checked
