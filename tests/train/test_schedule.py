"""Rates and accumulation as functions of the position."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ullage.config import OptimSettings
from ullage.train.schedule import OptimChoice, Schedule, choose_optimiser

SGD = OptimChoice("SGD", 0.01, 0.937)


def schedule(batch: int = 16, batches: int = 13, **settings: object) -> Schedule:
    return Schedule(OptimSettings(**settings), SGD, batch, batches)


@given(
    batch=st.integers(1, 300), batches=st.integers(1, 400), epoch=st.integers(0, 5),
    nbs=st.integers(1, 256), warmup=st.sampled_from([0.0, 0.5, 3.0]),
)  # fmt: skip
def test_groups_cover_every_batch_and_never_exceed_the_nominal_batch(
    batch: int, batches: int, epoch: int, nbs: int, warmup: float
) -> None:
    plan = schedule(batch, batches, nbs=nbs, warmup_epochs=warmup, epochs=10)
    sizes = plan.groups(epoch)
    assert sum(sizes) == batches
    assert all(1 <= size <= plan.accumulate for size in sizes)


def test_groups_after_the_warm_up_are_even() -> None:
    assert schedule(16, 13, warmup_epochs=0).groups(3) == [4, 3, 3, 3]
    assert schedule(64, 5, warmup_epochs=0).groups(0) == [1, 1, 1, 1, 1]


def test_groups_grow_during_the_warm_up() -> None:
    sizes = schedule(16, 50, epochs=60).groups(0) + schedule(16, 50, epochs=60).groups(1)
    assert sizes[0] == 1
    assert sizes == sorted(sizes) or max(sizes) <= 4
    assert schedule(16, 50, epochs=60).groups(0)[0] < schedule(16, 50, epochs=60).groups(10)[0]


def test_rates_rise_linearly_then_fall_to_the_last_rate() -> None:
    plan = schedule(16, 100, epochs=10, warmup_bias_lr=0.1)
    assert plan.warmup_batches == 300
    lr, bias_lr, momentum = plan.rates(0, 0.0)
    assert (lr, bias_lr, momentum) == (0.0, 0.1, 0.8)
    assert plan.rates(150, 0.0)[0] == pytest.approx(0.005)
    assert plan.rates(300, 0.0) == pytest.approx((0.01, 0.01, 0.937))
    assert plan.rates(1000, 1.0)[0] == pytest.approx(0.0001)


def test_cosine_and_linear_share_their_ends_and_the_middle() -> None:
    line, cosine = schedule(lrf=0.1), schedule(lrf=0.1, cos_lr=True)
    for progress in (0.0, 0.5, 1.0):
        assert line.decay(progress) == pytest.approx(cosine.decay(progress))
    assert cosine.decay(0.25) > line.decay(0.25)
    assert line.decay(1.7) == pytest.approx(0.1)


def test_a_short_run_warms_up_for_at_most_half_of_it() -> None:
    assert schedule(16, 13, epochs=60).warmup_batches == 100
    assert schedule(16, 13, epochs=4).warmup_batches == 26
    assert schedule(16, 13, epochs=60, warmup_epochs=0).warmup_batches == 0


def test_weight_decay_follows_the_images_of_a_step() -> None:
    assert schedule(16, 13).weight_decay == pytest.approx(5e-4)
    assert schedule(128, 13).weight_decay == pytest.approx(1e-3)


def test_auto_takes_adamw_for_short_runs_and_sgd_for_long_ones() -> None:
    short = choose_optimiser(OptimSettings(epochs=60), images=205, batch=16, num_classes=3)
    assert short == OptimChoice("AdamW", round(0.002 * 5 / 7, 6), 0.9)
    long = choose_optimiser(OptimSettings(epochs=600), images=118_000, batch=16, num_classes=80)
    assert long == OptimChoice("SGD", 0.01, 0.9)
    named = choose_optimiser(OptimSettings(optimizer="SGD", lr0=0.02), images=10, batch=16, num_classes=3)
    assert named == OptimChoice("SGD", 0.02, 0.937)
