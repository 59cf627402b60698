"""Choose a technique for every block: the least time within a budget. Pure arithmetic, no torch.

Backward passes the blocks from the last to the first. While it is in block i, what the blocks up to i keep is there,
and what block i makes again. So block i may need ``kept(1..i) + transient(i) + gradients(i..n)``; every one of these
sums has to stay below the budget. That is a knapsack whose sack is checked at every item: solved exactly by walking
through the blocks with the set of undominated (bytes kept, seconds added) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GRAIN = 4096  # bytes kept are counted in this part of all that could be kept, rounded up


@dataclass(frozen=True)
class Option:
    """One technique for one block.

    Attributes:
        name: The technique.
        kept_bytes: What stays until backward reaches the block.
        transient_bytes: What is there in addition while backward is in the block.
        seconds: Time it adds, in any unit.
        blocks: Technique of each submodule, by name.
    """

    name: str
    kept_bytes: int
    transient_bytes: int
    seconds: float
    blocks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Block:
    """One block with its options.

    Attributes:
        name: Of the submodule.
        options: At least one.
        gradient_bytes: Gradients of its parameters, there once backward has passed.
    """

    name: str
    options: tuple[Option, ...]
    gradient_bytes: int


@dataclass(frozen=True)
class Choice:
    """The result: an option a block, the time they add, the peak the model expects."""

    options: tuple[Option, ...]
    seconds: float
    peak_bytes: int


def peak_of(blocks: Sequence[Block], options: Sequence[Option], *, static_bytes: int, end_bytes: int) -> int:
    """Return the peak of a choice: ``end_bytes`` is what the loss needs while everything is kept."""
    gradients = sum(block.gradient_bytes for block in blocks)
    level, peak = static_bytes, 0
    for block, option in zip(blocks, options, strict=True):
        level += option.kept_bytes
        peak = max(peak, level + option.transient_bytes + gradients)
        gradients -= block.gradient_bytes
    return max(peak, level + end_bytes)


def least_peak(blocks: Sequence[Block], *, static_bytes: int, end_bytes: int) -> int:
    """Return a peak that no choice goes below, without a search: every block at its best for itself."""
    gradients = sum(block.gradient_bytes for block in blocks)
    level, peak = static_bytes, 0
    for block in blocks:
        peak = max(peak, level + min(o.kept_bytes + o.transient_bytes for o in block.options) + gradients)
        level += min(o.kept_bytes for o in block.options)
        gradients -= block.gradient_bytes
    return max(peak, level + end_bytes)


def choose(blocks: Sequence[Block], *, budget_bytes: int, static_bytes: int, end_bytes: int) -> Choice | None:
    """Return the choice that adds the least time and stays within the budget; None when there is none.

    More budget never gives a slower choice, and the same input gives the same choice: ties go to fewer bytes kept, then
    to the earlier option.
    """
    largest = sum(max(o.kept_bytes for o in block.options) for block in blocks)
    grain = max(largest // GRAIN, 1)
    gradients = sum(block.gradient_bytes for block in blocks)
    # (grains kept, seconds, picked options linked backwards)
    frontier: list[tuple[int, float, tuple[object, ...]]] = [(0, 0.0, ())]
    for block in blocks:
        reached: dict[int, tuple[float, tuple[object, ...]]] = {}
        for kept, seconds, picked in frontier:
            for index, option in enumerate(block.options):
                now = kept + -(-option.kept_bytes // grain)
                if static_bytes + now * grain + option.transient_bytes + gradients > budget_bytes:
                    continue
                total = seconds + option.seconds
                if now not in reached or total < reached[now][0]:
                    reached[now] = (total, (picked, index))
        frontier = []
        for kept in sorted(reached):
            total, picked = reached[kept]
            if not frontier or total < frontier[-1][1]:
                frontier.append((kept, total, picked))
        gradients -= block.gradient_bytes
    fitting = [state for state in frontier if static_bytes + state[0] * grain + end_bytes <= budget_bytes]
    if not fitting:
        return None
    _, seconds, picked = min(fitting, key=lambda state: (state[1], state[0]))
    options: list[Option] = []
    for block in reversed(blocks):
        picked, index = picked[0], picked[1]  # type: ignore[misc,assignment]
        options.append(block.options[index])  # type: ignore[index]
    options.reverse()
    peak = peak_of(blocks, options, static_bytes=static_bytes, end_bytes=end_bytes)
    return Choice(tuple(options), seconds, peak)
