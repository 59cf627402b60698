"""The real data sets, against the counts that their readme states."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from sources_kit import kinds, write

from ullage.data.check import check
from ullage.data.source import dataset_info, open_dataset


def test_blood_cells(shared: Path) -> None:
    sets = {split: open_dataset(shared / "data/bccd/data.yaml", split=split) for split in ("train", "val", "test")}
    assert [len(one) for one in sets.values()] == [205, 87, 72]
    problems = list(itertools.chain(*(one.problems for one in sets.values())))
    assert sorted(Path(problem.file).stem for problem in problems) == ["BloodImage_00338", "BloodImage_00343"]
    assert {problem.kind for problem in problems} == {"box_empty"}
    assert sum(len(one.class_ids_N) for one in sets.values()) == 4888 - 2
    assert sets["train"].names == ("RBC", "WBC", "Platelets")
    assert set(sets["val"].sizes_hw_I2.ravel().tolist()) == {480, 640}


def test_coco128_in_both_formats(shared: Path, tmp_path: Path) -> None:
    yolo = open_dataset(shared / "data/coco128/data.yaml", split="train")
    assert (len(yolo), len(yolo.class_ids_N), int((np.diff(yolo.offsets) == 0).sum())) == (128, 929, 2)
    assert kinds(yolo) == {("missing_label", "kept"): 2, ("orphan_label", "label_left_out"): 2}
    file = shared / "data/coco128/annotations/instances_train2017.json"
    coco = open_dataset(write(tmp_path / "d.yaml", f"train: {file}\n"), split="train")
    assert (len(coco), len(coco.class_ids_N), int(coco.crowd_N.sum())) == (128, 939, 10)
    assert (coco.names, coco.problems) == (yolo.names, ())
    assert (coco.category_ids[:12], coco.category_ids[-1]) == ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13), 90)
    by_name = {Path(path).name: index for index, path in enumerate(coco.paths)}
    for index, path in enumerate(yolo.paths):
        one, other = yolo.labels(index), coco.labels(by_name[Path(path).name])
        other = other.select(~other.crowd_G)
        key = np.lexsort((*one.boxes_xyxy_px_G4.round().T, one.class_ids_G))
        other_key = np.lexsort((*other.boxes_xyxy_px_G4.round().T, other.class_ids_G))
        assert one.class_ids_G[key].tolist() == other.class_ids_G[other_key].tolist()
    splits = [open_dataset(file, split=split) for split in ("train", "val")]
    assert [len(one) for one in splits] == [102, 26]


def test_aerial(shared: Path) -> None:
    sets = [open_dataset(shared / "data/aerial", split=split) for split in ("train", "val")]
    assert ([len(one) for one in sets], sum(len(one.class_ids_N) for one in sets)) == ([45, 20], 2593)
    assert [(p.kind, p.action) for one in sets for p in one.problems] == [("box_outside", "box_clipped")]


def test_aquarium(shared: Path) -> None:
    report = check(shared / "data/aquarium/data.yaml")
    assert (report.splits["train"].images, report.splits["train"].boxes, len(report.names)) == (127, 909, 7)
    assert report.problems == ()
    assert any("share 127 images" in note for note in report.notes)


def test_ground_truth_without_images(shared: Path, tmp_path: Path) -> None:
    file = shared / "data/coco_metrics/instances_val2014_100.json"
    yaml = write(tmp_path / "d.yaml", f"val: {file}\n")
    data = open_dataset(yaml, split="val", missing_images="keep")
    assert (len(data), len(data.class_ids_N), int(data.crowd_N.sum())) == (100, 839, 9)
    assert data.areas_px2_N is not None
    assert data.areas_px2_N[0] < (data.boxes_xyxy_px_N4[0, 2:] - data.boxes_xyxy_px_N4[0, :2]).prod()


@pytest.mark.parametrize("name", ["bccd", "coco128", "aerial", "aquarium"])
def test_folders_are_the_same_as_their_yaml(shared: Path, name: str) -> None:
    folder = shared / "data" / name
    assert dataset_info(folder) == dataset_info(folder / "data.yaml")
