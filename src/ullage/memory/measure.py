"""Measure the memory of a step that really runs, beside what was predicted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ullage.memory.apply import apply_techniques
from ullage.memory.estimate import device_kind, techniques_of
from ullage.memory.ledger import Ledger
from ullage.memory.plan import Plan
from ullage.memory.trace import HasTotal, OptimizerLike, PrecisionName, Setting, Step, precision_context, run_step


@dataclass(frozen=True)
class Measured:
    """Memory and time of one step.

    Attributes:
        peak_bytes: Live tensors at the worst instant; on CUDA what the allocator calls allocated.
        reserved_bytes: On CUDA what the allocator held; elsewhere the same as ``peak_bytes``.
        by_category: The peak by what the bytes were for.
        seconds: Time of forward and backward, counting nothing.
    """

    peak_bytes: int
    reserved_bytes: int
    by_category: Mapping[str, int]
    seconds: float


def measure(
    step: Step,
    model: nn.Module,
    batch: Any,
    *,
    plan: Plan | None = None,
    optimizer: OptimizerLike = None,
    technique: str | Mapping[str, str] = "none",
    precision: PrecisionName | None = None,
    average: bool = False,
    standing: Mapping[str, Sequence[torch.Tensor]] | None = None,
    once: bool = False,
) -> Measured:
    """Run a step under a plan (or a technique): to warm up, to take the time, and a third time to count the bytes.

    Weights and optimizer are left as they are: nothing is updated. BatchNorm's statistics, which move in every forward
    pass, and the random numbers are put back.

    Args:
        step: ``step(model, batch)`` returns the loss.
        model: Any module, where it will train.
        batch: On the model's device.
        plan: What to put in force; its precision is used unless ``precision`` is given.
        optimizer: Whose state is counted with it.
        technique: Without a plan, the technique of every block, or by name of the submodule.
        precision: Type of matrix products; None leaves it to the step.
        average: Count a moving average of the weights.
        standing: Tensors by category that are there beside the step and are counted with it.
        once: Only count; the time is then that of a step being counted, longer than usual.
    """
    kind = device_kind(model, None)
    if plan is not None:
        technique, precision = plan.blocks, precision or plan.precision  # type: ignore[assignment]
    setting = Setting(precision, kind, optimizer, average)
    techniques = techniques_of(model, technique)
    buffers = [(b, b.clone()) for b in model.buffers()]
    random = torch.get_rng_state()
    try:
        seconds = 0.0
        if not once:
            with apply_techniques(model, techniques):
                _plain_step(step, model, batch, setting)
                began = time.perf_counter()
                _plain_step(step, model, batch, setting)
                seconds = time.perf_counter() - began
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        ledger = Ledger(on_cpu=kind == "cpu")
        for category, tensors in (standing or {}).items():
            ledger.enter(tensors, category)
        began = time.perf_counter()
        run_step(step, model, batch, techniques=techniques, setting=setting, ledger=ledger)
        seconds = seconds or time.perf_counter() - began
        peak = ledger.peak()
        if kind == "cuda":
            return Measured(
                torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), peak.by_category(), seconds
            )
        return Measured(peak.nbytes, peak.nbytes, peak.by_category(), seconds)
    finally:
        torch.set_rng_state(random)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _plain_step(step: Step, model: nn.Module, batch: Any, setting: Setting) -> None:
    with precision_context(setting, emulate=False):
        loss = step(model, batch)
    (loss.total if isinstance(loss, HasTotal) else loss).backward()  # pyright: ignore[reportUnknownMemberType]
    for p in model.parameters():
        p.grad = None
    if setting.device_type == "cuda":
        torch.cuda.synchronize()
