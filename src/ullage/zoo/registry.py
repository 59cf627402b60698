"""The table of networks: name, builder, paper, licence, published size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ullage.errors import ConfigError, nearest
from ullage.nn.detector import Detector, Scale
from ullage.zoo.yolo11 import YOLO11
from ullage.zoo.yolov12 import YOLOv12, YOLOv12First

SCALES = {
    "n": Scale("n", 0.50, 0.25, 1024),
    "s": Scale("s", 0.50, 0.50, 1024),
    "m": Scale("m", 0.50, 1.00, 512),
    "l": Scale("l", 1.00, 1.00, 512),
    "x": Scale("x", 1.00, 1.50, 512),
}


@dataclass(frozen=True)
class Entry:
    """One network of the table.

    Attributes:
        name: What users type.
        family: Name without the scale.
        builder: Called with the scale and the number of classes.
        scale: Size within the family.
        paper: Where it was published.
        licence: Licence of our implementation (published weights have their own).
        parameters: Published parameter count with 80 classes.
        gflops: Published FLOPs at 640 x 640, in 10^9, 2 x multiply-adds.
    """

    name: str
    family: str
    builder: Callable[[Scale, int], Detector]
    scale: Scale
    paper: str
    licence: str
    parameters: int
    gflops: float


_FAMILIES = {
    "yolo11": (YOLO11, "Ultralytics YOLO11, 2024"),
    "yolov12": (YOLOv12, "arXiv:2502.12524 (turbo release)"),
    "yolo12": (YOLOv12First, "arXiv:2502.12524 (v1.0)"),
}

_PUBLISHED = {
    "yolo11n": (2_624_080, 6.5), "yolo11s": (9_458_752, 21.5), "yolo11m": (20_114_688, 68.0),
    "yolo11l": (25_372_160, 86.9), "yolo11x": (56_966_176, 194.9),
    "yolov12n": (2_553_904, 6.0), "yolov12s": (9_127_424, 19.4), "yolov12m": (19_670_784, 59.8),
    "yolov12l": (26_506_496, 82.4), "yolov12x": (59_414_176, 184.6),
    "yolo12n": (2_602_288, 6.5), "yolo12s": (9_284_096, 21.4), "yolo12m": (20_199_168, 67.5),
    "yolo12l": (26_450_784, 88.9), "yolo12x": (59_210_784, 199.0),
}  # fmt: skip

MODELS: dict[str, Entry] = {
    name: Entry(
        name, name[:-1], _FAMILIES[name[:-1]][0], SCALES[name[-1]], _FAMILIES[name[:-1]][1], "Apache-2.0", *size
    )
    for name, size in _PUBLISHED.items()
}


def model_entry(name: str) -> Entry:
    """Look a network up.

    Args:
        name: ``yolov12n``; the endings ``.yaml`` and ``.pt`` that users are used to are accepted.

    Raises:
        ConfigError: No such network; the message names the nearest.
    """
    stem = name.lower().removesuffix(".yaml").removesuffix(".yml").removesuffix(".pt")
    if stem not in MODELS:
        raise ConfigError(
            f"no network is called '{name}'; there are {', '.join(f'{family}n/s/m/l/x' for family in _FAMILIES)}."
            f"{nearest(stem, MODELS)}"
        )
    return MODELS[stem]


def build(name: str, *, num_classes: int = 80) -> Detector:
    """Make a fresh network, float32 on the current default device, channels-last where tensors are images.

    Raises:
        ConfigError: No such network, or fewer than one class.
    """
    if num_classes < 1:
        raise ConfigError(f"a detector needs at least one class, got num_classes={num_classes}")
    entry = model_entry(name)
    return entry.builder(entry.scale, num_classes)
