"""What is refused before a training begins, and the images that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ullage.api.plan import check_technique
from ullage.config import TrainConfig
from ullage.config.data import STRIDE
from ullage.data.index import DetectionSet
from ullage.data.source import open_dataset
from ullage.errors import ConfigError, DataError


@dataclass(frozen=True)
class TrainData:
    """The images of a run."""

    train: DetectionSet
    val: DetectionSet | None


def train_sizes(imgsz: int | tuple[int, int], multi_scale: bool) -> tuple[int, int] | None:
    """Return the smallest and largest training size, None when there is only one."""
    if isinstance(imgsz, tuple):
        return imgsz
    if not multi_scale:
        return None
    low, high = (max(round(imgsz * part / STRIDE), 1) * STRIDE for part in (0.5, 1.5))
    return low, high


def check_same_classes(before: Sequence[str], now: Sequence[str]) -> None:
    """Refuse to go on with other classes than a run began with."""
    if tuple(before) != tuple(now):
        raise DataError(
            f"the data set's classes have changed since the run began: {', '.join(before[:8])} then, "
            f"{', '.join(now[:8])} now; restore them, or begin a new run"
        )


def check_smallest_batch(config: TrainConfig, images: int, ranks: int = 1) -> None:
    """Refuse a batch that leaves BatchNorm a single value per channel: one image whose coarsest map is one cell.

    Args:
        config: The settings.
        images: Of the data set.
        ranks: Processes that share each batch.
    """
    settings = config.data
    sizes = train_sizes(settings.imgsz, settings.multi_scale)
    least = sizes[0] if sizes else settings.imgsz
    sizes_cut = (settings.batch, config.memory.micro_batch or settings.batch)
    shares = {share for part in _parts_of(images, sizes_cut[:1]) for share in (part // ranks, -(-part // ranks))} - {0}
    smallest = min(part for share in shares for part in _parts_of(share, sizes_cut[1:]))
    if least == STRIDE and smallest == 1:
        raise ConfigError(
            f"imgsz={settings.imgsz} and batch={settings.batch} make a batch of one image of {STRIDE}x{STRIDE} pixels "
            f"out of {images} images, too little to train on; use sizes of at least {2 * STRIDE}, or another batch"
        )


def check_techniques(config: TrainConfig) -> None:
    """Refuse a technique that does not exist, or that compiled code would not know of."""
    wanted = config.memory.wanted_technique
    check_technique(wanted)
    if config.device.compile and wanted not in ("auto", "none"):
        raise ConfigError(
            f"compile=True and technique={wanted} exclude each other: compiled code keeps what its compiler decides; "
            "leave one of them out (memory= and micro_batch= work with compile)"
        )


def _parts_of(images: int, sizes: tuple[int, ...]) -> set[int]:
    """Return the sizes of the parts when images are cut into batches, and those into smaller ones."""
    if not sizes:
        return {images}
    cut = {min(sizes[0], images), images % sizes[0]} - {0}
    return {part for size in cut for part in _parts_of(size, sizes[1:])}


def _named_data(config: TrainConfig) -> str:
    if config.data.data is None:
        raise ConfigError("train needs data=: a YAML, COCO JSON, folder, CSV, or 'demo'")
    return config.data.data


def open_data(config: TrainConfig) -> TrainData:
    """Open the images that a configuration names.

    Raises:
        ConfigError: It names none.
        DataError: The data set cannot be used.
    """
    settings, data = config.data, _named_data(config)
    train_set = open_dataset(
        data,
        split="train",
        classes=settings.classes,
        single_cls=settings.single_cls,
        fraction=settings.fraction,
        seed=config.run.seed,
    )
    if not config.run.val:
        return TrainData(train_set, None)
    val_set = open_dataset(data, split="val", classes=settings.classes, single_cls=settings.single_cls)
    return TrainData(train_set, val_set)
