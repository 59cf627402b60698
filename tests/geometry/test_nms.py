"""``select_detections`` against a loop that anybody can check."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from ullage.geometry import nms
from ullage.geometry.iou import iou_matrix
from ullage.geometry.nms import select_detections


def plain_selection(boxes, scores, *, conf, iou, max_det, classes, class_agnostic, one_class_per_box):
    """Keep (anchor, class) pairs of one image greedily."""
    pairs = []
    for anchor, row in enumerate(scores.tolist()):
        ids = [max(range(len(row)), key=row.__getitem__)] if one_class_per_box else range(len(row))
        pairs += [(row[k], anchor, k) for k in ids if row[k] > conf and (classes is None or k in classes)]
    pairs.sort(key=lambda pair: -pair[0])
    overlap, kept = iou_matrix(boxes, boxes), []
    for score, anchor, k in pairs:
        rivals = [other for _, other, c in kept if class_agnostic or c == k]
        if all(overlap[anchor, other] <= iou for other in rivals):
            kept.append((score, anchor, k))
    return kept[:max_det]


@st.composite
def scenes(draw):
    seed = draw(st.integers(0, 2**31 - 1))
    anchors, classes = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    random = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (2, anchors, 2), generator=random).float()
    size = torch.randint(5, 40, (2, anchors, 2), generator=random).float()
    # distinct scores: the order of equals is nobody's promise
    scores = (torch.randperm(2 * anchors * classes, generator=random).float() + 0.5) / (2 * anchors * classes)
    return torch.cat([corner, corner + size], -1), scores.reshape(2, anchors, classes)


@given(
    scene=scenes(),
    conf=st.sampled_from([0.001, 0.25, 0.6]),
    iou=st.sampled_from([0.3, 0.5, 0.7]),
    max_det=st.sampled_from([1, 3, 300]),
    classes=st.sampled_from([None, [0], [1, 3]]),
    class_agnostic=st.booleans(),
    one_class_per_box=st.booleans(),
)
def test_equals_the_plain_loop(scene, conf, iou, max_det, classes, class_agnostic, one_class_per_box) -> None:
    boxes_BA4, scores_BAK = scene
    options = {"conf": conf, "iou": iou, "max_det": max_det, "class_agnostic": class_agnostic}
    options["one_class_per_box"] = one_class_per_box
    ids = None if classes is None else torch.tensor(classes)
    found = select_detections(boxes_BA4, scores_BAK, classes=ids, **options)
    assert len(found) == 2
    for one, boxes, scores in zip(found, boxes_BA4, scores_BAK, strict=True):
        wanted = plain_selection(boxes, scores, classes=classes, **options)
        assert one.class_ids_D.tolist() == [k for _, _, k in wanted]
        assert one.scores_D.tolist() == pytest.approx([score for score, _, _ in wanted])
        assert one.boxes_xyxy_px_D4.tolist() == [boxes[anchor].tolist() for _, anchor, _ in wanted]


def test_nothing_above_the_threshold_gives_empty_detections_for_every_image() -> None:
    found = select_detections(torch.zeros(3, 7, 4), torch.full((3, 7, 2), 0.1), conf=0.1, iou=0.5, max_det=10)
    assert [len(one) for one in found] == [0, 0, 0]
    assert found[0].boxes_xyxy_px_D4.shape == (0, 4)
    assert select_detections(torch.zeros(0, 7, 4), torch.zeros(0, 7, 2), conf=0.1, iou=0.5, max_det=10) == []


def test_one_box_may_count_for_several_classes() -> None:
    box, scores = torch.tensor([[[0.0, 0.0, 9.0, 9.0]]]), torch.tensor([[[0.9, 0.8, 0.1]]])
    both = select_detections(box, scores, conf=0.5, iou=0.5, max_det=10, one_class_per_box=False)[0]
    assert both.class_ids_D.tolist() == [0, 1]
    best = select_detections(box, scores, conf=0.5, iou=0.5, max_det=10)[0]
    assert best.class_ids_D.tolist() == [0]


def test_the_weakest_of_too_many_candidates_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nms, "MAX_CANDIDATES", 3)
    corner = torch.arange(6.0)[:, None] * 100
    boxes = torch.cat([corner, corner, corner + 10, corner + 10], 1)[None]
    scores = torch.tensor([0.2, 0.9, 0.4, 0.8, 0.3, 0.7])[None, :, None]
    found = select_detections(boxes, scores, conf=0.1, iou=0.5, max_det=10)[0]
    assert found.scores_D.tolist() == pytest.approx([0.9, 0.8, 0.7])


@given(scene=scenes(), iou=st.sampled_from([0.3, 0.7]), max_det=st.sampled_from([1, 3, 300]))
def test_blocks_do_not_change_what_is_kept(scene, iou, max_det) -> None:
    options = {"conf": 0.01, "iou": iou, "max_det": max_det, "one_class_per_box": False}
    whole = select_detections(*scene, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "_BLOCK", 2)
        patch.setattr(nms, "_LARGEST_BLOCK", 5)
        parts = select_detections(*scene, **options)
    for one, other in zip(whole, parts, strict=True):
        assert one.scores_D.tolist() == other.scores_D.tolist()
        assert one.boxes_xyxy_px_D4.tolist() == other.boxes_xyxy_px_D4.tolist()


@pytest.mark.parametrize("spread", [4000.0, 20.0])
def test_the_work_grows_with_the_candidates_not_with_their_square(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    real = torchvision.ops.batched_nms

    def counting(boxes, scores, groups, iou):
        counted.append(len(boxes))
        return real(boxes, scores, groups, iou)

    monkeypatch.setattr(torchvision.ops, "batched_nms", counting)
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(100_000, 2, generator=random) * spread
    boxes = torch.cat((corner, corner + 50), -1)[None]
    scores = torch.rand(1, 100_000, 1, generator=random)
    found = select_detections(boxes, scores, conf=0.001, iou=0.7, max_det=300)[0]
    assert len(found) > 1
    assert max(counted) <= 16_000 + 300
    assert sum(counted) <= 100_000 + 300 * len(counted)


def test_half_precision_is_read() -> None:
    boxes, scores = torch.tensor([[[0.0, 0.0, 9.0, 9.0]]]), torch.tensor([[[0.5]]])
    found = select_detections(boxes.half(), scores.bfloat16(), conf=0.25, iou=0.5, max_det=10)[0]
    assert found.scores_D.dtype == torch.float32
    assert found.boxes_xyxy_px_D4.tolist() == [[0.0, 0.0, 9.0, 9.0]]
