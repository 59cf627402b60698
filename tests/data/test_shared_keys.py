"""A batch shared out over processes: nobody's image twice, none lost, as many each, as many boxes as can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ullage.data.order import BatchKey, Keys, shared_keys


def keys_of(indices: list[int], batch: int) -> Keys:
    cuts = [tuple(indices[start : start + batch]) for start in range(0, len(indices), batch)]

    def key_of(number: int) -> BatchKey:
        cut = cuts[number]
        return BatchKey(3, 5, cut, (64, 96), tuple(indices), tuple((i, i + 1) for i in cut))

    return Keys(len(cuts), key_of)


@given(
    boxes=st.lists(st.integers(0, 500), min_size=1, max_size=40),
    batch=st.integers(1, 16),
    ranks=st.integers(1, 6),
    seed=st.integers(0, 9),
)
def test_the_parts_are_the_batch(boxes: list[int], batch: int, ranks: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(boxes)).tolist()
    whole, counts = keys_of(order, batch), np.array(boxes)
    parts = [shared_keys(whole, counts, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(whole)}, "the same number of batches everywhere"
    for number, key in enumerate(whole):
        cut = [part[number] for part in parts]
        assert sorted(index for one in cut for index in one.indices) == sorted(key.indices)
        sizes = [len(one.indices) for one in cut]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True), "who has no image is at the end"
        for one in cut:
            assert (one.epoch, one.epochs, one.size_hw, one.nearby) == (key.epoch, key.epochs, key.size_hw, key.nearby)
            assert [one.partners(place) for place in range(len(one.indices))] == [
                key.partners(key.indices.index(index)) for index in one.indices
            ], "an image keeps its window"
        loads = [sum(boxes[index] for index in one.indices) for one in cut if one.indices]
        crowded = max(boxes[index] for index in key.indices)
        if len(set(sizes)) == 1:
            assert max(loads) - min(loads) <= crowded


def test_crowds_go_apart() -> None:
    counts = np.array([100, 90, 1, 1, 1, 1])
    first, second = (shared_keys(keys_of([0, 1, 2, 3, 4, 5], 6), counts, rank=r, ranks=2)[0] for r in (0, 1))
    assert (0 in first.indices) != (1 in first.indices)
    assert len(first.indices) == len(second.indices) == 3


@pytest.mark.parametrize(("count", "ranks"), [(7, 3), (2, 4), (0, 2)])
def test_every_batch_of_judging_belongs_to_one(count: int, ranks: int) -> None:
    whole = keys_of(list(range(count)), 1)
    parts = [list(whole.every(ranks, start=rank)) for rank in range(ranks)]
    assert sorted(key.indices for part in parts for key in part) == [key.indices for key in whole]
