"""The evaluator on scenes small enough to judge by hand."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from metrics_scenes import SIZE_HW, judge, make_detections, make_labels
from rich.console import Console

from ullage.errors import ConfigError, DataError
from ullage.metrics.evaluator import DetectionEvaluator

A, B, FAR = (10, 10, 60, 60), (100, 100, 150, 150), (200, 200, 250, 250)


def test_overlap_decides_at_which_thresholds_a_box_counts():
    # 31 of 50 rows: IoU .62, enough for .50, .55 and .60 of the ten thresholds
    metrics = judge([([(0, *A)], [(0, 10, 10, 60, 41, 0.9)])]).compute()
    assert metrics.box.map == pytest.approx(0.3)
    assert (metrics.box.map50, metrics.box.map75) == (1, 0)
    assert metrics.fitness == pytest.approx(0.1 * 1 + 0.9 * 0.3)


def test_a_second_detection_of_the_same_box_is_a_false_alarm():
    metrics = judge([([(0, *A)], [(0, *A, 0.9), (0, *A, 0.8), (0, *FAR, 0.7)])]).compute()
    at = lambda curve, conf: curve.y_CX[0, round(conf * 999)]  # noqa: E731
    assert at(metrics.curves.precision, 0.85) == 1
    assert at(metrics.curves.precision, 0.75) == 0.5
    assert at(metrics.curves.precision, 0.5) == pytest.approx(1 / 3)
    assert at(metrics.curves.recall, 0.85) == 1
    assert at(metrics.curves.recall, 0.95) == 0
    assert at(metrics.curves.f1, 0.75) == pytest.approx(2 / 3)
    assert (metrics.box.map50, metrics.box.mp, metrics.box.mr) == (1, 1, 1)
    assert 0.8 < metrics.box.best_conf <= 0.9


def test_the_best_score_takes_the_box_first_and_the_best_overlap_wins():
    shifted = (20, 10, 70, 60)  # IoU 2/3 with A
    metrics = judge([([(0, *A), (0, *shifted)], [(0, *shifted, 0.9), (0, *A, 0.8)])]).compute()
    assert metrics.box.map == 1


def test_precision_recall_curve_is_the_best_precision_from_that_recall_on():
    images = [([(0, *A), (0, *B)], [(0, *FAR, 0.9), (0, *A, 0.8), (0, *B, 0.7)])]
    curve = judge(images).compute().curves.precision_recall
    assert curve.y_CX[0, [0, 400, 999]] == pytest.approx([2 / 3] * 3)  # 1 of 2, then 2 of 3 right


def test_classes_without_ground_truth_count_for_nothing_and_get_the_mean():
    labels = [(0, *A), (2, *B)]
    found = [(0, *A, 0.9), (1, *FAR, 0.8)]
    metrics = judge([(labels, found)], names=("cat", "dog", "eel")).compute()
    assert metrics.box.ap_class_index.tolist() == [0, 2]
    assert metrics.box.map == 0.5
    assert metrics.box.maps.tolist() == [1, 0.5, 0]
    assert metrics.maps.tolist() == metrics.box.maps.tolist()
    assert metrics.box.class_result(0) == (1, 1, 1, 1)
    assert metrics.box.mean_results() == [0.5, 0.5, 0.5, 0.5]


def test_confusions_by_hand():
    images = [
        ([(0, *A), (1, *B)], [(0, *A, 0.9), (0, *B, 0.8), (1, *FAR, 0.7), (1, *FAR, 0.2)]),
        ([(1, *A), (0, *B)], [(0, *A, 0.5), (1, *A, 0.4)]),
    ]
    confusion = judge(images).compute().confusion_matrix
    # predicted in rows: A right, B of the first image taken for class 0, one class-1 alarm; in the second image the
    # detection of the right class wins the tie, and the other one is an alarm
    assert np.asarray(confusion).tolist() == [[1, 1, 1], [0, 1, 1], [1, 0, 0]]
    assert confusion.normalised().sum(0).tolist() == [1, 1, 1]
    assert confusion.names == ("cat", "dog", "background")
    np.asarray(confusion)[:] = 7
    assert confusion.matrix.max() == 1


def test_matrix_limits_are_settings():
    images = [([(0, *A)], [(0, 10, 10, 60, 30, 0.2)])]  # IoU .4
    assert judge(images).compute().confusion_matrix.matrix.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    loose = judge(images, matrix_conf=0.1, matrix_iou=0.3).compute().confusion_matrix
    assert loose.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_a_crowd_region_excuses_its_class_only():
    crowd = (0, 100, 100, 300, 300, "crowd")
    inside = [(0, 150, 150, 180, 180, 0.95), (0, 200, 200, 240, 240, 0.9)]
    clean = judge([([(0, *A), crowd], [(0, *A, 0.5)])]).compute()
    excused = judge([([(0, *A), crowd], [(0, *A, 0.5), *inside])]).compute()
    assert excused.box.map == clean.box.map == 1
    assert excused.confusion_matrix.matrix.tolist() == clean.confusion_matrix.matrix.tolist()
    assert excused.instances_per_class.tolist() == [1, 0]
    other = judge([([(0, *A), (1, *A), crowd], [(0, *A, 0.5), (1, *A, 0.5), (1, *inside[0][1:])])]).compute()
    assert other.box.maps.tolist() == [1, 0.5]
    assert other.confusion_matrix.matrix[1, 2] == 1


@pytest.mark.parametrize(
    "images",
    [
        [],
        [([], [])],
        [([], [(0, *A, 0.9)])],
        [([(0, *A)], [])],
        [([(0, *A, "crowd")], [])],
        [([(0, *A, "crowd")], [(0, *A, 0.9), (1, *A, 0.9)])],
    ],
    ids=["no images", "empty image", "only alarms", "only misses", "crowd", "crowd and detections"],
)
def test_nothing_to_find_or_nothing_found(images):
    metrics = judge(images).compute()
    assert set(metrics.results_dict.values()) == {0.0}
    assert metrics.box.maps.tolist() == [0, 0]
    assert metrics.image_count == len(images)
    assert all(np.isfinite(curve.mean_X).all() for curve in metrics.curves)
    json.loads(metrics.to_json(curves=True))
    assert "all" in str(metrics)


def test_only_max_det_boxes_of_a_class_and_image_count():
    found = [(0, *FAR, 0.9), (0, *A, 0.8), (1, *B, 0.1)]
    labels = [(0, *A), (1, *B)]
    assert judge([(labels, found)], max_det=1).compute().box.maps.tolist() == [0, 1]
    both = judge([(labels, found)], max_det=2).compute()
    assert both.box.maps.tolist() == pytest.approx([0.5, 1])
    assert (both.coco.ar_1, both.coco.ar_max, both.coco.max_det) == (0.5, 1, 2)


def test_sizes_follow_the_areas_that_are_given():
    evaluator = DetectionEvaluator(names=["cat"])
    labels, found = make_labels([(0, *A)]), make_detections([(0, *A, 0.9)])
    evaluator.add("x", labels, found, SIZE_HW, areas_px_G=np.array([100.0]))
    assert evaluator.compute().coco.ap_small == 1
    evaluator.reset()
    assert len(evaluator) == 0
    evaluator.add("x", labels, found, SIZE_HW)
    assert evaluator.compute().coco.ap_medium == 1
    assert np.isnan(evaluator.compute().coco.ap_small)


def test_results_read_as_users_know_them():
    images = [([(0, *A), (0, *B), (1, *FAR)], [(0, *A, 0.9), (1, *FAR, 0.9)]), ([], [])]
    metrics = judge(images).compute(speed={"inference": 1.5})
    assert list(metrics.results_dict) == [
        "metrics/precision(B)", "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)", "fitness",
    ]  # fmt: skip
    assert metrics.results_dict["metrics/recall(B)"] == metrics.box.mr == 0.75
    assert metrics.names == {0: "cat", 1: "dog"}
    assert metrics.speed == {"inference": 1.5}
    assert [line.split() for line in str(metrics).splitlines()][1:3] == [
        ["all", "2", "3", "1.000", "0.750", "0.752", "0.752"],
        ["cat", "1", "2", "1.000", "0.500", "0.505", "0.505"],  # 51 of COCO's 101 recall levels
    ]
    content = json.loads(metrics.to_json())
    assert content["classes"][0] | {"ap": 0, "ap50": 0, "ap75": 0, "f1": 0} == {
        "id": 0, "name": "cat", "images": 1, "instances": 2, "precision": 1.0, "recall": 0.5,
        "ap": 0, "ap50": 0, "ap75": 0, "f1": 0,
    }  # fmt: skip
    assert content["coco"]["ap_large"] is None
    assert "curves" not in content
    assert np.shape(json.loads(metrics.to_json(curves=True))["curves"][3]["y"]) == (2, 1000)


def test_the_table_prints_names_as_they_are():
    metrics = judge([([(0, *A), (1, *B)], [])], names=("[red]car", "dog")).compute()
    out = StringIO()
    Console(file=out, width=100).print(metrics.summary_table())
    assert "[red]car" in out.getvalue()
    assert "Instances" in out.getvalue()


def test_more_images_may_follow_a_computation():
    evaluator = judge([([(0, *A)], [(0, *A, 0.9)])])
    assert evaluator.compute().box.map == 1
    evaluator.add(1, make_labels([(0, *A)]), make_detections([]), SIZE_HW)
    assert evaluator.compute().box.map == pytest.approx(0.505, abs=1e-3)


@pytest.mark.parametrize(
    ("labels", "detections", "size_hw", "message"),
    [
        ([(2, *A)], [], SIZE_HW, "class ids from 2 to 2, but there are 2 classes"),
        ([(-1, *A)], [], SIZE_HW, "class ids from -1"),
        ([], [(5, *A, 0.5)], SIZE_HW, "detections have class ids"),
        ([], [(0, *A, float("nan"))], SIZE_HW, "not finite"),
        ([(0, 0, 0, float("inf"), 5)], [], SIZE_HW, "not finite"),
        ([(0, *FAR)], [], (100, 100), "original image"),
        ([(0, -30, 0, 10, 10)], [], SIZE_HW, "original image"),
        ([], [], (0, 100), "at least 1 x 1"),
    ],
)
def test_wrong_values_are_refused(labels, detections, size_hw, message):
    with pytest.raises(DataError, match=message) as caught:
        DetectionEvaluator(names=["cat", "dog"]).add("img", make_labels(labels), make_detections(detections), size_hw)
    assert "img" in str(caught.value)


def test_an_image_counts_once_and_areas_go_with_labels():
    evaluator = judge([([], [])])
    with pytest.raises(DataError, match="already judged"):
        evaluator.add(0, make_labels([]), make_detections([]), SIZE_HW)
    with pytest.raises(DataError, match="1 labels, but areas of shape"):
        evaluator.add(1, make_labels([(0, *A)]), make_detections([]), SIZE_HW, areas_px_G=np.zeros(2))


@pytest.mark.parametrize(
    "settings",
    [{"names": []}, {"names": "cat"}, {"names": ["a"], "max_det": 0}, {"names": ["a"], "matrix_iou": 0}],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        DetectionEvaluator(**settings)


def test_what_several_judged_together_is_what_one_judged():
    scenes = [([(0, *A)], [(0, *A, 0.9)]), ([(0, *B)], [(0, *FAR, 0.8)]), ([(0, *A), (0, *B)], [(0, *B, 0.7)])]
    whole, first, second = judge(scenes), judge(scenes[:1]), DetectionEvaluator(names=["0"])
    for number, (labels, found) in enumerate(scenes[1:], 1):
        second.add(number, make_labels(labels), make_detections(found), SIZE_HW)
    first.take(second.images())
    assert len(first) == 3
    assert first.compute().results_dict == whole.compute().results_dict
    with pytest.raises(DataError, match="every image counts once"):
        first.take(second.images())
