"""The rehearsal: before the first epoch, one step on the worst batch that data and settings allow.

A run that would die in epoch 40 dies, or finds another plan, in its first minute. Nothing of it stays: weights,
statistics, random numbers and optimiser are what they were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ullage import memory as engine
from ullage.geometry.targets import Targets
from ullage.train.accumulate import is_out_of_memory
from ullage.train.frugal import PlannedMemory
from ullage.train.loop import Trainer
from ullage.units import format_bytes, parse_bytes

SLACK = 1.01  # a measured peak may exceed the predicted one by this much before the plan is not believed


def rehearse(trainer: Trainer, memory: PlannedMemory, *, imgsz: int, batch: int, boxes: int, budget: str | None) -> str:
    """Run forward, loss and backward on the worst batch; return a sentence with the predicted and the measured peak.

    Raises:
        MemoryBudgetError: Memory ran out, or more than the budget was needed, and no more frugal plan is left.
    """
    granted = parse_bytes(budget) if budget is not None else None
    while True:
        reason = ""
        try:
            measured = _measure(trainer, memory, imgsz, batch, boxes)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        else:
            if granted is None or measured.peak_bytes <= granted * SLACK:
                return _sentence(memory, measured, granted)
            reason = f"it needed {format_bytes(measured.peak_bytes)} of {format_bytes(granted)}"
        trainer.accumulate.retreat("the rehearsal", reason)


def _measure(trainer: Trainer, memory: PlannedMemory, imgsz: int, batch: int, boxes: int) -> engine.Measured:
    size = min(memory.micro_batch or batch, batch)
    images, targets = worst_batch(size, imgsz, -(-boxes * size // batch), trainer.device)

    def step(network: nn.Module, batch: Any) -> Any:
        return trainer.accumulate.loss_of(batch, targets)

    state, average = trainer.state.optimiser.state, trainer.state.average.network
    moments = [t for s in state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    with memory.lifted() as techniques:
        return engine.measure(
            step, trainer.state.network, images, technique=techniques, once=True,
            optimizer=None if moments else type(trainer.state.optimiser).__name__,
            standing={"optimizer": moments, "average": [*average.parameters(), *average.buffers()]},
        )  # fmt: skip


def worst_batch(images: int, imgsz: int, boxes: int, device: torch.device) -> tuple[torch.Tensor, Targets]:
    """Make a batch as crowded as may come: boxes of all sizes, on pixels of noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, imgsz, imgsz), dtype=torch.uint8, generator=generator)
    centres = torch.rand(boxes, 2, generator=generator) * imgsz
    sides = (torch.rand(boxes, 2, generator=generator) * 0.3 + 0.02) * imgsz
    corners = torch.cat((centres - sides / 2, centres + sides / 2), 1).clamp_(0, imgsz)
    index = torch.arange(boxes) * images // max(boxes, 1)
    return pixels.to(device), Targets(index, torch.zeros_like(index), corners, images).to(device)


def _sentence(memory: PlannedMemory, measured: engine.Measured, granted: int | None) -> str:
    predicted = memory.predicted_bytes
    about = f"predicted {format_bytes(predicted)}, " if predicted else ""
    limit = f" of {format_bytes(granted)}" if granted is not None else ""
    rehearsed = f"{about}rehearsed {format_bytes(measured.peak_bytes)}{limit}"
    return f"memory: {memory.describe()}; peak of the worst step: {rehearsed}"
