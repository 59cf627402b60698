"""The rehearsal: before the first epoch, one step on the worst batch that data and settings allow, and its validation.

A run that would die in epoch 40 dies, or finds another plan, in its first minute. Nothing of it stays: weights,
statistics, random numbers and optimiser are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ullage import memory as engine
from ullage.api.evaluate import judge
from ullage.api.patient import Patience
from ullage.config import EvalSettings
from ullage.data.batch import Batch
from ullage.geometry.targets import Targets
from ullage.losses.detection import DetectionLoss
from ullage.memory.ledger import Ledger
from ullage.runtime.predictor import Predictor
from ullage.train.frugal import PlannedMemory
from ullage.train.loop import Trainer
from ullage.train.relief import is_out_of_memory, reason_of
from ullage.train.state import random_state, set_random_state
from ullage.units import format_bytes, parse_bytes

SLACK = 1.01  # a measured peak may exceed the predicted one by this much before the plan is not believed


@dataclass(frozen=True)
class Worst:
    """The worst that data and settings allow.

    Attributes:
        imgsz: The largest side.
        batch: Images of one loader's batch.
        boxes: Most boxes in so many images.
    """

    imgsz: int
    batch: int
    boxes: Callable[[int], int]


@dataclass(frozen=True)
class Validation:
    """How validation is done.

    Attributes:
        predictor: Makes the predictor of a network.
        loss: What is summed up over it.
        settings: Thresholds.
        patience: Holds how many images are taken at a time.
        imgsz: Side of its images.
    """

    predictor: Callable[[nn.Module], Predictor]
    loss: DetectionLoss
    settings: EvalSettings
    patience: Patience
    imgsz: int


def rehearse(
    trainer: Trainer, memory: PlannedMemory, *, worst: Worst, budget: str | None, validation: Validation | None = None
) -> str:
    """Run the worst step and its validation; return a sentence with the predicted and the measured peaks.

    Raises:
        MemoryBudgetError: Memory ran out, or more than the budget was needed, and no more frugal plan is left.
    """
    granted = parse_bytes(budget) if budget is not None else None
    random = random_state()
    try:
        step = _rehearse_step(trainer, memory, worst, granted)
        judging = _rehearse_validation(trainer, validation, worst, granted) if validation is not None else 0
    finally:
        set_random_state(random)
    predicted = f"predicted {format_bytes(memory.predicted_bytes)}, " if memory.predicted_bytes else ""
    limit = f" of {format_bytes(granted)}" if granted is not None else ""
    validated = f"; of validation {format_bytes(judging)}" if judging else ""
    return (
        f"memory: {memory.describe()}; peak of the worst step: {predicted}rehearsed {format_bytes(step)}{limit}"
        f"{validated}"
    )


def _rehearse_step(trainer: Trainer, memory: PlannedMemory, worst: Worst, granted: int | None) -> int:
    while True:
        needed, reason = 0, ""
        try:
            needed = _measure(trainer, memory, worst)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
            if trainer.accumulate.is_awaited:
                raise trainer.accumulate.relief.refusal("the rehearsal with sync_bn=True", reason) from None
        else:
            if granted is not None and needed > granted * SLACK:
                reason = f"it needed {format_bytes(needed)} of {format_bytes(granted)}"
        answers = trainer.ranks.collect((needed, reason))  # all processes keep to one plan
        reasons = [why for _, why in answers if why]
        if not reasons:
            return max(peak for peak, _ in answers)
        trainer.accumulate.relief.retreat("the rehearsal", reasons[0])


def _measure(trainer: Trainer, memory: PlannedMemory, worst: Worst) -> int:
    size = min(memory.micro_batch or worst.batch, worst.batch)
    images, targets = worst_batch(size, worst.imgsz, worst.boxes(size), trainer.device)
    is_summed = size < worst.batch or trainer.schedule.accumulate > 1  # gradients of earlier passes are there

    def step(network: nn.Module, batch: torch.Tensor) -> Any:
        if is_summed:
            trainer.accumulate.loss_of(batch, targets).total.backward()
        return trainer.accumulate.loss_of(batch, targets)

    standing = _standing(trainer)
    with memory.lifted() as techniques:
        return engine.measure(
            step, trainer.state.network, images, technique=techniques, once=True, standing=standing,
            optimizer=None if standing["optimizer"] else type(trainer.state.optimiser).__name__,
        ).reserved_bytes  # fmt: skip


def _standing(trainer: Trainer) -> dict[str, list[torch.Tensor]]:
    state, average = trainer.state.optimiser.state, trainer.state.average.network
    moments = [t for s in state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return {"optimizer": moments, "average": [*average.parameters(), *average.buffers()]}


def _rehearse_validation(trainer: Trainer, validation: Validation, worst: Worst, granted: int | None) -> int:
    patience = validation.patience
    images, targets = worst_batch(worst.batch, validation.imgsz, worst.boxes(worst.batch), torch.device("cpu"))
    batch = Batch(images, targets, tuple(range(worst.batch)))
    network, average = trainer.state.network, trainer.state.average.network
    standing = [*network.parameters(), *network.buffers(), *(t for part in _standing(trainer).values() for t in part)]

    def validate() -> None:
        predictor = validation.predictor(average)
        patience(partial(judge, predictor, batch, validation.loss, validation.settings, _no_clock), worst.batch)

    while True:
        needed = _measure_validation(validate, standing, trainer.device)
        if granted is None or needed <= granted * SLACK:
            return needed
        patience.halve(
            min(patience.limit or worst.batch, worst.batch),
            f"the rehearsal needed {format_bytes(needed)} of {format_bytes(granted)}",
        )


def _no_clock(stage: str) -> None:
    pass


def _measure_validation(validate: Callable[[], object], standing: Iterable[torch.Tensor], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        validate()
        return torch.cuda.max_memory_reserved(device)
    ledger = Ledger(on_cpu=device.type == "cpu")
    ledger.enter(standing)
    with ledger:
        validate()
    return ledger.peak().nbytes


def worst_batch(images: int, imgsz: int, boxes: int, device: torch.device) -> tuple[torch.Tensor, Targets]:
    """Make a batch as crowded as may come: boxes of all sizes, on pixels of noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, imgsz, imgsz), dtype=torch.uint8, generator=generator)
    centres = torch.rand(boxes, 2, generator=generator) * imgsz
    sides = (torch.rand(boxes, 2, generator=generator) * 0.3 + 0.02) * imgsz
    corners = torch.cat((centres - sides / 2, centres + sides / 2), 1).clamp_(0, imgsz)
    index = torch.arange(boxes) * images // max(boxes, 1)
    return pixels.to(device), Targets(index, torch.zeros_like(index), corners, images).to(device)
