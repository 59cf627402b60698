"""COCO's figures, from files and through the evaluator."""

from __future__ import annotations

import json
import logging
import math

import pytest

from ullage.errors import DataError
from ullage.metrics.coco import coco_metrics

# shared/data/README.md, computed by pycocotools with maxDets 1/10/100
PUBLISHED = {
    "ap": 0.505, "ap50": 0.697, "ap75": 0.573, "ap_small": 0.586, "ap_medium": 0.519, "ap_large": 0.501,
    "ar_1": 0.387, "ar_10": 0.594, "ar_max": 0.595, "ar_small": 0.640, "ar_medium": 0.566, "ar_large": 0.564,
}  # fmt: skip


@pytest.fixture
def files(shared):
    folder = shared / "data" / "coco_metrics"
    return folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json"


def _three_digits(summary):
    return {name: round(value, 3) for name, value in summary.as_dict().items() if name != "max_det"}


def test_files_give_the_published_figures(files):
    assert _three_digits(coco_metrics(*files)) == PUBLISHED


def test_the_evaluator_gives_the_published_figures(files, feed_coco):
    metrics = feed_coco(*files, max_det=100)[0].compute()
    assert _three_digits(metrics.coco) == PUBLISHED
    assert metrics.box.map == pytest.approx(metrics.coco.ap, abs=1e-12)
    assert metrics.box.map50 == pytest.approx(metrics.coco.ap50, abs=1e-12)
    assert metrics.box.map75 == pytest.approx(metrics.coco.ap75, abs=1e-12)


def test_faster_coco_eval_stays_silent(files, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    coco_metrics(*files)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("faster_coco_eval")]


def test_no_results_give_zero_and_no_truth_gives_nan(tmp_path):
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    content = {"images": [{"id": 7}], "categories": [{"id": 3}], "annotations": []}
    truth.write_text(json.dumps(content))
    results.write_text("[]")
    assert math.isnan(coco_metrics(truth, results).ap)
    content["annotations"] = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 10]}]
    truth.write_text(json.dumps(content))
    summary = coco_metrics(truth, results)
    assert (summary.ap, summary.ap_small) == (0, 0)
    assert math.isnan(summary.ap_large)


@pytest.mark.parametrize(
    ("truth", "results", "message"),
    [
        ("[]", "[]", "an object with images"),
        ('{"images": []}', "[]", "COCO form"),
        ('{"images": [], "categories": [], "annotations": []}', "{}", "a list of results"),
        ('{"images": [], "categories": [], "annotations": []}', "[{", "not JSON"),
        (
            '{"images": [{"id": 1}], "categories": [], "annotations": []}',
            '[{"image_id": 2}]',
            "not in the ground truth",
        ),
        (
            '{"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": []}',
            '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3], "score": 1}]',
            "COCO form",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, truth, results, message):
    (tmp_path / "t.json").write_text(truth)
    (tmp_path / "r.json").write_text(results)
    with pytest.raises(DataError, match=message) as caught:
        coco_metrics(tmp_path / "t.json", tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json"):
        coco_metrics(tmp_path / "nowhere.json", tmp_path / "r.json")
