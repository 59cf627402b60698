"""``plan`` and ``estimate``: what a training will need, before anything runs. Needs neither GPU nor memory nor data."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from ullage import memory
from ullage.api.models import LoadedModel
from ullage.config import PlanConfig
from ullage.data.index import DetectionSet
from ullage.data.source import open_dataset
from ullage.losses.bound import WorstCaseLoss
from ullage.memory import Estimate, Plan
from ullage.nn.detector import Detector
from ullage.nn.outputs import decode_boxes, decode_scores
from ullage.zoo.registry import build, model_entry

BOXES_PER_IMAGE = 100  # assumed where no data is named: few sets have more on average, mosaics included
MOSAIC_TILES = 4

PrecisionName = Literal["float32", "bf16", "fp16"]


def plan(config: PlanConfig) -> Plan:
    """Find how to train in a budget.

    Raises:
        MemoryBudgetError: Nothing fits; the message says what would.
        ConfigError: Settings are wrong.
    """
    data = _data(config)
    return plan_training(
        network_of(config.model.model, data),
        batch=-(-config.plan.batch // config.plan.devices),
        imgsz=largest(config.plan.imgsz),
        boxes=worst_boxes(data, -(-config.plan.batch // config.plan.devices), config.plan.boxes_per_image),
        budget=config.memory.memory,
        technique=config.memory.wanted_technique,
        micro_batch=config.memory.micro_batch,
        optimizer=config.plan.optimizer,
        precision=config.plan.precision,
        device=config.plan.device,
    )


def estimate(config: PlanConfig) -> Estimate:
    """Predict the peak of training with one technique everywhere; ``memory`` is not looked at.

    Raises:
        ConfigError: Settings are wrong.
    """
    technique = config.memory.wanted_technique
    data = _data(config)
    batch = -(-config.plan.batch // config.plan.devices)
    images = _images(batch, largest(config.plan.imgsz))
    boxes = worst_boxes(data, batch, config.plan.boxes_per_image)
    return memory.estimate(
        _step(boxes, batch), network_of(config.model.model, data), images,
        optimizer=config.plan.optimizer, technique="none" if technique == "auto" else technique,
        precision=config.plan.precision, device=config.plan.device, average=True, validation=(_judge, images),
    )  # fmt: skip


def plan_training(
    network: nn.Module,
    *,
    batch: int,
    imgsz: int,
    boxes: int,
    budget: str | None,
    technique: str,
    micro_batch: int | None,
    optimizer: str,
    precision: PrecisionName,
    device: str,
    validates: bool = True,
) -> Plan:
    """Plan the training of a network.

    Args:
        network: In training mode; parameters may be on the ``meta`` device.
        batch: Images of one loader's batch.
        imgsz: The largest side.
        boxes: Most boxes in a batch.
        budget: Such as ``"8GB"``; None for no limit.
        technique: A name, or ``"auto"``.
        micro_batch: Images of one forward pass, None to plan it.
        optimizer: Class of ``torch.optim``.
        precision: Of matrix products.
        device: ``"cpu"`` or ``"cuda"``.
        validates: Plan validation, too.
    """
    images = _images(batch, imgsz)
    return memory.plan(
        _step(boxes, batch), network, images, budget=budget, technique=technique, optimizer=optimizer, precision=precision,
        device=device, average=True, micro_batch=micro_batch, validation=(_judge, images) if validates else None,
    )  # fmt: skip


def network_of(model: LoadedModel | str, data: DetectionSet | None) -> Detector:
    """Make the network that would be trained, without memory for its weights.

    Raises:
        ConfigError: The zoo has no such network.
    """
    name = model if isinstance(model, str) else model.model_name
    classes = len(data.names) if data is not None else 80
    with torch.device("meta"):
        network = build(model_entry(name).name, num_classes=classes)
    return network.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]


def worst_boxes(data: DetectionSet | None, batch: int, boxes_per_image: int | None) -> int:
    """Return the most boxes that a batch may hold: those of the most crowded images, four to a mosaic."""
    if boxes_per_image is not None:
        return boxes_per_image * batch
    if data is None:
        return BOXES_PER_IMAGE * batch
    counts = sorted((len(data.labels(index).class_ids_G) for index in range(len(data))), reverse=True)
    wanted = MOSAIC_TILES * batch
    whole, rest = divmod(wanted, max(len(counts), 1))
    return whole * sum(counts) + sum(counts[:rest])


def largest(imgsz: int | tuple[int, int]) -> int:
    """Return the largest side that training uses."""
    return imgsz if isinstance(imgsz, int) else imgsz[1]


def _data(config: PlanConfig) -> DetectionSet | None:
    return None if config.plan.data is None else open_dataset(config.plan.data, split="train")


def _images(batch: int, side: int) -> torch.Tensor:
    return torch.empty(batch, 3, side, side, dtype=torch.uint8, device="meta").to(memory_format=torch.channels_last)


def _step(boxes: int, batch: int) -> Any:
    def step(network: nn.Module, images_B3HW: torch.Tensor) -> torch.Tensor:
        share = -(-boxes * images_B3HW.shape[0] // batch)
        return WorstCaseLoss(boxes=share)(network(images_B3HW.float().div_(255)))

    return step


def _judge(network: nn.Module, images_B3HW: torch.Tensor) -> object:
    raw = network(images_B3HW.float().div_(255))
    return decode_boxes(raw), decode_scores(raw)
