"""What holds for every scene."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_scenes import SIZE_HW, judge, make_detections, make_labels

from ullage.metrics import columns as columns_module
from ullage.metrics.coco import evaluate_coco
from ullage.metrics.columns import Columns
from ullage.metrics.evaluator import DetectionEvaluator
from ullage.metrics.matching import IGNORED, TRUE_POSITIVE, count_confusions, match_detections

CLASSES = st.integers(0, 1)
QUICK = settings(max_examples=25, deadline=None)


@st.composite
def boxes(draw, low=0, high=120):
    # a coarse grid makes overlaps, ties and duplicates frequent
    x, y = draw(st.integers(low // 10, high // 10)) * 10, draw(st.integers(low // 10, high // 10)) * 10
    return x, y, x + draw(st.sampled_from([20, 30, 100])), y + draw(st.sampled_from([20, 30, 100]))


LABEL = st.tuples(CLASSES, boxes(), st.booleans()).map(lambda v: (v[0], *v[1], *["crowd"] * (v[2] and v[0])))
DETECTION = st.tuples(CLASSES, boxes(), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])).map(lambda v: (v[0], *v[1], v[2]))
IMAGES = st.lists(st.tuples(st.lists(LABEL, max_size=6), st.lists(DETECTION, max_size=12)), min_size=1, max_size=4)


def _everything(metrics):
    return metrics.to_json(curves=True)


@QUICK
@given(IMAGES)
def test_figures_lie_between_0_and_1(images):
    metrics = judge(images).compute()
    for values in (metrics.box.maps, metrics.box.p, metrics.box.r, metrics.box.f1, metrics.box.ap50):
        assert ((values >= 0) & (values <= 1)).all()
    assert metrics.box.map <= metrics.box.map50 + 1e-12
    assert all(((curve.y_CX >= 0) & (curve.y_CX <= 1)).all() for curve in metrics.curves)
    assert (np.diff(metrics.curves.recall.y_CX) <= 0).all()
    assert (np.diff(metrics.curves.precision_recall.y_CX) <= 0).all()


@QUICK
@given(st.lists(st.lists(LABEL, min_size=1, max_size=6), min_size=1, max_size=4), st.randoms())
def test_perfect_detections_give_1(truth, chance):
    images = [
        (labels, [(*label[:5], chance.uniform(0.3, 1)) for label in labels if len(label) == 5]) for labels in truth
    ]
    metrics = judge(images).compute()
    present = metrics.box.ap_class_index
    assert metrics.box.maps[present] == pytest.approx(np.ones(len(present)))
    if len(present):
        assert metrics.box.r == pytest.approx(np.ones(len(present)))
        counted = metrics.confusion_matrix.matrix
        assert counted.sum() == np.trace(counted) == metrics.instances_per_class.sum()


@QUICK
@given(IMAGES, st.randoms())
def test_the_order_of_images_changes_nothing(images, chance):
    shuffled = DetectionEvaluator(names=("cat", "dog"))
    order = list(enumerate(images))
    chance.shuffle(order)
    for index, (labels, detections) in order:
        shuffled.add(index, make_labels(labels), make_detections(detections), SIZE_HW)
    assert _everything(shuffled.compute()) == _everything(judge(images).compute())


@QUICK
@given(IMAGES, st.randoms())
def test_the_order_of_detections_changes_nothing_but_ties(images, chance):
    images = [(labels, [(*box[:5], 1 / (2 + i)) for i, box in enumerate(found)]) for labels, found in images]
    shuffled = [(labels, chance.sample(found, len(found))) for labels, found in images]
    assert _everything(judge(shuffled).compute()) == _everything(judge(images).compute())


def _but_short_lists(metrics):
    """AR 1 and AR 10 look at the best 1 and 10 detections of an image, swallowed ones included, as COCO does."""
    found = json.loads(_everything(metrics))
    return {**found, "coco": {key: value for key, value in found["coco"].items() if key not in ("ar_1", "ar_10")}}


@QUICK
@given(IMAGES, st.lists(st.tuples(boxes(250, 300), st.sampled_from([0.2, 0.6, 0.95])), max_size=20))
def test_a_crowd_region_swallows_extra_detections(images, extra):
    crowd = (0, 250, 250, 400, 400, "crowd")  # beyond the reach of all other boxes
    images = [([*images[0][0], crowd], images[0][1]), *images[1:]]
    swallowed = [(0, *box, score) for box, score in extra]
    before = judge(images).compute()
    after = judge([(images[0][0], [*images[0][1], *swallowed]), *images[1:]]).compute()
    assert _but_short_lists(after) == _but_short_lists(before)


@QUICK
@given(IMAGES)
def test_our_matching_and_faster_coco_eval_agree_on_ap50(images):
    columns = judge(images).columns()
    tables = evaluate_coco(columns, max_det=300)
    outcome = match_detections(columns)
    for place, class_id in enumerate(tables.class_ids_C):
        rows = np.flatnonzero((columns.det_class_D == class_id) & (outcome != IGNORED))
        rows = rows[np.argsort(-columns.det_scores_D[rows], kind="stable")]
        found = np.cumsum(outcome[rows] == TRUE_POSITIVE)
        recall = found / columns.instances()[class_id]
        precision = found / np.arange(1, len(rows) + 1)
        expected = np.mean([max(precision[recall >= level], default=0) for level in np.linspace(0, 1, 101)])
        assert tables.ap50_C[place] == pytest.approx(expected, abs=1e-9)


@QUICK
@given(IMAGES)
def test_the_size_of_a_portion_of_pairs_changes_nothing(images):
    columns = judge(images).columns()
    whole = match_detections(columns), count_confusions(columns, conf=0.2, iou=0.45)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_module, "_PAIRS_AT_ONCE", 2)
        portions = match_detections(columns), count_confusions(columns, conf=0.2, iou=0.45)
    assert [part.tolist() for part in whole] == [part.tolist() for part in portions]


@QUICK
@given(IMAGES)
def test_every_box_and_every_confident_detection_is_in_the_matrix(images):
    images = [([label for label in labels if len(label) == 5], found) for labels, found in images]
    evaluator = judge(images)
    columns: Columns = evaluator.columns()
    matrix = evaluator.compute().confusion_matrix.matrix
    assert matrix[:, :2].sum(0).tolist() == columns.instances().tolist()
    confident = columns.det_class_D[columns.det_scores_D >= 0.25]
    assert matrix[:2].sum(1).tolist() == np.bincount(confident, minlength=2).tolist()
