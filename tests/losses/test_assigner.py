"""The sparse assignment equals the dense one, in bounded memory and in time that follows the boxes."""

from __future__ import annotations

import pytest
import torch
from dense_reference import dense_assign
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_inputs import Allocations, random_raw, random_targets

from ullage.errors import DataError
from ullage.geometry.targets import Targets
from ullage.losses.assigner import Assignment, assign
from ullage.nn.outputs import RawDetections

SIZE_HW = (96, 128)


def _targets(rows: list[tuple[int, int, tuple[float, float, float, float]]], batch: int) -> Targets:
    rows = sorted(rows, key=lambda row: row[0])
    return Targets(
        torch.tensor([row[0] for row in rows], dtype=torch.int64),
        torch.tensor([row[1] for row in rows], dtype=torch.int64),
        torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4),
        batch,
    )


def _assert_same(found: Assignment, expected: tuple[torch.Tensor, ...]) -> None:
    for mine, dense in zip((found.image_P, found.anchor_P, found.target_row_P), expected, strict=False):
        assert mine.tolist() == dense.tolist()
    torch.testing.assert_close(found.score_P, expected[3], rtol=1e-4, atol=1e-6)


coordinate = st.floats(-40, 170, width=32)
boxes_anywhere = st.tuples(coordinate, coordinate, coordinate, coordinate).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)
tiny_boxes = st.tuples(st.floats(0, 120, width=32), st.floats(0, 90, width=32)).map(
    lambda c: (c[0], c[1], c[0] + 1.5, c[1] + 1.5)
)
# Sides exactly on anchor centres (multiples of 4 pixels): such anchors are not inside.
aligned_boxes = st.tuples(st.integers(0, 15), st.integers(0, 11), st.integers(1, 16), st.integers(1, 12)).map(
    lambda b: (b[0] * 4.0, b[1] * 4.0, (b[0] + b[2]) * 4.0, (b[1] + b[3]) * 4.0)
)
whole_image = st.just((0.0, 0.0, 128.0, 96.0))


@st.composite
def batches(draw: st.DrawFn) -> tuple[RawDetections, Targets]:
    batch = draw(st.integers(1, 3))
    box = st.one_of(boxes_anywhere, tiny_boxes, aligned_boxes, whole_image)
    rows = draw(st.lists(st.tuples(st.integers(0, batch - 1), st.integers(0, 4), box), max_size=25))
    if rows:  # some boxes twice, with the same class or another
        for original, class_id in draw(
            st.lists(st.tuples(st.integers(0, len(rows) - 1), st.integers(0, 4)), max_size=5)
        ):
            rows.append((rows[original][0], class_id, rows[original][2]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    raw = random_raw(generator, batch=batch, size_hw=SIZE_HW, spread=draw(st.sampled_from([0.5, 2.0, 6.0])))
    return raw, _targets(rows, batch)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batches(), st.sampled_from([1, 3, 10]), st.sampled_from([1, 50, 1000, 2**18]))
def test_equals_the_dense_formulation(batch: tuple[RawDetections, Targets], top: int, max_pairs: int) -> None:
    raw, targets = batch
    found = assign(raw, targets=targets, top=top, max_pairs=max_pairs)
    _assert_same(found, dense_assign(raw, targets, top=top))


def test_equals_the_dense_formulation_on_a_crowd() -> None:
    generator = torch.Generator().manual_seed(5)
    raw = random_raw(generator, batch=3, size_hw=(320, 256))
    targets = random_targets(generator, boxes=[300, 0, 4], size_hw=(320, 256))
    expected = dense_assign(raw, targets)
    assert len(expected[0]) > 300
    assert expected[3].max() > 0.1
    _assert_same(assign(raw, targets=targets), expected)
    _assert_same(assign(raw, targets=targets, max_pairs=500), expected)


@pytest.mark.parametrize("strides", [(8, 16, 32), (12,), (4, 8, 16, 32, 64)])
def test_any_strides_and_transposed_outputs(strides: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(6)
    raw = random_raw(generator, batch=2, size_hw=(192, 384), strides=strides)
    raw = raw._replace(
        bins_BAR=raw.bins_BAR.transpose(1, 2).contiguous().transpose(1, 2),
        logits_BAK=raw.logits_BAK.transpose(1, 2).contiguous().transpose(1, 2),
    )
    targets = random_targets(generator, boxes=[20, 7], size_hw=(192, 384))
    found = assign(raw, targets=targets)
    assert len(found) > 27
    _assert_same(found, dense_assign(raw, targets))


def test_ties_go_to_the_lower_anchor_and_the_lower_row() -> None:
    raw = random_raw(torch.Generator(), batch=1, size_hw=(64, 64), spread=0.0)  # every anchor predicts the same extent
    box = (0.0, 0.0, 64.0, 64.0)
    targets = _targets([(0, 2, box), (0, 2, box)], 1)
    found = assign(raw, targets=targets, top=1)
    _assert_same(found, dense_assign(raw, targets, top=1))
    assert found.target_row_P.tolist() == [0]
    four_centres_alike = (24.0, 24.0, 40.0, 40.0)
    found = assign(raw, targets=_targets([(0, 2, four_centres_alike)], 1), top=1)
    assert found.anchor_P.tolist() == [3 * 8 + 3]


def test_an_anchor_on_the_side_is_not_inside() -> None:
    raw = random_raw(torch.Generator(), batch=1, size_hw=(64, 64), spread=0.0, strides=(8,))  # centres at 4, 12, 20 …
    just_outside, just_inside = (12.0, 12.0, 20.0, 20.0), (11.999999, 11.999999, 20.000002, 20.000002)
    assert len(assign(raw, targets=_targets([(0, 0, just_outside)], 1))) == 0
    assert assign(raw, targets=_targets([(0, 0, just_inside)], 1)).anchor_P.tolist() == [9, 10, 17, 18]


def test_every_anchor_is_assigned_once_and_scores_are_probabilities() -> None:
    generator = torch.Generator().manual_seed(7)
    raw = random_raw(generator, batch=2, size_hw=SIZE_HW)
    found = assign(raw, targets=random_targets(generator, boxes=[60, 60], size_hw=SIZE_HW))
    keys = (found.image_P * raw.strides_A.shape[0] + found.anchor_P).tolist()
    assert keys == sorted(set(keys))
    assert ((found.score_P >= 0) & (found.score_P <= 1)).all()
    assert found.target_row_P.bincount().max() > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_judged_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    raw = random_raw(generator, batch=2, size_hw=SIZE_HW, dtype=dtype)
    targets = random_targets(generator, boxes=[9, 9], size_hw=SIZE_HW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = assign(raw, targets=targets)
    exact = raw._replace(bins_BAR=raw.bins_BAR.float(), logits_BAK=raw.logits_BAK.float())
    _assert_same(found, dense_assign(exact, targets))
    assert found.score_P.dtype == torch.float32
    assert not found.score_P.requires_grad


def test_a_prediction_that_is_not_a_number_is_not_hidden() -> None:
    generator = torch.Generator().manual_seed(9)
    raw = random_raw(generator, batch=1, size_hw=SIZE_HW)
    bins = raw.bins_BAR.detach().clone()
    bins[0, 0] = torch.nan
    found = assign(raw._replace(bins_BAR=bins), targets=_targets([(0, 0, (0.0, 0.0, 60.0, 60.0))], 1))
    assert found.score_P.isnan().any()


def test_targets_that_do_not_fit_are_refused() -> None:
    raw = random_raw(torch.Generator().manual_seed(0), batch=2, size_hw=SIZE_HW)
    box = (0.0, 0.0, 40.0, 40.0)
    with pytest.raises(DataError, match=r"for 3 images.*for 2"):
        assign(raw, targets=_targets([(0, 0, box)], 3))
    with pytest.raises(DataError, match=r"classes are 0 to 5.*5 classes needs 0 to 4"):
        assign(raw, targets=_targets([(0, 0, box), (1, 5, box)], 2))
    with pytest.raises(DataError, match="classes are -1 to"):
        assign(raw, targets=_targets([(0, -1, box)], 2))
    with pytest.raises(DataError, match="images 0 to 2 of a batch of 2"):
        assign(raw, targets=_targets([(0, 0, box), (2, 0, box)], 2))
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="not a finite number"):
            assign(raw, targets=_targets([(0, 0, (0.0, 0.0, wrong, 40.0))], 2))
    with pytest.raises(DataError, match="not a regular row-major grid"):
        assign(
            RawDetections(raw.bins_BAR[:, 1:-1], raw.logits_BAK[:, 1:-1], raw.centres_A2[1:-1], raw.strides_A[1:-1]),
            targets=_targets([(0, 0, box)], 2),
        )


def test_five_thousand_boxes_in_one_of_sixteen_images_fit_in_a_fraction_of_a_gigabyte() -> None:
    generator = torch.Generator().manual_seed(10)
    size_hw = (640, 640)
    raw = random_raw(generator, batch=16, size_hw=size_hw, classes=80)
    targets = random_targets(generator, boxes=[5000] + [10] * 15, size_hw=size_hw, classes=80, largest=0.6)
    with Allocations(*raw) as spent:
        found = assign(raw, targets=targets)
    assert len(found) > 5000
    assert spent.peak_bytes < 100e6


def test_work_follows_the_boxes_not_the_most_crowded_image() -> None:
    generator = torch.Generator().manual_seed(11)
    size_hw = (320, 320)
    raw = random_raw(generator, batch=8, size_hw=size_hw)

    def spent(targets: Targets) -> Allocations:
        with Allocations(*raw) as counter:
            assign(raw, targets=targets)
        return counter

    spread = random_targets(generator, boxes=[400] * 8, size_hw=size_hw, largest=0.3)
    crowded = Targets(torch.zeros_like(spread.image_index_G), spread.class_ids_G, spread.boxes_xyxy_px_G4, 8)
    assert spent(crowded).written < 1.1 * spent(spread).written
    assert spent(crowded).peak_bytes < 1.1 * spent(spread).peak_bytes
    twice = Targets(
        torch.cat((crowded.image_index_G,) * 2),
        torch.cat((crowded.class_ids_G,) * 2),
        torch.cat((crowded.boxes_xyxy_px_G4,) * 2),
        8,
    )
    assert spent(twice).written < 2.1 * spent(crowded).written


def test_peak_follows_the_chunk() -> None:
    generator = torch.Generator().manual_seed(12)
    raw = random_raw(generator, batch=1, size_hw=(320, 320))
    targets = random_targets(generator, boxes=[2000], size_hw=(320, 320))
    peaks = []
    for max_pairs in (2**13, 2**16):
        with Allocations(*raw) as counter:
            assign(raw, targets=targets, max_pairs=max_pairs)
        peaks.append(counter.peak_bytes)
    assert peaks[0] < peaks[1] / 2
