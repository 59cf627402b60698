from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sources_kit import boxes, coco_yaml, kinds, make_coco, save_image, write

from ullage.data.source import dataset_info, open_dataset
from ullage.errors import DataError


def annotation(bbox: object = (10, 5, 20, 10), category: object = 90, image: object = 7, **more: object) -> dict:
    return {"id": 1, "image_id": image, "category_id": category, "bbox": bbox, **more}


def test_boxes_classes_and_ids(tmp_path: Path) -> None:
    file = make_coco(tmp_path, annotations=[annotation(area=123.0), annotation((0, 0, 60, 40), 3, iscrowd=1, area=9)])
    data = open_dataset(coco_yaml(file), split="train")
    assert boxes(data) == [[10, 5, 30, 15], [0, 0, 60, 40]]
    assert (data.names, data.category_ids, data.image_ids) == (("cat", "dog"), (3, 90), (7,))
    assert data.class_ids_N.tolist() == [1, 0]
    assert data.crowd_N.tolist() == [False, True]
    assert data.areas_px2(0).tolist() == [123, 9]
    assert data.problems == ()


def test_areas_of_boxes_where_the_file_is_silent(tmp_path: Path) -> None:
    data = open_dataset(coco_yaml(make_coco(tmp_path, annotations=[annotation()])), split="train")
    assert data.areas_px2(0).tolist() == [200]


def test_names_of_the_yaml_set_the_order(tmp_path: Path) -> None:
    file = make_coco(tmp_path, annotations=[annotation(), annotation((1, 1, 5, 5), 3)])
    data = open_dataset(coco_yaml(file, "names: [dog, bird]\n"), split="train")
    assert (data.names, data.category_ids[0], data.class_ids_N.tolist()) == (("dog", "bird"), 90, [0])
    assert data.category_ids[1] not in (3, 90)
    (problem,) = data.problems
    assert (problem.kind, problem.line) == ("class_out_of_range", 1)
    assert "'cat' is not among the names" in problem.message


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (annotation((10, 5, 0, 10)), "box_empty"),
        (annotation((100, 5, 10, 10)), "box_outside"),
        (annotation((50, 5, 20, 10)), "box_outside"),
        (annotation((10, 5, 20)), "corrupt_label"),
        (annotation((10, 5, 20, None)), "corrupt_label"),
        (annotation((10, 5, 20, 10**400)), "corrupt_label"),
        (annotation((10, 5, 20, float("nan"))), "corrupt_label"),
        (annotation("10 5 20 10"), "corrupt_label"),
        (annotation(None), "corrupt_label"),
        (annotation(category=4), "class_out_of_range"),
        (annotation(category="dog"), "corrupt_label"),
        (annotation(image=8), "orphan_label"),
        (annotation(image=[7]), "corrupt_label"),
        ("not an object", "corrupt_label"),
    ],
)
def test_bad_annotations_are_reported_by_number(tmp_path: Path, entry: object, kind: str) -> None:
    file = make_coco(tmp_path, annotations=[annotation(), entry])
    data = open_dataset(coco_yaml(file), split="train")
    (problem,) = data.problems
    assert (problem.kind, problem.file, problem.line) == (kind, str(file), 1)
    assert len(data.class_ids_N) == (2 if problem.action == "box_clipped" else 1)


def test_polygons_without_bbox(tmp_path: Path) -> None:
    entry = annotation(None, segmentation=[[1, 2, 11, 2, 11, 22], [20, 5, 25, 5, 25, 6]])
    assert boxes(open_dataset(coco_yaml(make_coco(tmp_path, annotations=[entry])), split="train")) == [[1, 2, 25, 22]]


def test_duplicates(tmp_path: Path) -> None:
    image = {"id": 7, "file_name": "a.png", "height": 40, "width": 60}
    file = make_coco(tmp_path, annotations=[annotation(), annotation()], images=[image, {**image, "id": 8}, image])
    data = open_dataset(coco_yaml(file), split="train")
    assert len(data) == 1
    assert kinds(data) == {("duplicate_box", "box_left_out"): 1, ("duplicate_image", "image_left_out"): 2}


def test_size_mismatch_is_reported(tmp_path: Path) -> None:
    image = {"id": 7, "file_name": "a.png", "height": 60, "width": 40}
    data = open_dataset(coco_yaml(make_coco(tmp_path, annotations=[annotation()], images=[image])), split="train")
    assert kinds(data) == {("size_mismatch", "kept"): 1}


def test_missing_images_are_left_out_or_kept_on_request(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{name}.png", "height": 40, "width": 60} for i, name in ((7, "a"), (8, "gone"))]
    yaml = coco_yaml(make_coco(tmp_path, annotations=[annotation(image=8)], images=images))
    data = open_dataset(yaml, split="train")
    assert (len(data), len(data.class_ids_N), kinds(data)) == (1, 0, {("missing_image", "image_left_out"): 1})
    kept = open_dataset(yaml, split="train", missing_images="keep")
    assert (len(kept), len(kept.class_ids_N), kept.size_hw(1)) == (2, 1, (40, 60))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "list of detections"),
        ("{}", "needs a list 'images'"),
        ("5", "no COCO JSON"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}', "lists no images"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": []}', "no categories"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": [{"id": "1"}]}',
            "needs a whole 'id'",
        ),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_files_that_are_no_ground_truth(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_dataset(write(tmp_path / "truth.json", text), split="train")


def test_a_single_file_is_dealt_out_for_good(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in range(20)]
    for image in images:
        save_image(tmp_path / "images" / image["file_name"])
    entries = [annotation(image=i) for i in range(20)]
    file = make_coco(tmp_path / "annotations", annotations=entries, images=images)
    train, val = (open_dataset(file, split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (16, 4)
    assert not set(train.paths) & set(val.paths)
    assert (len(train.class_ids_N), len(val.class_ids_N)) == (16, 4)
    moved = write(tmp_path / "elsewhere.json", file.read_text())
    assert set(open_dataset(moved, split="val").image_ids) == set(val.image_ids)
    assert "80 % train and 20 % val" in dataset_info(file).notes[0]
    with pytest.raises(DataError, match="has no split 'test'; it has: train, val"):
        open_dataset(file, split="test")


def test_split_folders_may_hold_equal_names(tmp_path: Path) -> None:
    """COCO's own layout: images/train, images/val, one JSON each; the files are told apart by split."""
    for split, size in (("train", 40), ("val", 20)):
        save_image(tmp_path / "images" / split / "a.png", size_hw=(size, 60))
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": size, "width": 60}],
            "annotations": [annotation(image=1)],
            "categories": [{"id": 90, "name": "dog"}],
        }
        write(tmp_path / "annotations" / f"instances_{split}.json", json.dumps(content))
    mapped = "annotations: {train: annotations/instances_train.json, val: annotations/instances_val.json}"
    yaml = write(tmp_path / "set/data.yaml", f"path: ..\ntrain: images/train\nval: images/val\n{mapped}\n")
    for data in (tmp_path, yaml):
        for split, size in (("train", 40), ("val", 20)):
            found = open_dataset(data, split=split)  # pyright: ignore
            assert (found.size_hw(0), found.problems) == ((size, 60), ())
            assert found.paths == (str(tmp_path / "images" / split / "a.png"),)


def test_one_file_cut_by_lists(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(4)]
    for image in images:
        save_image(tmp_path / "images" / image["file_name"])
    make_coco(tmp_path, annotations=[annotation(image=i) for i in range(4)], images=images)
    write(tmp_path / "val.txt", "images/3.png\n")
    write(tmp_path / "train.txt", "images/0.png\nimages/2.png\n")
    text = "format: coco\nannotations: truth.json\nimages: images\ntrain: train.txt\nval: val.txt\n"
    yaml = write(tmp_path / "data.yaml", text)
    assert open_dataset(yaml, split="train").image_ids == (0, 2)
    assert open_dataset(yaml, split="val").image_ids == (3,)
    assert np.diff(open_dataset(yaml, split="train").offsets).tolist() == [1, 1]


def test_files_that_disagree_about_a_category(tmp_path: Path) -> None:
    make_coco(tmp_path, annotations=[annotation()])
    other = json.loads((tmp_path / "truth.json").read_text())
    other["categories"][0]["name"] = "bird"
    write(tmp_path / "other.json", json.dumps(other))
    yaml = write(tmp_path / "data.yaml", "train: truth.json\nval: other.json\n")
    with pytest.raises(DataError, match="calls category 3 'bird', another file calls it 'cat'"):
        open_dataset(yaml, split="train")
