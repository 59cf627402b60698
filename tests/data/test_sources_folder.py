from __future__ import annotations

import json
from pathlib import Path

import pytest
from sources_kit import make_yolo, save_image, write

from ullage.data.source import dataset_info, open_dataset
from ullage.errors import DataError

BOX = "0 .5 .5 .2 .2\n"


def label(root: Path, image: str, text: str) -> None:
    save_image(root / image)
    write(root / text, BOX)


def test_a_yaml_in_the_folder_wins(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"a": BOX}, yaml="val: images/train\nnames: [x]\n")
    assert dataset_info(tmp_path).splits == ("val",)
    (tmp_path / "data.yaml").rename(tmp_path / "mine.yml")
    assert dataset_info(tmp_path).names == ("x",)
    write(tmp_path / "other.yaml", "val: images/train\n")
    with pytest.raises(DataError, match="several YAML files"):
        dataset_info(tmp_path)


@pytest.mark.parametrize("layout", ["images/train", "train/images", "train", "images/train2017"])
def test_yolo_layouts_with_splits(tmp_path: Path, layout: str) -> None:
    for split in ("train", "valid"):
        folder = layout.replace("train", split)
        label(tmp_path, f"{folder}/{split}.png", f"{folder.replace('images', 'labels')}/{split}.txt")
    info = dataset_info(tmp_path)
    assert (info.splits, info.format, info.names, info.notes) == (("train", "val"), "yolo", ("0",), ())
    assert Path(open_dataset(tmp_path, split="val").paths[0]).stem == "valid"
    assert len(open_dataset(tmp_path, split="train").class_ids_N) == 1


@pytest.mark.parametrize("layout", ["images", "."])
def test_flat_folders_are_dealt_out(tmp_path: Path, layout: str) -> None:
    for number in range(15):
        label(tmp_path, f"{layout}/{number}.png", f"{layout.replace('images', 'labels')}/{number}.txt")
    train, val = (open_dataset(tmp_path, split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (12, 3)
    assert not set(train.paths) & set(val.paths)
    assert "hash" in dataset_info(tmp_path).notes[0]
    assert train.problems == val.problems == ()


def test_dealing_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    for place in ("one", "two/deeper"):
        for number in range(15):
            label(tmp_path / place, f"images/{number}.png", f"labels/{number}.txt")
    names = [
        [Path(p).name for p in open_dataset(tmp_path / place, split="val").paths] for place in ("one", "two/deeper")
    ]
    assert names[0] == names[1]


def test_a_single_image_is_in_both_splits(tmp_path: Path) -> None:
    label(tmp_path, "images/a.png", "labels/a.txt")
    assert open_dataset(tmp_path, split="train").paths == open_dataset(tmp_path, split="val").paths


def test_coco_export_with_a_json_a_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        save_image(tmp_path / split / "a.jpg")
        content = {
            "images": [{"id": 0, "file_name": "a.jpg", "height": 40, "width": 60}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}],
            "categories": [{"id": 1, "name": "x"}],
        }
        write(tmp_path / split / "_annotations.coco.json", json.dumps(content))
    assert (dataset_info(tmp_path).format, dataset_info(tmp_path).splits) == ("coco", ("train", "val"))
    assert open_dataset(tmp_path, split="val").paths == (str(tmp_path / "valid/a.jpg"),)


def test_csv_a_split(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    for split in ("train", "val"):
        write(tmp_path / f"{split}.csv", "image,xmin,ymin,xmax,ymax,label\na.png,1,2,3,4,x\n")
    write(tmp_path / "licences.csv", "image,author\na.png,me\n")
    assert (dataset_info(tmp_path).format, dataset_info(tmp_path).splits) == ("csv", ("train", "val"))


def test_empty_folders_and_folders_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no data set: found nothing; it needs"):
        open_dataset(tmp_path, split="train")
    write(tmp_path / "notes.md", "hello")
    with pytest.raises(DataError, match=r"found notes\.md"):
        open_dataset(tmp_path, split="train")


def test_images_without_any_label(tmp_path: Path) -> None:
    save_image(tmp_path / "images/a.png")
    with pytest.raises(DataError, match=r"none of the 1 images .* has a label file"):
        open_dataset(tmp_path, split="train")


def test_several_json_files(tmp_path: Path) -> None:
    write(tmp_path / "one.json", "{}")
    write(tmp_path / "two.json", "{}")
    with pytest.raises(DataError, match="several JSON files"):
        open_dataset(tmp_path, split="train")
