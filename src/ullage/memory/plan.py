"""Estimates and plans: plain data, without torch, saved with a run and compared between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ullage.errors import ConfigError
from ullage.memory.technique import Fidelity
from ullage.units import format_bytes

SCHEMA = 1


@dataclass(frozen=True)
class Estimate:
    """Predicted memory of one training step, and of validation.

    Attributes:
        peak_bytes: Live tensors at the worst instant: what an allocator calls allocated.
        reserved_bytes: What the caching allocator of a GPU holds for them; on a CPU the same as ``peak_bytes``.
        process_bytes: Reserved bytes, and what the process needs beside its tensors (device context, libraries).
        val_peak_bytes: Live tensors at the worst instant of validation; 0 when it was not traced.
        by_category: The peak by what the bytes are for.
        by_block: The peak by the block that made the bytes.
        phase: What the step is doing at the peak: forward, loss, backward, optimizer.
        block: Block that is running at the peak; empty between blocks.
        device: Kind of device the figures are for.
    """

    peak_bytes: int
    reserved_bytes: int
    process_bytes: int
    val_peak_bytes: int
    by_category: Mapping[str, int]
    by_block: Mapping[str, int]
    phase: str
    block: str
    device: str

    @property
    def worst_bytes(self) -> int:
        """The larger of training and validation."""
        return max(self.peak_bytes, self.val_peak_bytes)

    def __str__(self) -> str:
        where = f"{self.phase} of {self.block}" if self.block else self.phase
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.by_category.items())
        validation = f"; validation {format_bytes(self.val_peak_bytes)}" if self.val_peak_bytes else ""
        reserved = f", {format_bytes(self.reserved_bytes)} reserved" if self.reserved_bytes != self.peak_bytes else ""
        return f"peak {format_bytes(self.peak_bytes)}{reserved} in {where} ({parts}){validation}"


@dataclass(frozen=True)
class Considered:
    """One way that was looked at.

    Attributes:
        name: What it would have been.
        accumulate: Micro-batches of a batch.
        peak_bytes: Its peak, predicted by the coarse model of the planner, or by a trace when ``traced``.
        slowdown: Its time a step against plain training.
        fits: Whether it stays within the budget.
        traced: Whether the engine itself was run on fake tensors to find the peak.
    """

    name: str
    accumulate: int
    peak_bytes: int
    slowdown: float
    fits: bool
    traced: bool


@dataclass(frozen=True)
class Plan:
    """What to do so that a step fits; data only, made by the planner, put in force by ``apply``.

    Attributes:
        batch: Images of an optimizer step.
        micro_batch: Images of one forward pass.
        accumulate: Forward passes of an optimizer step.
        blocks: Technique of each block that has one, by name of the submodule.
        precision: Type of matrix products; None leaves it to the step.
        predicted: Its memory.
        slowdown: Modelled time of a step against plain training of the whole batch.
        fidelity: ``bitwise``, ``reassociated`` or ``approximate``; ``fidelity_note`` says it in words.
        fidelity_note: What differs from plain training, if anything.
        val_batch: Images that validation takes at a time; 0 when it was not planned.
        budget_bytes: What was granted; None without a budget.
        considered: What else was looked at.
    """

    batch: int
    micro_batch: int
    accumulate: int
    blocks: Mapping[str, str]
    precision: str | None
    predicted: Estimate
    slowdown: float
    fidelity: Fidelity
    fidelity_note: str
    val_batch: int = 0
    budget_bytes: int | None = None
    considered: tuple[Considered, ...] = field(default=())

    @property
    def technique(self) -> str:
        """The techniques in use, in one word: ``none``, ``recompute`` ... or ``mixed``."""
        names = set(self.blocks.values())
        return names.pop() if len(names) == 1 else "mixed" if names else "none"

    def to_json(self) -> str:
        """Write the plan as JSON; ``from_json`` reads it back equal."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan.

        Raises:
            ConfigError: Not a plan, or one of another version.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            schema = data.pop("schema")
            if schema != SCHEMA:
                raise ConfigError(f"this plan has schema {schema}; this version reads schema {SCHEMA}: plan anew")
            data["predicted"] = Estimate(**data["predicted"])
            data["considered"] = tuple(Considered(**item) for item in data["considered"])
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"this is not a plan as 'ullage plan' writes it: {error}") from error

    def _worth_showing(self) -> list[Considered]:
        """Return all ways with the plan's number of passes, and of the others the smallest each."""
        shown: dict[tuple[object, ...], Considered] = {}
        for way in self.considered:
            own = way.accumulate == self.accumulate
            key = (way.accumulate, way.name, way.peak_bytes, way.slowdown) if own else (way.accumulate,)
            if key not in shown or way.peak_bytes < shown[key].peak_bytes:
                shown[key] = way
        return list(shown.values())

    def __str__(self) -> str:
        lines = [f"{'':2}{'way':<34}{'batch':>14}{'peak':>12}{'time':>8}  fits"]
        for way in self._worth_showing():
            is_chosen = way.traced and (way.peak_bytes, way.slowdown) == (need(self.predicted), self.slowdown)
            chosen = "> " if is_chosen else "  "
            about = "" if way.traced else "~"
            split = f"{self.batch}" if way.accumulate == 1 else f"{way.accumulate} x {-(-self.batch // way.accumulate)}"
            lines.append(
                f"{chosen}{way.name:<34}{split:>14}{about + format_bytes(way.peak_bytes):>12}{way.slowdown:>7.2f}x"
                f"  {'yes' if way.fits else 'no'}"
            )
        split = f"{self.accumulate} micro-batches of {self.micro_batch}" if self.accumulate > 1 else "in one pass"
        budget = f" of {format_bytes(self.budget_bytes)}" if self.budget_bytes else ""
        lines += [
            f"plan: batch {self.batch} {split}, technique {self.technique}"
            + (f" ({_counted(self.blocks)})" if self.technique == "mixed" else ""),
            f"predicted {self.predicted}",
            f"needs {format_bytes(need(self.predicted))}{budget} on {self.predicted.device}; "
            f"about {self.slowdown:.2f}x the time of plain training; {self.fidelity}: {self.fidelity_note}",
        ]
        return "\n".join(lines)


def need(estimate: Estimate) -> int:
    """Return the bytes that a budget is compared with: tensors on a CPU, the whole process on a GPU."""
    if estimate.device == "cpu":
        return estimate.worst_bytes
    return estimate.process_bytes + max(estimate.val_peak_bytes - estimate.peak_bytes, 0)


def _counted(blocks: Mapping[str, str]) -> str:
    counts: dict[str, int] = {}
    for name in blocks.values():
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())
