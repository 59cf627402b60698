"""The knapsack over blocks: never over budget, never slower with more, the same twice, as good as trying everything."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ullage.memory.choice import GRAIN, Block, Option, choose, peak_of

options = st.builds(
    Option,
    name=st.sampled_from(["a", "b", "c"]),
    kept_bytes=st.integers(0, 10**6),
    transient_bytes=st.integers(0, 10**6),
    seconds=st.floats(0, 10),
)
blocks = st.lists(
    st.builds(
        Block,
        name=st.just("block"),
        options=st.lists(options, min_size=1, max_size=4).map(tuple),
        gradient_bytes=st.integers(0, 10**5),
    ),
    min_size=1,
    max_size=5,
)
ends = {"static_bytes": 1000, "end_bytes": 50_000}


@given(blocks=blocks, budget=st.integers(0, 6 * 10**6))
def test_it_is_never_over_budget_and_says_its_peak(blocks: list[Block], budget: int) -> None:
    choice = choose(blocks, budget_bytes=budget, **ends)
    if choice is not None:
        assert choice.peak_bytes == peak_of(blocks, choice.options, **ends) <= budget
        assert choice.seconds == sum(option.seconds for option in choice.options)


@given(blocks=blocks, budget=st.integers(0, 6 * 10**6), more=st.integers(0, 10**6))
def test_more_memory_is_never_slower(blocks: list[Block], budget: int, more: int) -> None:
    less, rich = (choose(blocks, budget_bytes=b, **ends) for b in (budget, budget + more))
    if less is not None:
        assert rich is not None
        assert rich.seconds <= less.seconds


@given(blocks=blocks, budget=st.integers(0, 6 * 10**6))
def test_the_same_input_gives_the_same_choice(blocks: list[Block], budget: int) -> None:
    assert choose(blocks, budget_bytes=budget, **ends) == choose(list(blocks), budget_bytes=budget, **ends)


@given(blocks=blocks, budget=st.integers(0, 6 * 10**6))
def test_nothing_better_exists_beyond_the_rounding(blocks: list[Block], budget: int) -> None:
    slack = len(blocks) * (sum(max(o.kept_bytes for o in b.options) for b in blocks) // GRAIN + 1)
    fitting = [
        sum(option.seconds for option in ways)
        for ways in itertools.product(*(block.options for block in blocks))
        if peak_of(blocks, ways, **ends) <= budget - slack
    ]
    choice = choose(blocks, budget_bytes=budget, **ends)
    if fitting:
        assert choice is not None
        assert choice.seconds <= min(fitting) + 1e-9


def test_backward_needs_what_is_kept_before_a_block_and_the_gradients_behind_it() -> None:
    first = Block("first", (Option("none", 100, 10, 0.0),), gradient_bytes=5)
    second = Block("second", (Option("none", 50, 30, 0.0),), gradient_bytes=7)
    # backward is in "second": both are kept, its own gradients come: 100 + 50 + 30 + 7; in "first": 100 + 10 + 12
    assert peak_of([first, second], [first.options[0], second.options[0]], static_bytes=1000, end_bytes=0) == 1187
    assert peak_of([first, second], [first.options[0], second.options[0]], static_bytes=0, end_bytes=500) == 650
