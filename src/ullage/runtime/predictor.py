"""Images in, results out: what a predictor is, PyTorch's, and the loop around them.

Shape letters: B batch, H, W the network's input.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from ullage.errors import BackendUnavailable, ConfigError
from ullage.geometry.detections import Detections
from ullage.geometry.letterbox import Letterbox, fit, tight_size
from ullage.nn.fold import fold_batchnorm
from ullage.nn.outputs import RawDetections
from ullage.runtime.outputs import Suppression
from ullage.runtime.postprocess import Outputs, detections_from_outputs
from ullage.runtime.results import Boxes, Results
from ullage.runtime.sources import Frame, Source, open_source

Precision = Literal["fp32", "fp16", "bf16"]
DEFAULT_SIDE = 640
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Predictor(Protocol):
    """Anything that turns images into raw detections: a PyTorch network, or a file in another runtime."""

    @property
    def names(self) -> Mapping[int, str]:
        """Class name by id."""
        ...

    @property
    def stride(self) -> int:
        """Sides of the input must be multiples of this."""
        ...

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size of the input when the user names none."""
        ...

    @property
    def fixed_size(self) -> bool:
        """Whether ``size_hw`` is the only size that is taken."""
        ...

    @property
    def suppression(self) -> Suppression | None:
        """Thresholds that are fixed inside; None when every anchor is returned."""
        ...

    def __call__(self, images_B3HW: torch.Tensor) -> Outputs:
        """Run uint8 RGB images on the host through the network; returns when the result is there."""
        ...


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
    predictor: Predictor,
    *,
    source: Any,
    imgsz: int | tuple[int, int] | None = None,
    conf: float = 0.25,
    iou: float = 0.7,
    max_det: int = 300,
    classes: Sequence[int] | None = None,
    class_agnostic: bool = False,
    batch: int = 1,
) -> Iterator[Results]:
    """Detect objects in every frame of a source, in order.

    At most ``batch`` frames are held at a time, however long a video is. Arguments are checked before the first frame.

    Args:
        predictor: What runs the network.
        source: What ``open_source`` accepts, or what it returned.
        imgsz: Length that the longer side is resized to, the shorter following and padded to the stride; or (h, w),
            into which every image is fitted. None: the predictor's own size.
        conf: Boxes whose score is not above this are dropped.
        iou: Of two boxes of one class that overlap more than this, the better stays.
        max_det: At most this many boxes an image.
        classes: Ids to keep; None keeps all.
        class_agnostic: Suppress across classes too.
        batch: Frames a pass.

    Returns:
        A generator of results, tensors on the CPU.

    Raises:
        ConfigError: A size is not a multiple of the stride, a number is out of range, or a class does not exist.
        DataError: The source is missing or cannot be read.
    """
    imgsz = input_size(predictor, imgsz)
    for name, value, allowed in (
        ("conf", conf, 0 <= conf < 1), ("iou", iou, 0 < iou <= 1), ("max_det", max_det, max_det >= 1),
        ("batch", batch, batch >= 1),
    ):  # fmt: skip
        if not allowed:
            raise ConfigError(f"{name}={value} is out of range; see the settings of predict")
    unknown = [class_id for class_id in classes or () if class_id not in predictor.names]
    if unknown:
        raise ConfigError(
            f"classes={list(classes or ())}: there is no class {unknown[0]}; ids go to {len(predictor.names) - 1}"
        )
    check_suppression(predictor, conf=conf, iou=iou, max_det=max_det, class_agnostic=class_agnostic)
    keep = None if classes is None else torch.tensor(list(classes), dtype=torch.int64)
    frames = source if isinstance(source, Source) else open_source(source)

    def select(outputs: Outputs) -> list[Detections]:
        return detections_from_outputs(
            outputs, conf=conf, iou=iou, max_det=max_det, classes=keep, class_agnostic=class_agnostic
        )

    return _run(predictor, frames, imgsz, batch, select)


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


def _run(
    predictor: Predictor,
    frames: Iterable[Frame],
    imgsz: int | tuple[int, int],
    batch: int,
    select: Callable[[Outputs], list[Detections]],
) -> Iterator[Results]:
    for group in _groups(frames, batch):
        marks = [time.perf_counter()]
        images_B3HW, letterboxes = _to_batch(group, imgsz, predictor.stride)
        marks.append(time.perf_counter())
        outputs = predictor(images_B3HW)
        marks.append(time.perf_counter())
        found = [_to_original(one, letterbox) for one, letterbox in zip(select(outputs), letterboxes, strict=True)]
        marks.append(time.perf_counter())
        speed = {
            name: (stop - start) * 1000 / len(group)
            for name, (start, stop) in zip(("preprocess", "inference", "postprocess"), pairwise(marks), strict=True)
        }
        for frame, one in zip(group, found, strict=True):
            yield _result(frame, one, predictor.names, speed)


def _groups(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    iterator = iter(frames)
    while group := list(islice(iterator, size)):
        yield group


def _to_batch(
    frames: Sequence[Frame], imgsz: int | tuple[int, int], stride: int
) -> tuple[torch.Tensor, list[Letterbox]]:
    """Letterbox frames into one uint8 batch, the smallest that holds them all; channels-last in memory."""
    shapes_hw = [(frame.image_HW3.shape[0], frame.image_HW3.shape[1]) for frame in frames]
    if isinstance(imgsz, int):
        tight = [tight_size(shape_hw, imgsz, stride=stride) for shape_hw in shapes_hw]
        size_hw = (max(height for height, _ in tight), max(width for _, width in tight))
    else:
        size_hw = imgsz
    letterboxes = [fit(shape_hw, size_hw) for shape_hw in shapes_hw]
    batch_BHW3 = np.empty((len(frames), *size_hw, 3), np.uint8)
    for frame, letterbox, out_HW3 in zip(frames, letterboxes, batch_BHW3, strict=True):
        letterbox.apply(frame.image_HW3, out_HW3=out_HW3)
    return torch.from_numpy(batch_BHW3).permute(0, 3, 1, 2), letterboxes


def _to_original(found: Detections, letterbox: Letterbox) -> Detections:
    host = found.to("cpu")
    return Detections(letterbox.backward(host.boxes_xyxy_px_D4), host.scores_D, host.class_ids_D)


def _result(frame: Frame, found: Detections, names: Mapping[int, str], speed: Mapping[str, float]) -> Results:
    shape_hw = (frame.image_HW3.shape[0], frame.image_HW3.shape[1])
    return Results(
        boxes=Boxes.from_detections(found, shape_hw),
        orig_img=frame.image_HW3,
        path=frame.path,
        names=names,
        speed=speed,
        video_frame=frame.video_frame,
        time_s=frame.time_s,
        fps=frame.fps,
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
