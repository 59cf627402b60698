"""Batches of like shape: every image once, no canvas larger than it must be, and yet shuffled, for any ranks."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_sets import make_set

from ullage.config.data import STRIDE
from ullage.data.index import DetectionSet
from ullage.data.order import BatchKey, shared_keys, train_keys
from ullage.geometry.letterbox import tight_size

SIZES = st.lists(st.tuples(st.integers(20, 2000), st.integers(20, 2000)), min_size=1, max_size=60)
SIDES = st.sampled_from([64, 320, 640])


def rect_keys(
    dataset: DetectionSet,
    *,
    batch: int,
    imgsz: int,
    seed: int = 0,
    epoch: int = 0,
    sizes: tuple[int, int] | None = None,
) -> list[BatchKey]:
    return list(
        train_keys(dataset, batch=batch, imgsz=imgsz, sizes=sizes, rect=True, seed=seed, epoch=epoch, epochs=99)
    )


def plain_set(sizes: list[tuple[int, int]]) -> DetectionSet:
    return make_set(sizes, [[] for _ in sizes])


@settings(max_examples=100, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 9), imgsz=SIDES, seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_every_image_once_on_the_smallest_canvas_that_holds_the_batch(sizes, batch, imgsz, seed, epoch):
    keys = rect_keys(plain_set(sizes), batch=batch, imgsz=imgsz, seed=seed, epoch=epoch)
    assert sorted(index for key in keys for index in key.indices) == list(range(len(sizes)))
    assert sum(len(key.indices) != batch for key in keys) <= 1
    for key in keys:
        needs = np.array([tight_size(sizes[index], imgsz) for index in key.indices])
        assert key.size_hw == tuple(needs.max(0))
        assert all(side % STRIDE == 0 and side <= -(-imgsz // STRIDE) * STRIDE for side in key.size_hw)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_only_batches_between_two_shapes_are_padded_for_others(sizes, batch, seed):
    """Batches with images of several shapes are at most as many as there are borders between shapes."""
    keys = rect_keys(plain_set(sizes), batch=batch, imgsz=320, seed=seed)
    shapes = [{h / w for h, w in (tight_size(sizes[index], 320) for index in key.indices)} for key in keys]
    kinds = {shape for each in shapes for shape in each}
    assert sum(len(each) > 1 for each in shapes) <= len(kinds) - 1
    ordered = sorted(shapes, key=min)
    assert all(max(one) <= min(other) for one, other in pairwise(ordered))


def test_images_that_need_the_same_canvas_meet_by_chance():
    """Their own shapes all differ a little; by those they would meet the same neighbours in every epoch."""
    sizes = [(480 - number % 30, 640) for number in range(60)]  # 451 to 480 rows: all need 480
    dataset = plain_set(sizes)
    met: Counter[tuple[int, int]] = Counter()
    for epoch in range(200):
        for key in rect_keys(dataset, batch=6, imgsz=640, epoch=epoch):
            met.update((a, b) for a in key.indices for b in key.indices if a < b)
    # Each pair meets in 5 of 59 cases: 17 times in 200 epochs, and hardly ever less than 3 or more than 40 times.
    assert len(met) == 60 * 59 // 2
    assert min(met.values()) >= 3
    assert max(met.values()) <= 40


def test_shapes_come_in_any_order():
    sizes = [(640, 320)] * 40 + [(320, 640)] * 40
    dataset = plain_set(sizes)
    tall_first = 0
    for epoch in range(60):
        heights = [key.size_hw[0] for key in rect_keys(dataset, batch=4, imgsz=320, epoch=epoch)]
        assert heights not in (sorted(heights), sorted(heights, reverse=True))
        tall_first += heights[0] == 320
    assert 15 <= tall_first <= 45


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, batch=st.integers(1, 9), ranks=st.integers(1, 4), epoch=st.integers(0, 3))
def test_ranks_share_every_batch_on_the_same_canvas(sizes, batch, ranks, epoch):
    dataset = plain_set(sizes)
    whole = rect_keys(dataset, batch=batch, imgsz=320, epoch=epoch, sizes=(128, 320))
    keys = train_keys(
        dataset, batch=batch, imgsz=320, sizes=(128, 320), rect=True, seed=0, epoch=epoch, epochs=99
    )  # fmt: skip
    parts = [list(shared_keys(keys, np.diff(dataset.offsets), rank=rank, ranks=ranks)) for rank in range(ranks)]
    for number, key in enumerate(whole):
        shares = [part[number] for part in parts]
        assert sorted(index for share in shares for index in share.indices) == sorted(key.indices)
        assert {share.size_hw for share in shares} == {key.size_hw}
        counts = [len(share.indices) for share in shares]
        assert max(counts) - min(counts) <= 1
