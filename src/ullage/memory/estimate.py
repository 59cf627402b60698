"""Predict the memory of a step before it runs: a trace on fake tensors, under the engine itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_iter

from ullage.memory.apply import block_names
from ullage.memory.device import context_bytes, reserved_bytes
from ullage.memory.fakes import fake_batch, faked, is_faked
from ullage.memory.ledger import Ledger
from ullage.memory.plan import Estimate
from ullage.memory.technique import Technique
from ullage.memory.trace import (
    OptimizerLike,
    PrecisionName,
    Setting,
    Step,
    Trace,
    enter_standing,
    precision_context,
    trace_step,
)

Validation = tuple[Callable[[nn.Module, Any], Any], Any]


def estimate(
    step: Step,
    model: nn.Module,
    batch: Any,
    *,
    optimizer: OptimizerLike = None,
    technique: str | Mapping[str, str] = "none",
    precision: PrecisionName | None = None,
    device: str | torch.device | None = None,
    average: bool = False,
    accumulates: bool = False,
    validation: Validation | None = None,
) -> Estimate:
    """Predict the memory of one training step. Needs no GPU, no data and no memory: fake tensors stand for all.

    Args:
        step: ``step(model, batch)`` returns the loss: a scalar, or an object with ``total``. It must run on tensors
            without values.
        model: Any module; its parameters may be on the ``meta`` device.
        batch: Tensors, or lists, tuples and dictionaries of them.
        optimizer: Name of a class of ``torch.optim``, an optimizer to imitate, or None for no update.
        technique: Of every block, or by name of the submodule.
        precision: Type of matrix products; None leaves it to the step.
        device: Kind of device that will train, ``"cpu"`` or ``"cuda"``; None takes the model's.
        average: A moving average of weights and buffers is kept.
        accumulates: Gradients of earlier micro-batches are there when the step begins.
        validation: Step and batch of validation, without gradients.

    Returns:
        The prediction, by category and by block.

    Raises:
        ConfigError: Unknown technique or optimizer, or a step that needs values.
    """
    setting = Setting(precision, device_kind(model, device), optimizer, average, accumulates)
    techniques = techniques_of(model, technique)
    trace = trace_step(step, model, batch, techniques=techniques, setting=setting)
    val_peak = validation_peak(validation, model, setting) if validation is not None else 0
    return estimate_of(trace, setting, val_peak)


def estimate_of(trace: Trace, setting: Setting, val_peak_bytes: int = 0) -> Estimate:
    """Read an estimate off a trace."""
    peak = trace.ledger.peak()
    kind = setting.device_type
    reserved = reserved_bytes(trace.ledger.pieces, trace.ledger.events, kind)
    return Estimate(
        peak_bytes=peak.nbytes,
        reserved_bytes=reserved,
        process_bytes=reserved + context_bytes(kind),
        val_peak_bytes=val_peak_bytes,
        by_category=peak.by_category(),
        by_block=peak.by_block(),
        phase=peak.phase,
        block=peak.block,
        device=kind,
    )


def device_kind(model: nn.Module, device: str | torch.device | None) -> str:
    """Return ``"cpu"`` or ``"cuda"`` ...: what was named, or where the model is."""
    if device is not None:
        text = str(device)
        return "cuda" if text[:1].isdigit() else torch.device(text).type
    first = next(model.parameters(), None)
    return "cpu" if first is None or first.device.type == "meta" else first.device.type


def techniques_of(model: nn.Module, technique: str | Mapping[str, str]) -> dict[str, Technique]:
    """Resolve a technique, one for all blocks or by name."""
    if isinstance(technique, str):
        parsed = Technique.parse(technique)
        return dict.fromkeys(block_names(model), parsed)
    return {name: Technique.parse(text) for name, text in technique.items()}


def validation_peak(validation: Validation, model: nn.Module, setting: Setting) -> int:
    """Return the peak of a validation step, beside what training keeps meanwhile."""
    step, batch = validation
    ledger = Ledger(on_cpu=setting.device_type == "cpu")
    fakes = contextlib.nullcontext() if is_faked(model) else faked(model)
    with fakes, _evaluating(model), torch.no_grad():
        images = fake_batch(batch)
        enter_standing(ledger, model, setting)
        ledger.enter(t for t in tree_iter(images) if isinstance(t, torch.Tensor))
        with ledger, precision_context(setting, emulate=setting.device_type != "cpu"):
            step(model, images)
    return ledger.peak().nbytes


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
