"""Box formats, overlap, letterbox and targets against independent formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ullage.errors import DataError
from ullage.geometry.boxes import area_xyxy, clip_xyxy, cxcywh_to_xyxy, scale_boxes, xyxy_to_cxcywh
from ullage.geometry.detections import Detections
from ullage.geometry.iou import complete_iou, iou_matrix
from ullage.geometry.labels import Labels
from ullage.geometry.letterbox import PAD_GREY, fit, tight_size
from ullage.geometry.targets import Targets

# quarters of a pixel: float32 holds their sums and products exactly
COORDINATE = st.integers(-400, 8000).map(lambda n: n / 4)
LENGTH = st.integers(1, 4000).map(lambda n: n / 4)
BOX = st.tuples(COORDINATE, COORDINATE, LENGTH, LENGTH).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
BOXES = st.lists(BOX, min_size=1, max_size=5)
SIZE = st.tuples(st.integers(1, 3000), st.integers(1, 3000))
KINDS = [lambda rows: np.array(rows, np.float32), lambda rows: torch.tensor(rows, dtype=torch.float32)]


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "torch"])
@given(rows=BOXES)
def test_box_formats_go_there_and_back(kind, rows) -> None:
    boxes = kind(rows)
    there = xyxy_to_cxcywh(boxes)
    for row, (left, top, right, bottom) in zip(there.tolist(), rows, strict=True):
        assert row == [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    back = cxcywh_to_xyxy(there)
    assert type(back) is type(boxes)
    assert back.dtype == boxes.dtype
    assert back.tolist() == boxes.tolist()


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "torch"])
def test_boxes_keep_leading_dimensions_and_may_be_none(kind) -> None:
    boxes = kind([[[0.0, 0.0, 10.0, 4.0]] * 3] * 2)
    assert tuple(xyxy_to_cxcywh(boxes).shape) == (2, 3, 4)
    assert tuple(area_xyxy(boxes).shape) == (2, 3)
    nothing = kind([]).reshape(0, 4)
    for result in (
        xyxy_to_cxcywh(nothing),
        cxcywh_to_xyxy(nothing),
        clip_xyxy(nothing, (3, 4)),
        scale_boxes(nothing, (1, 1)),
    ):
        assert tuple(result.shape) == (0, 4)


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "torch"])
@given(rows=BOXES, size_hw=SIZE)
def test_clipped_boxes_lie_inside_and_inside_boxes_stay(kind, rows, size_hw) -> None:
    height, width = size_hw
    for (left, top, right, bottom), row in zip(clip_xyxy(kind(rows), size_hw).tolist(), rows, strict=True):
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height
        if row[0] >= 0 and row[1] >= 0 and row[2] <= width and row[3] <= height:
            assert (left, top, right, bottom) == row


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "torch"])
def test_sizes_are_height_first_everywhere(kind) -> None:
    boxes = kind([[0.25, 0.5, 0.75, 1.0]])
    assert scale_boxes(boxes, (100, 200)).tolist() == [[50.0, 50.0, 150.0, 100.0]]
    assert clip_xyxy(kind([[-5.0, -5.0, 300.0, 300.0]]), (100, 200)).tolist() == [[0.0, 0.0, 200.0, 100.0]]


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "torch"])
def test_a_box_turned_inside_out_has_no_area(kind) -> None:
    assert area_xyxy(kind([[10.0, 0.0, 0.0, 5.0], [0.0, 0.0, 4.0, 5.0]])).tolist() == [0.0, 20.0]


def exact_iou(a, b) -> float:
    """Intersection over union in exact rational arithmetic."""
    ax1, ay1, ax2, ay2, bx1, by1, bx2, by2 = map(Fraction, (*a, *b))
    overlap = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    return float(overlap / union)


@given(BOXES, BOXES)
def test_iou_equals_exact_arithmetic(first, second) -> None:
    matrix = iou_matrix(torch.tensor(first), torch.tensor(second))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert float(matrix[i, j]) == pytest.approx(exact_iou(a, b), rel=1e-5, abs=1e-7)


def test_iou_of_nothing_is_an_empty_matrix_and_of_empty_boxes_zero() -> None:
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert iou_matrix(torch.zeros(0, 4), box).shape == (0, 1)
    assert iou_matrix(box, torch.zeros(0, 4)).shape == (1, 0)
    assert iou_matrix(torch.zeros(1, 4), torch.zeros(1, 4)).tolist() == [[0.0]]


def plain_ciou(a, b) -> float:
    """Complete IoU as the paper writes it (arXiv:1911.08287, equations 7 to 11), in double precision."""
    iou = exact_iou(a, b)
    centre = lambda box: ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)  # noqa: E731
    distance = math.dist(centre(a), centre(b))
    diagonal = math.hypot(max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1]))
    angle = [math.atan((box[2] - box[0]) / (box[3] - box[1])) for box in (a, b)]
    v = 4 / math.pi**2 * (angle[1] - angle[0]) ** 2
    alpha = v / (1 - iou + v) if v else 0.0
    return iou - distance**2 / diagonal**2 - alpha * v


@given(BOX, BOX)
def test_complete_iou_equals_the_paper(a, b) -> None:
    value = float(complete_iou(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)))
    assert value == pytest.approx(plain_ciou(a, b), abs=1e-5)
    assert -1.5 < value <= 1


@given(BOX, BOX)
def test_complete_iou_pulls_even_boxes_that_do_not_touch(a, b) -> None:
    moved = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    complete_iou(moved, torch.tensor(b, dtype=torch.float64)).backward()
    assert moved.grad is not None
    assert torch.isfinite(moved.grad).all()
    if a != b:
        assert moved.grad.abs().max() > 0


def test_complete_iou_holds_the_aspect_weight_constant() -> None:
    wide, tall = (
        torch.tensor([0.0, 0.0, 8.0, 2.0], dtype=torch.float64),
        torch.tensor([3.0, -3.0, 5.0, 5.0], dtype=torch.float64),
    )
    wide.requires_grad_()
    complete_iou(wide, tall).backward()
    step, grads = 1e-6, []
    iou = exact_iou(wide.tolist(), tall.tolist())
    v0 = 4 / math.pi**2 * (math.atan(2 / 8) - math.atan(8 / 2)) ** 2
    alpha = v0 / (1 - iou + v0)

    def with_fixed_alpha(box) -> float:
        overlap = max(min(box[2], 5) - max(box[0], 3), 0) * max(min(box[3], 5) - max(box[1], -3), 0)
        area = (box[2] - box[0]) * (box[3] - box[1])
        distance = math.dist(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), (4, 1))
        diagonal = math.hypot(max(box[2], 5) - min(box[0], 3), max(box[3], 5) - min(box[1], -3))
        v = 4 / math.pi**2 * (math.atan(2 / 8) - math.atan((box[2] - box[0]) / (box[3] - box[1]))) ** 2
        return overlap / (area + 16 - overlap) - distance**2 / diagonal**2 - alpha * v

    for i in range(4):
        up, down = wide.tolist(), wide.tolist()
        up[i], down[i] = up[i] + step, down[i] - step
        grads.append((with_fixed_alpha(up) - with_fixed_alpha(down)) / (2 * step))
    assert wide.grad is not None
    assert wide.grad.tolist() == pytest.approx(grads, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=["numpy", "torch"])
@given(
    source=SIZE,
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rows=BOXES,
    upscale=st.booleans(),
    centre=st.booleans(),
)
def test_letterbox_maps_boxes_there_and_back(kind, source, target, rows, upscale, centre) -> None:
    size_hw = (target[0] * 32, target[1] * 32)
    plan = fit(source, size_hw, upscale=upscale, centre=centre)
    assert plan.size_hw == size_hw
    for resized, side, limit in zip(plan.resized_hw, source, size_hw, strict=True):
        assert 1 <= resized <= limit
        assert upscale or resized <= side
    boxes = clip_xyxy(kind(rows), source)
    there = plan.forward(boxes)
    assert type(there) is type(boxes)
    height, width = size_hw
    for left, top, right, bottom in there.tolist():
        assert -0.01 <= left <= right + 1e-3 <= width + 0.02
        assert -0.01 <= top <= bottom + 1e-3 <= height + 0.02
    tolerance = 4e-6 * max(size_hw) / min(plan.scale_wh) + 1e-3
    assert np.abs(np.asarray(plan.backward(there)) - np.asarray(boxes)).max() <= tolerance


@given(source=SIZE, target=st.integers(1, 40))
def test_letterbox_keeps_the_aspect_ratio_up_to_rounding_and_fills_one_side(source, target) -> None:
    plan = fit(source, (target * 32, target * 32))
    ratio = target * 32 / max(source)
    for resized, side in zip(plan.resized_hw, source, strict=True):
        assert abs(resized - side * ratio) <= 0.5 or resized == 1
    assert max(plan.resized_hw) == target * 32


def test_rounding_of_one_side_does_not_shrink_the_other() -> None:
    # 2069 x 2433 at 1280 is 1088.5 high: the tight size is 1088, and the width stays 1280
    assert fit((2069, 2433), tight_size((2069, 2433), 1280)).resized_hw == (1088, 1280)
    assert fit((100, 1970), tight_size((100, 1970), 640)).resized_hw == (32, 640)


def test_letterbox_without_clipping_lets_boxes_leave_the_image() -> None:
    plan = fit((100, 200), (64, 64))
    outside = np.array([[0.0, 0.0, 64.0, 64.0]], np.float32)
    assert plan.backward(outside).tolist() == [[0.0, 0.0, 200.0, 100.0]]
    assert plan.backward(outside, clip=False).tolist() == [[0.0, -50.0, 200.0, 150.0]]


def test_letterbox_draws_what_it_plans() -> None:
    image = np.full((50, 100, 3), 200, np.uint8)
    plan = fit((50, 100), (64, 64))
    drawn = plan.apply(image)
    left, top, right, bottom = plan.forward(np.array([0.0, 0.0, 100.0, 50.0])).astype(int).tolist()
    assert (left, top, right, bottom) == (0, 16, 64, 48)
    assert (drawn[top:bottom, left:right] == 200).all()
    margin = np.ones((64, 64), bool)
    margin[top:bottom, left:right] = False
    assert (drawn[margin] == PAD_GREY).all()
    canvas = np.zeros((64, 64, 3), np.uint8)
    assert plan.apply(image, canvas) is canvas
    assert (canvas == drawn).all()


def test_letterbox_leaves_an_image_of_the_right_size_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    assert (fit((64, 96), (64, 96)).apply(image) == image).all()


@given(source=SIZE, target=st.integers(1, 40))
def test_the_tight_size_is_the_smallest_that_holds_the_image(source, target) -> None:
    imgsz = target * 32
    size_hw = tight_size(source, imgsz)
    ratio = imgsz / max(source)
    for side, given_side in zip(size_hw, source, strict=True):
        assert side % 32 == 0
        assert side >= max(round(given_side * ratio), 1)
        assert side - 32 < max(round(given_side * ratio), 1)
    assert max(size_hw) == imgsz
    assert fit(source, size_hw).resized_hw == tuple(max(round(side * ratio), 1) for side in source)


@st.composite
def targets(draw) -> Targets:
    counts = draw(st.lists(st.integers(0, 4), min_size=1, max_size=6))
    index = torch.tensor([image for image, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    boxes = torch.arange(len(index) * 4, dtype=torch.float32).reshape(-1, 4)
    return Targets(index, torch.arange(len(index)), boxes, len(counts))


@given(targets(), st.data())
def test_targets_split_and_come_together_again(whole: Targets, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, whole.batch_size))
    parts = [whole.images(0, cut), whole.images(cut, whole.batch_size)]
    assert [part.batch_size for part in parts] == [cut, whole.batch_size - cut]
    assert torch.cat([parts[0].image_index_G, parts[1].image_index_G + cut]).equal(whole.image_index_G)
    assert torch.cat([part.class_ids_G for part in parts]).equal(whole.class_ids_G)
    assert torch.cat([part.boxes_xyxy_px_G4 for part in parts]).equal(whole.boxes_xyxy_px_G4)
    for image in range(whole.batch_size):
        alone = whole.images(image, image + 1)
        assert (alone.image_index_G == 0).all()
        assert alone.class_ids_G.equal(whole.class_ids_G[whole.image_index_G == image])


def test_targets_of_empty_images_are_empty_and_moving_keeps_all() -> None:
    nothing = Targets.empty(3)
    assert len(nothing) == 0
    assert len(nothing.images(1, 3)) == 0
    assert nothing.images(1, 3).batch_size == 2
    assert nothing.to("cpu").batch_size == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Targets(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 4), 1),
        lambda: Targets(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 5), 1),
        lambda: Detections(torch.zeros(2, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)),
        lambda: Labels(np.zeros((2, 4)), np.zeros(2), np.zeros(1, bool)),
    ],
)
def test_values_that_disagree_are_refused(make) -> None:
    with pytest.raises(DataError, match="disagree"):
        make()


def test_labels_select_rows_of_everything() -> None:
    labels = Labels(np.arange(12, dtype=np.float32).reshape(3, 4), np.array([5, 6, 7]), np.array([False, True, False]))
    some = labels.select(np.array([2, 1]))
    assert some.class_ids_G.tolist() == [7, 6]
    assert some.crowd_G.tolist() == [False, True]
    assert some.boxes_xyxy_px_G4[:, 0].tolist() == [8.0, 4.0]
    assert len(Labels.empty()) == 0
