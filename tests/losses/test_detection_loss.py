"""The loss equals its dense formulation, gradients included, and adds up exactly over any split of a batch."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from dense_reference import dense_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import Allocations, gradients, random_raw, random_targets

from ullage.config.loss import LossSettings
from ullage.errors import ConfigError, DataError
from ullage.geometry.targets import Targets
from ullage.losses.detection import DetectionLoss, distribution_focal
from ullage.losses.sums import LossSum
from ullage.nn.outputs import RawDetections

SIZE_HW = (96, 160)


def _batch(
    seed: int, boxes: list[int], *, classes: int = 5, dtype: torch.dtype = torch.float32
) -> tuple[RawDetections, Targets]:
    generator = torch.Generator().manual_seed(seed)
    raw = random_raw(generator, batch=len(boxes), size_hw=SIZE_HW, classes=classes, dtype=dtype)
    return raw, random_targets(generator, boxes=boxes, size_hw=SIZE_HW, classes=classes)


def _largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("classes", [1, 5])
def test_equals_the_dense_loss_and_its_gradient(label_smoothing: float, classes: int) -> None:
    raw, targets = _batch(1, [12, 0, 40], classes=classes)
    gains = {"box": 2.0, "cls": 0.3, "dfl": 5.0, "label_smoothing": label_smoothing}
    loss = DetectionLoss(num_classes=classes, **gains)(raw, targets)
    dense = dense_loss(raw, targets, **gains)
    assert loss.positives == dense.positives > 50
    assert not loss.normaliser.requires_grad
    torch.testing.assert_close(loss.normaliser, dense.normaliser, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.parts, dense.parts, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.total, dense.total, rtol=1e-5, atol=0)
    for found, expected in zip(gradients(loss.total * 3, raw), gradients(dense.total * 3, raw), strict=True):
        assert _largest_difference(found, expected) < 1e-5


def test_label_smoothing_moves_class_targets_only() -> None:
    raw, targets = _batch(2, [12, 20])
    plain = DetectionLoss(num_classes=5)(raw, targets)
    smooth = DetectionLoss(num_classes=5, label_smoothing=0.1)(raw, targets)
    assert torch.equal(smooth.normaliser, plain.normaliser)
    assert torch.equal(smooth.parts[[0, 2]], plain.parts[[0, 2]])
    assert smooth.parts[1] != plain.parts[1]
    # The mass of the targets is unchanged, so is the sum of the gradient over the classes of each anchor.
    rows = [gradients(loss.total, raw)[1].sum(-1) for loss in (plain, smooth)]
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(0, 2**31), st.data())
def test_parts_of_a_batch_add_up_to_the_whole(boxes: list[int], seed: int, data: st.DataObject) -> None:
    raw, targets = _batch(seed, boxes)
    loss = DetectionLoss(num_classes=5, label_smoothing=0.05)
    whole = loss(raw, targets)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(boxes) - 1)))) if len(boxes) > 1 else []
    ends = list(zip([0, *cuts], [*cuts, len(boxes)], strict=True))
    parts = [
        loss(raw._replace(bins_BAR=raw.bins_BAR[a:b], logits_BAK=raw.logits_BAK[a:b]), targets.images(a, b))
        for a, b in ends
    ]
    together: LossSum = reduce(add, parts)
    assert together.positives == whole.positives
    torch.testing.assert_close(together.total, whole.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(together.normaliser, whole.normaliser, rtol=1e-6, atol=0)
    torch.testing.assert_close(together.parts, whole.parts, rtol=1e-6, atol=0)
    torch.testing.assert_close(together.mean(), whole.mean(), rtol=1e-6, atol=0)
    for found, expected in zip(gradients(together.total, raw), gradients(whole.total, raw), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_a_batch_without_boxes_teaches_only_the_background() -> None:
    raw, targets = _batch(3, [0, 0])
    loss = DetectionLoss(num_classes=5)(raw, targets)
    assert loss.positives == 0
    assert loss.normaliser == 0
    torch.testing.assert_close(loss.total, 0.5 * torch.nn.functional.softplus(raw.logits_BAK).sum())
    assert loss.parts[0] == loss.parts[2] == 0
    assert torch.equal(loss.mean(), loss.total)
    bins, logits = gradients(loss.total, raw)
    assert torch.equal(bins, torch.zeros_like(bins))
    torch.testing.assert_close(logits, 0.5 * raw.logits_BAK.sigmoid())


def test_boxes_that_contain_no_anchor_count_as_none() -> None:
    raw, _ = _batch(4, [0])
    targets = Targets(torch.tensor([0]), torch.tensor([2]), torch.tensor([[0.0, 0.0, 3.0, 3.0]]), 1)
    loss = DetectionLoss(num_classes=5)(raw, targets)
    assert loss.positives == 0
    assert all(g.isfinite().all() for g in gradients(loss.total, raw))


def test_the_mean_divides_by_one_at_least() -> None:
    few = LossSum(torch.tensor(6.0), torch.tensor(0.25), torch.tensor([1.0, 2.0, 3.0]), 1)
    assert few.mean() == 6
    many = few + LossSum(torch.tensor(4.0), torch.tensor(3.75), torch.tensor([1.0, 2.0, 1.0]), 7)
    assert many.mean() == 2.5
    assert many.mean_parts().tolist() == [0.5, 1.0, 1.0]
    assert many.positives == 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_under_autocast_are_computed_in_float32(dtype: torch.dtype) -> None:
    raw, targets = _batch(5, [12, 3], dtype=dtype)
    loss = DetectionLoss(num_classes=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(raw, targets)
    exact = RawDetections(
        raw.bins_BAR.detach().float().requires_grad_(),
        raw.logits_BAK.detach().float().requires_grad_(),
        raw.centres_A2,
        raw.strides_A,
    )
    expected = loss(exact, targets)
    assert found.total.dtype == found.parts.dtype == found.normaliser.dtype == torch.float32
    assert torch.equal(found.total, expected.total)
    for half, full in zip(gradients(found.total, raw), gradients(expected.total, exact), strict=True):
        assert half.dtype == dtype
        assert torch.equal(half, full.to(dtype))


def test_transposed_outputs_give_the_same_loss() -> None:
    raw, targets = _batch(6, [12, 3])
    turned = raw._replace(
        bins_BAR=raw.bins_BAR.transpose(1, 2).contiguous().transpose(1, 2),
        logits_BAK=raw.logits_BAK.transpose(1, 2).contiguous().transpose(1, 2),
    )
    loss = DetectionLoss(num_classes=5)
    one, other = loss(raw, targets), loss(turned, targets)
    torch.testing.assert_close(one.total, other.total, rtol=1e-6, atol=0)
    for found, expected in zip(gradients(other.total, raw), gradients(one.total, raw), strict=True):
        torch.testing.assert_close(found, expected)


def test_logits_of_any_size_give_a_finite_loss() -> None:
    raw, targets = _batch(7, [12])
    huge = raw._replace(logits_BAK=raw.logits_BAK * 1e4)
    loss = DetectionLoss(num_classes=5)(huge, targets)
    assert loss.total.isfinite()
    assert all(g.isfinite().all() for g in gradients(loss.total, raw))


def test_not_a_number_reaches_the_total() -> None:
    raw, targets = _batch(8, [12])
    bins = raw.bins_BAR.detach().clone()
    bins[:] = torch.nan
    assert DetectionLoss(num_classes=5)(raw._replace(bins_BAR=bins), targets).total.isnan()
    logits = raw.logits_BAK.detach().clone()
    logits[0, 3, 1] = torch.nan
    assert DetectionLoss(num_classes=5)(raw._replace(logits_BAK=logits), targets).total.isnan()


def test_distances_between_bins_are_learnt_from_both() -> None:
    certain = torch.full((1, 4, 16), -60.0)
    certain[0, torch.arange(4), torch.tensor([0, 3, 14, 15])] = 60.0
    exact = torch.tensor([[0.0, 3.0, 14.0, 14.99]])
    assert distribution_focal(certain.flatten(1), exact)[0] == pytest.approx(0.01 * 120 / 4, rel=1e-3)
    beyond = torch.tensor([[-5.0, 3.0, 14.0, 99.0]])
    assert distribution_focal(certain.flatten(1), beyond)[0] == pytest.approx(0.01 * 120 / 4, rel=1e-3)
    half_way = torch.tensor([[0.0, 3.5, 14.0, 14.99]])
    assert distribution_focal(certain.flatten(1), half_way)[0] == pytest.approx((0.01 + 0.5) * 120 / 4, rel=1e-3)


def test_forward_and_backward_allocate_little_beside_the_gradients() -> None:
    generator = torch.Generator().manual_seed(9)
    raw = random_raw(generator, batch=16, size_hw=(320, 320), classes=80)
    targets = random_targets(generator, boxes=[600] + [10] * 15, size_hw=(320, 320), classes=80)
    returned = raw.bins_BAR.nbytes + raw.logits_BAK.nbytes
    with Allocations(*raw) as spent:
        gradients(DetectionLoss(num_classes=80)(raw, targets).total, raw)
    # No dense target (as large as the logits), no second gradient, no matrix of boxes times anchors: a third on top.
    assert spent.peak_bytes < 1.35 * returned


def test_settings_arrive() -> None:
    settings_ = LossSettings(box=1, cls=2, dfl=3, label_smoothing=0.25)
    assert DetectionLoss.from_settings(settings_, num_classes=7) == DetectionLoss(
        num_classes=7, box=1, cls=2, dfl=3, label_smoothing=0.25
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 1 class.*num_classes=0"):
        DetectionLoss(num_classes=0)
    with pytest.raises(ConfigError, match="gain dfl must be 0 or above, got -1"):
        DetectionLoss(num_classes=3, dfl=-1)
    with pytest.raises(ConfigError, match="gain box must be 0 or above, got nan"):
        DetectionLoss(num_classes=3, box=float("nan"))
    with pytest.raises(ConfigError, match=r"label_smoothing must be in \[0, 1\), got 1"):
        DetectionLoss(num_classes=3, label_smoothing=1.0)
    raw, targets = _batch(0, [3])
    with pytest.raises(DataError, match=r"predicts 5 classes.*built for 80"):
        DetectionLoss(num_classes=80)(raw, targets)
