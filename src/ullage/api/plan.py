"""``plan`` and ``estimate``: what a training will need, before anything runs. Needs neither GPU nor memory nor data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ullage import memory as engine
from ullage.config import AugmentSettings, OptimSettings
from ullage.config.tools import PlanConfig
from ullage.data.augment import MAX_PASTES
from ullage.data.index import DetectionSet
from ullage.data.source import open_dataset
from ullage.errors import ConfigError, nearest
from ullage.losses.bound import WorstCaseLoss
from ullage.memory import Estimate, Plan
from ullage.nn.detector import Detector
from ullage.nn.outputs import decode_boxes, decode_scores
from ullage.zoo.registry import build, model_entry

BOXES_PER_IMAGE = 100  # assumed where no data is named: few sets have more on average, mosaics included
MOSAIC_TILES = 4

PrecisionName = Literal["float32", "bf16", "fp16"]


def plan(
    *,
    model: str = "yolov12n",
    batch: int = 16,
    imgsz: int | tuple[int, int] = 640,
    memory: str | int | None = None,
    data: str | None = None,
    devices: int = 1,
    device: Literal["cuda", "cpu"] = "cuda",
    precision: PrecisionName | None = None,
    optimizer: str = "SGD",
    technique: str = "auto",
    micro_batch: int | None = None,
    boxes_per_image: int | None = None,
) -> Plan:
    """Find how to train a network in a budget, without running it. Every argument is a key of ``ullage plan``.

    Raises:
        MemoryBudgetError: Nothing fits; the message says what would.
        ConfigError: Settings are wrong.
    """
    return plan_of(
        PlanConfig.load(
            {"model": model, "batch": batch, "imgsz": imgsz, "memory": memory, "data": data, "devices": devices,
             "device": device, "precision": precision, "optimizer": optimizer, "technique": technique,
             "micro_batch": micro_batch, "boxes_per_image": boxes_per_image}
        )
    )  # fmt: skip


def estimate(
    *,
    model: str = "yolov12n",
    batch: int = 16,
    imgsz: int | tuple[int, int] = 640,
    precision: PrecisionName | None = None,
    technique: str = "none",
    optimizer: str = "SGD",
    boxes_per_image: int | None = None,
    data: str | None = None,
    device: Literal["cuda", "cpu"] = "cuda",
) -> Estimate:
    """Predict the peak of training a network with one technique in every block, validation included.

    Raises:
        ConfigError: Settings are wrong.
    """
    config = PlanConfig.load(
        {"model": model, "batch": batch, "imgsz": imgsz, "data": data, "device": device, "precision": precision,
         "optimizer": optimizer, "technique": technique, "boxes_per_image": boxes_per_image}
    )  # fmt: skip
    return plan_of(config).predicted


def plan_of(config: PlanConfig) -> Plan:
    """Plan what a configuration describes; see ``plan``."""
    wanted, budget = config.plan, config.memory
    check_technique(budget.wanted_technique)
    data = None if wanted.data is None else open_dataset(wanted.data, split="train")
    batch = -(-wanted.batch // wanted.devices)
    return plan_training(
        network_of(wanted.model, num_classes=len(data.names) if data is not None else 80),
        batch=batch,
        imgsz=largest(wanted.imgsz),
        boxes=lambda images: worst_boxes(data, images, wanted.boxes_per_image),
        budget=budget.memory,
        technique=budget.wanted_technique,
        micro_batch=budget.micro_batch,
        optimizer=wanted.optimizer,
        precision=wanted.resolved_precision,
        device=wanted.device,
        accumulates=round(OptimSettings().nbs / wanted.batch) > 1,  # as training sums batches up to the nominal one
    )


def plan_training(
    network: nn.Module,
    *,
    batch: int,
    imgsz: int,
    boxes: int | Callable[[int], int],
    budget: str | None,
    technique: str,
    micro_batch: int | None,
    optimizer: str,
    precision: PrecisionName,
    device: str,
    validates: bool = True,
    accumulates: bool = False,
    average: bool = True,
) -> Plan:
    """Plan the training of a network.

    Args:
        network: In training mode; parameters may be on the ``meta`` device.
        batch: Images of one loader's batch.
        imgsz: The largest side.
        boxes: Most boxes in a batch, or a function that tells it of any number of images.
        budget: Such as ``"8GB"``; None for no limit.
        technique: A name, or ``"auto"``.
        micro_batch: Images of one forward pass, None to plan it.
        optimizer: Class of ``torch.optim``.
        precision: Of matrix products.
        device: ``"cpu"`` or ``"cuda"``.
        validates: Plan validation, too.
        accumulates: Several such batches make one update.
        average: Count the moving average of the weights, which training keeps.
    """
    images = tracing_images(batch, imgsz)
    return engine.plan(
        tracing_step(boxes, batch), network, images, budget=budget, technique=technique, optimizer=optimizer,
        precision=precision, device=device, average=average,
        micro_batch=None if micro_batch is None else min(micro_batch, batch),
        accumulates=accumulates, validation=(_judge, images) if validates else None,
    )  # fmt: skip


def check_technique(name: str) -> None:
    """Refuse a technique that does not exist, before anything is made.

    Raises:
        ConfigError: No such technique; the message names the nearest.
    """
    if name == "auto":
        return
    try:
        engine.Technique.parse(name)
    except ConfigError as error:
        raise ConfigError(f"{error}{nearest(name, ('auto',))}") from None


def network_of(name: str, *, num_classes: int) -> Detector:
    """Make the network that would be trained, without memory for its weights.

    Raises:
        ConfigError: The zoo has no such network.
    """
    with torch.device("meta"):
        network = build(model_entry(name).name, num_classes=num_classes)
    return network.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]


def worst_boxes(
    data: DetectionSet | None, images: int, boxes_per_image: int | None = None, augment: AugmentSettings | None = None
) -> int:
    """Return the most boxes that so many samples may hold: those of the most crowded images of the set.

    Args:
        data: The images; None assumes 100 boxes a sample.
        images: Samples together.
        boxes_per_image: Settles it.
        augment: How many images make a sample, and what is pasted into it; None assumes mosaics.
    """
    if boxes_per_image is not None:
        return boxes_per_image * images
    if data is None:
        return BOXES_PER_IMAGE * images
    augment = AugmentSettings() if augment is None else augment
    counts = sorted((int(count) for count in np.diff(data.offsets)), reverse=True)
    wanted = (MOSAIC_TILES if augment.mosaic > 0 else 1) * (2 if augment.mixup > 0 else 1) * images
    pasted = MAX_PASTES * images if augment.copy_paste > 0 else 0
    whole, rest = divmod(wanted, max(len(counts), 1))
    return whole * sum(counts) + sum(counts[:rest]) + pasted


def largest(imgsz: int | tuple[int, int]) -> int:
    """Return the largest side that training uses."""
    return imgsz if isinstance(imgsz, int) else imgsz[1]


def tracing_images(batch: int, side: int) -> torch.Tensor:
    """Return a batch of images without memory."""
    return torch.empty(batch, 3, side, side, dtype=torch.uint8, device="meta").to(memory_format=torch.channels_last)


def tracing_step(boxes: int | Callable[[int], int], batch: int) -> Any:
    """Return the training step as the engine traces it: the loss stands for its worst case.

    Args:
        boxes: Boxes in a batch, at most, of which a micro-batch gets its share; or a function of the number of images.
        batch: Images of a batch.
    """

    def step(network: nn.Module, images_B3HW: torch.Tensor) -> torch.Tensor:
        images = images_B3HW.shape[0]
        crowd = -(-boxes * images // batch) if isinstance(boxes, int) else boxes(images)
        return WorstCaseLoss(boxes=crowd)(network(images_B3HW))

    return step


def _judge(network: nn.Module, images_B3HW: torch.Tensor) -> object:
    _of_predictor = [torch.empty_like(p) for p in network.parameters()]  # it judges a copy, BatchNorm folded in
    raw = network(images_B3HW.float().div_(255))
    return decode_boxes(raw), decode_scores(raw)
