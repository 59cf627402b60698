"""predictions.json: its form, its figures, and that it is whole or absent."""

from __future__ import annotations

import errno
import json
import os

import pytest
from faster_coco_eval import COCO, COCOeval_faster
from metrics_scenes import make_detections

from ullage.errors import DataError, StorageError
from ullage.metrics.coco import coco_metrics
from ullage.metrics.predictions import PredictionsWriter, write_predictions

BOX = (0, 1.23456, 2.0, 11.2, 22.0, 0.1234567)


def test_the_file_is_a_coco_result_list(tmp_path):
    path = write_predictions(
        tmp_path / "deep" / "predictions.json",
        image_ids=[42, "000000000139", "frame_7"],
        detections=[make_detections([BOX]), make_detections([]), make_detections([BOX, BOX])],
        category_ids=[18],
    )
    entry = {"image_id": 42, "category_id": 18, "bbox": [1.235, 2.0, 9.965, 20.0], "score": 0.12346}
    assert json.loads(path.read_text()) == [entry, entry | {"image_id": "frame_7"}, entry | {"image_id": "frame_7"}]
    assert [file.name for file in path.parent.iterdir()] == ["predictions.json"]


def test_stems_made_of_digits_become_coco_ids(tmp_path):
    path = write_predictions(
        tmp_path / "p.json", image_ids=["000000000139"], detections=[make_detections([BOX])], category_ids=[1]
    )
    assert json.loads(path.read_text())[0]["image_id"] == 139


def test_no_detections_give_an_empty_list(tmp_path):
    path = write_predictions(tmp_path / "p.json", image_ids=[], detections=[], category_ids=[1])
    assert json.loads(path.read_text()) == []


def test_the_file_judged_again_gives_the_same_figures(shared, tmp_path, feed_coco):
    folder = shared / "data" / "coco_metrics"
    truth_path = folder / "instances_val2014_100.json"
    evaluator, truth, fed = feed_coco(truth_path, folder / "instances_val2014_fakebbox100_results.json", max_det=100)
    path = write_predictions(
        tmp_path / "predictions.json",
        image_ids=[image for image, _ in fed],
        detections=[found for _, found in fed],
        category_ids=sorted(entry["id"] for entry in truth["categories"]),
    )
    ground_truth = COCO(str(truth_path))
    evaluation = COCOeval_faster(ground_truth, ground_truth.loadRes(str(path)), "bbox")
    evaluation.run()
    ours = list(evaluator.compute().coco.as_dict().values())[:12]
    assert ours == pytest.approx(evaluation.stats[:12], abs=1e-6)
    assert list(coco_metrics(truth_path, path).as_dict().values())[:12] == pytest.approx(
        evaluation.stats[:12], abs=1e-9
    )


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("old")

    def interrupted():
        with PredictionsWriter(path, category_ids=[1]) as writer:
            writer.add(1, make_detections([BOX]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]


def test_a_full_disk_is_reported_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    path.write_text("old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_predictions(path, image_ids=[1], detections=[make_detections([BOX])], category_ids=[1])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"predictions\.json"):
        write_predictions(tmp_path / "file" / "predictions.json", image_ids=[], detections=[], category_ids=[])


@pytest.mark.parametrize(
    ("image_ids", "rows", "message"),
    [
        ([1, "001"], [BOX], "came twice"),
        ([1, 2, 3], [BOX], "3 image ids, but detections of 2"),
        ([1, 2], [(1, *BOX[1:])], "class 1 has no category id; 1 were given"),
        ([1, 2], [(*BOX[:5], float("nan"))], "not finite"),
    ],
)
def test_wrong_input_is_refused(tmp_path, image_ids, rows, message):
    with pytest.raises(DataError, match=message):
        write_predictions(
            tmp_path / "p.json", image_ids=image_ids, detections=[make_detections(rows)] * 2, category_ids=[1]
        )
    assert list(tmp_path.iterdir()) == []


def test_detections_are_not_changed_by_writing(tmp_path):
    found = make_detections([BOX])
    double = type(found)(found.boxes_xyxy_px_D4.double(), found.scores_D, found.class_ids_D)
    before = double.boxes_xyxy_px_D4.clone()
    write_predictions(tmp_path / "p.json", image_ids=[1], detections=[double], category_ids=[1])
    assert double.boxes_xyxy_px_D4.equal(before)
