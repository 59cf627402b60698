"""The benchmark's own parts: the boxes that both sides get, the neutral judge, resuming and the summary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import bccd as driver  # noqa: E402  # pyright: ignore[reportMissingImports]
import machine  # noqa: E402  # pyright: ignore[reportMissingImports]
from peers.bccd_files import coco_ground_truth, read_split, write_yolo  # noqa: E402  # pyright: ignore[reportMissingImports]
from peers.random_batch import random_batch  # noqa: E402  # pyright: ignore[reportMissingImports]

XML = """<annotation><size><width>100</width><height>50</height></size>{}</annotation>"""
OBJECT = (
    """<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""
)


@pytest.fixture
def blood(tmp_path: Path) -> Path:
    """Two images: one with a plain box, one without extent and one over the edge; one with a single box."""
    folder = tmp_path / "bccd"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    first = [("WBC", 10, 10, 30, 20), ("RBC", 5, 5, 5, 9), ("Platelets", 90, 40, 120, 60)]
    for stem, boxes in (("a", first), ("b", [("RBC", 0, 0, 50, 50)])):
        text = XML.format("".join(OBJECT.format(*box) for box in boxes))
        (folder / "Annotations" / f"{stem}.xml").write_text(text)
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(b"not decoded here")
    for split in ("train", "val"):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("a\nb\n")
    return folder


def test_boxes_without_extent_go_and_boxes_over_the_edge_are_clipped(blood: Path) -> None:
    first, second = read_split(blood, "val")
    assert [(b.class_id, b.left, b.top, b.right, b.bottom) for b in first.boxes] == [
        (1, 10, 10, 30, 20),
        (2, 90, 40, 100, 50),
    ]
    assert len(second.boxes) == 1


def test_yolo_files_hold_the_same_boxes(blood: Path, tmp_path: Path) -> None:
    data = json.loads(write_yolo(blood, tmp_path / "yolo").read_text())
    assert data["names"] == {"0": "RBC", "1": "WBC", "2": "Platelets"}
    lines = (tmp_path / "yolo" / "labels" / "val" / "a.txt").read_text().splitlines()
    rows = [[float(word) for word in line.split()] for line in lines]
    assert rows == [[1, 0.2, 0.3, 0.2, 0.2], [2, 0.95, 0.9, 0.1, 0.2]]
    assert (tmp_path / "yolo" / data["train"] / "b.jpg").is_file()


def test_real_bccd_has_the_boxes_it_is_known_to_have(shared: Path) -> None:
    counts = {
        split: len(coco_ground_truth(shared / "data" / "bccd", split)["annotations"])
        for split in ("train", "val", "test")
    }
    assert sum(counts.values()) == 4888 - 2  # two have no extent
    assert counts["val"] == 1137


@pytest.mark.parametrize(("side", "first_category"), [("ours", 0), ("peer", 1)])
def test_judge_gives_full_marks_to_the_truth_whatever_the_side_numbers_its_classes(
    blood: Path, tmp_path: Path, side: str, first_category: int
) -> None:
    entries = [
        {key: entry[key] for key in ("image_id", "bbox")}
        | {"category_id": entry["category_id"] - 1 + first_category, "score": 0.9}
        for entry in coco_ground_truth(blood, "val")["annotations"]
    ]
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps(entries))
    assert driver.judge(predictions, blood, side=side) == pytest.approx({"judged_map": 1, "judged_map50": 1})
    entries[0]["category_id"] = first_category + 2  # a white cell called a platelet
    predictions.write_text(json.dumps(entries))
    assert driver.judge(predictions, blood, side=side)["judged_map"] < 0.9


def test_judge_refuses_classes_that_the_side_does_not_write(blood: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps([{"image_id": "a", "bbox": [0, 0, 1, 1], "category_id": 3, "score": 0.5}]))
    with pytest.raises(SystemExit, match=r"category ids \[3\]; ours should write \[0, 1, 2\]"):
        driver.judge(predictions, blood, side="ours")


def record(side: str, seed: int, map_: float, seconds: float) -> driver.Record:
    return {"side": side, "seed": seed, "map": map_, "map50": 0.8, "judged_map": map_ - 0.01, "judged_map50": 0.79,
            "train_seconds": seconds}  # fmt: skip


def test_summary_states_means_deviations_and_ratio() -> None:
    runs = [
        record("ours", 0, 0.50, 100),
        record("ours", 1, 0.54, 140),
        record("peer", 0, 0.50, 200),
        record("peer", 1, 0.50, 200),
    ]
    line = driver.summary(runs)
    assert "ours (2 seeds): map 0.5200 ± 0.0283" in line
    assert "map +0.0200" in line
    assert line.endswith("wall time x 0.600")


def test_summary_gives_no_ratio_from_different_seeds() -> None:
    assert "no ratio" in driver.summary([record("ours", 0, 0.5, 100), record("peer", 1, 0.5, 200)])
    assert "peer: no run yet" in driver.summary([record("ours", 0, 0.5, 100)])


def test_finished_runs_are_found_again_and_others_are_not(tmp_path: Path) -> None:
    results = tmp_path / "deep" / "bccd.jsonl"
    key = {"side": "ours", "seed": 0, "epochs": 60}
    assert driver.read_records(results) == []
    driver.append(results, {**key, "map": 0.1})
    driver.append(results, {**key, "map": 0.2})
    found = driver.find(driver.read_records(results), key)
    assert found is not None
    assert found["map"] == 0.2
    assert driver.find(driver.read_records(results), {**key, "epochs": 1}) is None


def test_best_row_is_the_epoch_with_the_highest_map(tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    table.write_text("epoch,metrics/mAP50-95(B),metrics/mAP50(B)\n1,0.2,0.5\n2,0.4,0.6\n3,0.3,0.7\n")
    assert driver.best_row(table) == {"map": 0.4, "map50": 0.6, "best_epoch": 2}


def test_random_batch_is_the_same_every_time_and_its_boxes_lie_inside() -> None:
    batch = random_batch(images=64, size=32)
    assert batch.fingerprint() == random_batch(images=64, size=32).fingerprint()
    assert batch.fingerprint() != random_batch(images=64, size=32, seed=1).fingerprint()
    centres, sides = batch.boxes_cxcywh_unit_G4[:, :2], batch.boxes_cxcywh_unit_G4[:, 2:]
    assert (centres - sides / 2 > -1e-6).all()
    assert (centres + sides / 2 < 1 + 1e-6).all()
    assert 4 < len(sides) / 64 < 11


def test_missing_peer_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the peer's Python is not at"):
        machine.peer_python(str(tmp_path / "python"))
    done = subprocess.run(
        [sys.executable, str(BENCH / "bccd.py"), "--data", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "not BCCD" in done.stderr
    assert "Traceback" not in done.stderr
