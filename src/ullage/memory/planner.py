"""Find the fastest exact way to run a step within a budget.

Three forward passes and one nested step, traced, tell what each block keeps under each technique. A knapsack over the
blocks makes a ladder of choices, each needing less memory and more time than the one above it. The search starts at the
rung where the model sees the budget, and traces rungs in full, under the engine itself, until one fits and the next
faster one does not. What is printed and promised is always a full trace.

Exactness comes first: one pass before several, since micro-batches change BatchNorm's statistics; within a number of
passes the least time wins. ``int8`` and lower precision are never chosen silently.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_iter, tree_map_only

from ullage.errors import ConfigError, MemoryBudgetError
from ullage.memory.choice import Block, Choice, choose, least_peak, peak_of
from ullage.memory.costs import Costs, block_costs
from ullage.memory.device import CUDA_WORKSPACE_BYTES, context_bytes
from ullage.memory.estimate import Validation, device_kind, estimate_of, techniques_of, validation_peak
from ullage.memory.fakes import fake_batch, faked
from ullage.memory.ledger import Ledger
from ullage.memory.plan import Considered, Estimate, Plan, need
from ullage.memory.technique import Technique
from ullage.memory.trace import OptimizerLike, PrecisionName, Setting, Step, Trace, enter_standing, trace_step
from ullage.units import format_bytes, parse_bytes

OVERHEAD = {"cuda": 1.2}  # a GPU's allocator reserves more than is allocated: where the search begins
DOUBT = 0.98  # a number of passes is not even traced when the model finds it too large by more than this
GOOD_USE = 0.9  # the next faster choice is not tried when this part of the budget is used
STEP = 0.87  # from one rung of the ladder to the next
UNIFORM = ("none", "recompute", "block", "nested")


def plan(
    step: Step,
    model: nn.Module,
    batch: Any,
    *,
    budget: int | str | None = None,
    technique: str = "auto",
    optimizer: OptimizerLike = None,
    precision: PrecisionName | None = None,
    device: str | torch.device | None = None,
    average: bool = False,
    accumulates: bool = False,
    micro_batch: int | None = None,
    validation: Validation | None = None,
) -> Plan:
    """Find how to run a step within a budget.

    Args:
        step: ``step(model, batch)`` returns the loss; see ``estimate``.
        model: Any module.
        batch: The whole batch of an optimizer step; every tensor's first dimension is the image.
        budget: Bytes or text such as ``"8GB"``: live tensors on a CPU, the whole process on a GPU. None: no limit.
        technique: ``"auto"`` chooses a technique for every block; any other name forces it on all.
        optimizer: As in ``estimate``.
        precision: Type of matrix products; None leaves it to the step.
        device: Kind of device that will train.
        average: A moving average of the weights is kept.
        accumulates: The batch is one of several whose gradients make one update, so earlier ones' may be there.
        micro_batch: Images of a forward pass; None chooses.
        validation: Step and batch of validation.

    Returns:
        The plan, with what was considered.

    Raises:
        MemoryBudgetError: Nothing fits; the message names what comes nearest.
        ConfigError: Unknown technique or optimizer, batch without tensors, or a step that needs values.
    """
    granted = parse_bytes(budget) if budget is not None else None
    setting = Setting(precision, device_kind(model, device), optimizer, average, accumulates)
    with faked(model), _collector_at_rest():
        search = _Search(step, model, fake_batch(batch), setting, granted)
        val_batch = search.fit_validation(validation) if validation is not None else 0
        sizes = [micro_batch] if micro_batch is not None else list(micro_batches(search.images))
        if granted is None or technique != "auto":
            name = "none" if technique == "auto" else technique
            found = search.forced(name, sizes if granted is not None else sizes[:1])
        else:
            found = search.best(sizes)
        if found is None:
            raise MemoryBudgetError(search.nothing_fits())
    return replace(found, val_batch=val_batch)


@contextlib.contextmanager
def _collector_at_rest() -> Generator[None]:
    """Keep Python's garbage collector from walking through the many small objects of a trace."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def micro_batches(images: int) -> Iterable[int]:
    """Return the sizes of micro-batches worth trying, largest first: one for each number of passes."""
    seen: set[int] = set()
    passes = 1
    while passes <= images:
        size = -(-images // passes)
        if size not in seen:
            seen.add(size)
            yield size
        passes += 1 if passes < 8 else max(passes // 4, 1)
    if 1 not in seen:
        yield 1


class _Search:
    """The state of one search."""

    def __init__(self, step: Step, model: nn.Module, batch: Any, setting: Setting, budget: int | None) -> None:
        self.step, self.model, self.batch, self.setting, self.budget = step, model, batch, setting, budget
        self.images = image_count(batch)
        self.val_peak_bytes = 0
        self.considered: list[Considered] = []
        self.has_norms = any(isinstance(m, _NormBase) for m in model.modules())
        self.factor = OVERHEAD.get(setting.device_type, 1.0)  # what traces showed against the model's figures

    @cached_property
    def costs(self) -> Costs:
        """What the blocks keep and how long they take, for the whole batch."""
        return block_costs(self.step, self.model, self.batch, replace(self.setting, accumulates=False))

    def fit_validation(self, validation: Validation) -> int:
        """Return how many images validation takes at a time; its peak, beyond what stands, follows their number."""
        step, batch = validation
        images = everything = image_count(batch)
        peak = validation_peak((step, fake_batch(batch)), self.model, self.setting)
        ledger = Ledger()
        enter_standing(ledger, self.model, self.setting)
        fixed = ledger.current_bytes
        while (
            self.budget is not None
            and images > 1
            and self._needed(fixed + (peak - fixed) * images // everything) > self.budget
        ):
            images = -(-images // 2)
        self.val_peak_bytes = fixed + (peak - fixed) * images // everything
        return images

    def forced(self, technique: str, sizes: Sequence[int]) -> Plan | None:
        """Use one technique everywhere; only the number of passes is left to choose."""
        techniques = {name: str(t) for name, t in techniques_of(self.model, technique).items() if not t.is_none}
        for size in sizes:
            traced = self._trace(techniques, size)
            slowdown = self._slowdown(techniques, size)
            fits = self._fits(traced)
            self._note(technique, size, need(traced), slowdown, fits=fits, traced=True)
            if fits:
                return self._plan(techniques, size, traced, slowdown)
        return None

    def best(self, sizes: Sequence[int]) -> Plan | None:
        """Choose a technique for every block, in as few passes as possible."""
        assert self.budget is not None
        for size in sizes:
            blocks, plain = self._options(size)
            for index, name in enumerate(UNIFORM):
                options = [block.options[index] for block in blocks]
                peak = self._needed(peak_of(blocks, options, **self._ends(size)))
                slowdown = 1 + sum(o.seconds for o in options) / plain
                self._note(f"{name} everywhere", size, peak, slowdown, fits=peak <= self.budget, traced=False)
            if (found := self._refine(blocks, plain, size)) is not None:
                return found
        return None

    def _refine(self, blocks: list[Block], plain: float, size: int) -> Plan | None:
        """Find the fastest rung of the ladder whose trace fits."""
        assert self.budget is not None
        ends = self._ends(size)
        fixed = self._needed(ends["static_bytes"])

        def is_hopeless(least: int) -> bool:
            assert self.budget is not None
            return fixed + self.factor * DOUBT * least > self.budget

        if is_hopeless(self._needed(least_peak(blocks, **ends)) - fixed):
            return None
        rungs = ladder(blocks, **ends)
        modelled = [self._needed(rung.peak_bytes) - fixed for rung in rungs]
        if is_hopeless(modelled[0]):
            return None
        best: Plan | None = None
        tried: set[int] = set()
        at = self._guess(modelled, fixed)
        while 0 <= at < len(rungs) and at not in tried:
            tried.add(at)
            techniques = {name: t for option in rungs[at].options for name, t in option.blocks}
            traced = self._trace(techniques, size)
            slowdown, needed = 1 + rungs[at].seconds / plain, need(traced)
            self.factor = max(needed - fixed, 1) / max(modelled[at], 1)
            fits = needed <= self.budget
            self._note("chosen block by block", size, needed, slowdown, fits=fits, traced=True)
            if fits and (best is None or slowdown < best.slowdown):
                best = self._plan(techniques, size, traced, slowdown)
            if (fits and needed > GOOD_USE * self.budget) or is_hopeless(modelled[0]):
                break
            guess = self._guess(modelled, fixed)
            at = max(at + 1, guess) if fits else min(at - 1, guess)
        if best is None and size in (self.images, 1):  # between them, another pass costs less time
            return self._deepest(size)
        return best

    def _deepest(self, size: int) -> Plan | None:
        """Nest every block as deep as it must be.

        What waits between blocks does not depend on the depth, so a trace a depth tells what every block needs at it.
        """
        assert self.budget is not None
        parts = [cost.part for cost in self.costs.blocks]
        chosen: dict[str, int] = {}
        for depth in range(1, max(part.depth for part in parts) + 1):
            nests = {part.name: part.inside(min(depth, part.depth)) for part in parts}
            techniques = dict(t for nest in nests.values() for t in nest.techniques)
            trace = self._traced(techniques, size, blocks=list(nests))
            peaks, whole = trace.backward_peaks(), estimate_of(trace, self.setting)
            for part in parts:
                reserved = peaks.get(part.name, 0) * whole.reserved_bytes // whole.peak_bytes
                fits = self._needed(reserved) <= self.budget
                if part.name not in chosen and (fits or depth >= part.depth):
                    chosen[part.name] = depth
            if len(chosen) == len(parts):
                break
        nests = [part.inside(min(chosen[part.name], part.depth)) for part in parts]
        techniques = dict(t for nest in nests for t in nest.techniques)
        slowdown = 1 + sum(nest.seconds for nest in nests) / self.costs.plain_seconds
        traced = self._trace(techniques, size)
        fits = self._fits(traced)
        self._note("nested as deep as it must be", size, need(traced), slowdown, fits=fits, traced=True)
        return self._plan(techniques, size, traced, slowdown) if fits else None

    def _guess(self, modelled: Sequence[int], fixed: int) -> int:
        """Return the highest rung that fits, by the model and what traces showed against it."""
        assert self.budget is not None
        return max(sum(fixed + self.factor * nbytes <= self.budget for nbytes in modelled) - 1, 0)

    def _trace(self, techniques: Mapping[str, str], size: int) -> Estimate:
        return estimate_of(self._traced(techniques, size), self._setting(size), self.val_peak_bytes)

    def _traced(self, techniques: Mapping[str, str], size: int, blocks: Sequence[str] | None = None) -> Trace:
        return trace_step(
            self.step, self.model, take(self.batch, size), setting=self._setting(size), blocks=blocks,
            techniques={name: Technique.parse(text) for name, text in techniques.items()},
        )  # fmt: skip

    def _setting(self, size: int) -> Setting:
        """Return what holds when so many images go through the model at a time."""
        waiting = 0
        if self.setting.device_type == "cpu":  # elsewhere they wait in the host's memory
            whole = sum(t.nbytes for t in tree_iter(self.batch) if isinstance(t, torch.Tensor))
            waiting = whole - whole * size // self.images
        accumulates = self.setting.accumulates or size < self.images
        return replace(self.setting, accumulates=accumulates, waiting_bytes=waiting)

    def _options(self, size: int) -> tuple[list[Block], float]:
        share = size / self.images
        return [cost.block(share) for cost in self.costs.blocks], self.costs.plain_seconds * share

    def _ends(self, size: int) -> dict[str, int]:
        first, setting = self.costs.blocks[0], self._setting(size)
        static = first.static_bytes + setting.waiting_bytes + (first.gradients_bytes if setting.accumulates else 0)
        return {"static_bytes": static, "end_bytes": int(first.end_bytes * size / self.images)}

    def _needed(self, peak: int) -> int:
        """Return what a peak of live tensors asks of the budget."""
        kind = self.setting.device_type
        return peak + context_bytes(kind) + (CUDA_WORKSPACE_BYTES if kind == "cuda" else 0)

    def _fits(self, predicted: Estimate) -> bool:
        return self.budget is None or need(predicted) <= self.budget

    def _slowdown(self, techniques: Mapping[str, str], size: int) -> float:
        if not techniques:
            return 1.0
        blocks, plain = self._options(size)
        added = 0.0
        for block in blocks:
            wanted = techniques.get(block.name, "none")
            added += next((o.seconds for o in block.options if o.name == wanted), 0.0)
        return 1 + added / plain

    def _note(self, name: str, size: int, peak: int, slowdown: float, *, fits: bool, traced: bool) -> None:
        self.considered.append(Considered(name, -(-self.images // size), peak, round(slowdown, 3), fits, traced))

    def _plan(self, techniques: Mapping[str, str], size: int, predicted: Estimate, slowdown: float) -> Plan:
        used = [Technique.parse(text) for text in techniques.values()]
        passes = -(-self.images // size)
        if any(t.fidelity == "approximate" for t in used):
            fidelity, note = "approximate", "kept maps are rounded to eight bits"
        elif passes > 1 and self.has_norms:
            fidelity, note = "approximate", f"BatchNorm sees {size} images at a time instead of {self.images}"
        elif passes > 1:
            fidelity, note = "reassociated", "the same gradient, summed in another order"
        else:
            fidelity, note = "bitwise", "the same bits as plain training"
        return Plan(
            batch=self.images,
            micro_batch=size,
            accumulate=passes,
            blocks=dict(techniques),
            precision=self.setting.precision,
            predicted=predicted,
            slowdown=round(slowdown, 3),
            fidelity=fidelity,  # type: ignore[arg-type]
            fidelity_note=note,
            budget_bytes=self.budget,
            considered=tuple(self.considered),
        )

    def nothing_fits(self) -> str:
        """Say what comes nearest."""
        assert self.budget is not None
        traced = [way for way in self.considered if way.traced]
        nearest = min(traced or self.considered, key=lambda way: way.peak_bytes)
        size, static = -(-self.images // nearest.accumulate), self.costs.blocks[0].static_bytes
        fixed = self._needed(static + self.costs.blocks[0].gradients_bytes)
        text = (
            f"nothing fits {format_bytes(self.budget)} on {self.setting.device_type}: the smallest way, "
            f"'{nearest.name}' with {size} image{'s' * (size > 1)} at a time, needs {format_bytes(nearest.peak_bytes)}"
        )
        if fixed >= self.budget:
            alone = f"weights, gradients, optimizer and context alone take {format_bytes(fixed)}"
            return f"{text}; {alone}: use a smaller model"
        side = ((self.budget - fixed) / max(nearest.peak_bytes - fixed, 1)) ** 0.5
        return f"{text}; with images of {side:.0%} of the side, or a smaller model, it would fit"


def ladder(blocks: Sequence[Block], *, static_bytes: int, end_bytes: int) -> list[Choice]:
    """Return the knapsack's choices for ever larger budgets, smallest first. It does not depend on what was granted."""
    ends = {"static_bytes": static_bytes, "end_bytes": end_bytes}
    options = tuple(block.options[0] for block in blocks)
    plain = Choice(options, sum(option.seconds for option in options), peak_of(blocks, options, **ends))
    rungs, room, too_little = [plain], (plain.peak_bytes - static_bytes) * STEP, 0.0
    while room > 1.02 * too_little:
        choice = choose(blocks, budget_bytes=static_bytes + int(room), **ends)
        if choice is None:
            too_little = room
            room = (too_little + rungs[-1].peak_bytes - static_bytes) / 2
            continue
        if choice.options != rungs[-1].options:
            rungs.append(choice)
        reached = choice.peak_bytes - static_bytes
        room = (too_little + reached) / 2 if too_little else min(room, reached) * STEP
    return rungs[::-1]


def image_count(batch: Any) -> int:
    """Return the size of the first dimension of a batch's first tensor.

    Raises:
        ConfigError: There is no tensor.
    """
    first = next((t for t in tree_iter(batch) if isinstance(t, torch.Tensor) and t.dim() > 0), None)
    if first is None:
        raise ConfigError("the batch holds no tensors to plan for")
    return first.shape[0]


def take(batch: Any, images: int) -> Any:
    """Make a fake batch like a fake one, of so many images."""
    return tree_map_only(torch.Tensor, lambda t: torch.empty_like(t[:images]) if t.dim() else t, batch)
