from __future__ import annotations

from pathlib import Path

import pytest
from sources_kit import boxes, kinds, make_voc, save_image, voc_object, write

from ullage.data.source import dataset_info, open_dataset
from ullage.errors import DataError

HEAD = "image,xmin,ymin,xmax,ymax,label"


def test_voc_boxes_and_difficult_objects(tmp_path: Path) -> None:
    text = voc_object("dog", 1, 2, 30, 20) + voc_object("cat", 0.5, 0, 60, 40, difficult=1)
    data = open_dataset(make_voc(tmp_path, {"a": text, "b": ""}), split="train")
    assert boxes(data) == [[1, 2, 30, 20], [0.5, 0, 60, 40]]
    assert (data.names, data.class_ids_N.tolist(), data.crowd_N.tolist()) == (("cat", "dog"), [1, 0], [False, True])
    assert (len(data), data.problems) == (2, ())


@pytest.mark.parametrize(
    ("thing", "kind", "action"),
    [
        (voc_object("dog", 5, 5, 5, 5), "box_empty", "box_left_out"),
        (voc_object("dog", 30, 5, 5, 9), "box_empty", "box_left_out"),
        (voc_object("dog", 70, 5, 80, 9), "box_outside", "box_left_out"),
        (voc_object("dog", -9, 5, 20, 9), "box_outside", "box_clipped"),
        (voc_object("dog", 1, 2, 3), "corrupt_label", "box_left_out"),
        (voc_object("dog", 1, 2, 3, "x"), "corrupt_label", "box_left_out"),
        (voc_object("dog", 1, 2, 30, 20), "duplicate_box", "box_left_out"),
        ("<object><name>dog</name></object>", "corrupt_label", "box_left_out"),
    ],
)
def test_voc_bad_objects(tmp_path: Path, thing: str, kind: str, action: str) -> None:
    data = open_dataset(make_voc(tmp_path, {"a": voc_object("dog", 1, 2, 30, 20) + thing}), split="train")
    (problem,) = data.problems
    assert (problem.kind, problem.action, problem.line) == (kind, action, 1)
    assert problem.file == str(tmp_path / "Annotations/a.xml")


def test_voc_unknown_names_get_a_hint(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": voc_object("platelet", 1, 2, 30, 20) + voc_object("dog", 1, 2, 30, 20)})
    lists = "train: ImageSets/Main/train.txt\nimages: JPEGImages\nannotations: Annotations\n"
    data = open_dataset(write(tmp_path / "v.yaml", f"format: voc\n{lists}names: [dog, platelets]\n"), split="train")
    (problem,) = data.problems
    assert problem.kind == "class_out_of_range"
    assert "Did you mean 'platelets'" in problem.message


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'
READS_A_FILE = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/hostname">]><annotation>&f;</annotation>'


@pytest.mark.parametrize("text", ["", "no xml", "<annotation><object></annotation>", BOMB, READS_A_FILE])
def test_voc_files_that_cannot_be_read_leave_the_image_out(tmp_path: Path, text: str) -> None:
    make_voc(tmp_path, {"a": voc_object("dog", 1, 2, 30, 20), "b": ""})
    write(tmp_path / "Annotations/b.xml", text)
    data = open_dataset(tmp_path, split="train")
    assert len(data) == 1
    assert kinds(data) == {("corrupt_label", "image_left_out"): 1}


def test_voc_missing_parts(tmp_path: Path) -> None:
    objects = {"a": voc_object("dog", 1, 2, 30, 20), "b": "", "c": ""}
    make_voc(tmp_path, objects, lists={"train": ["a", "b", "gone"], "val": ["c"]})
    (tmp_path / "Annotations/b.xml").unlink()
    write(tmp_path / "Annotations/gone.xml", "<annotation/>")
    write(tmp_path / "Annotations/orphan.xml", "<annotation/>")
    data = open_dataset(tmp_path, split="train")
    assert [Path(path).stem for path in data.paths] == ["a"]
    assert {(p.kind, Path(p.file).name, p.line) for p in data.problems} == {
        ("missing_label", "b.xml", None), ("missing_image", "train.txt", 3), ("orphan_label", "orphan.xml", None),
    }  # fmt: skip
    with pytest.raises(DataError, match="has no split 'test'"):
        open_dataset(tmp_path, split="test")


def test_voc_without_lists_or_beside_the_images(tmp_path: Path) -> None:
    objects = {f"i{number}": voc_object("dog", 1, 2, 30, 20) for number in range(10)}
    make_voc(tmp_path / "devkit", objects)
    (tmp_path / "devkit/ImageSets/Main/train.txt").unlink()
    assert [len(open_dataset(tmp_path / "devkit", split=split)) for split in ("train", "val")] == [8, 2]
    for stem, text in objects.items():
        save_image(tmp_path / "flat" / f"{stem}.jpg")
        write(tmp_path / "flat" / f"{stem}.xml", f"<annotation>{text}</annotation>")
    assert [len(open_dataset(tmp_path / "flat", split=split)) for split in ("train", "val")] == [8, 2]


def test_voc_size_mismatch(tmp_path: Path) -> None:
    make_voc(tmp_path, {"a": voc_object("dog", 1, 2, 30, 20)})
    save_image(tmp_path / "JPEGImages/a.jpg", size_hw=(60, 40))
    assert kinds(open_dataset(tmp_path, split="train")) == {("size_mismatch", "kept"): 1}


def test_csv_splits_backgrounds_and_quotes(tmp_path: Path) -> None:
    for name in ("a,b", "c", "d"):
        save_image(tmp_path / "img" / f"{name}.png")
    rows = ['"img/a,b.png",1,2,30,20,"big, dog",train', "img/c.png,,,,,,train", "img/d.png,1,2,30.5,20,cat,valid"]
    file = write(tmp_path / "labels.csv", "\n".join([f"{HEAD},split", *rows]))
    train, val = (open_dataset(file, split=split) for split in ("train", "val"))
    assert train.names == val.names == ("big, dog", "cat")
    assert [len(train.labels(index)) for index in range(2)] == [1, 0]
    assert boxes(val) == [[1, 2, 30.5, 20]]
    assert train.problems == val.problems == ()
    assert dataset_info(tmp_path).splits == ("train", "val")


@pytest.mark.parametrize(
    ("row", "kind", "line"),
    [
        ("a.png,1,2,x,20,dog", "corrupt_label", 3),
        ("a.png,1,2,nan,20,dog", "corrupt_label", 3),
        ("a.png,1,2,,20,dog", "corrupt_label", 3),
        ("a.png,1,2", "corrupt_label", 3),
        (",1,2,30,20,dog", "corrupt_label", 3),
        ("a.png,5,5,5,9,dog", "box_empty", 3),
        ("a.png,1,2,300,20,dog", "box_outside", 3),
        ("a.png,1,2,30,20,dog", "duplicate_box", 3),
        ("gone.png,1,2,30,20,dog", "missing_image", 3),
    ],
)
def test_csv_bad_rows(tmp_path: Path, row: str, kind: str, line: int) -> None:
    save_image(tmp_path / "a.png")
    write(tmp_path / "labels.csv", f"{HEAD}\na.png,1,2,30,20,dog\n{row}\n")
    data = open_dataset(write(tmp_path / "d.yaml", "train: labels.csv\nnames: [dog]\n"), split="train")
    assert [(p.kind, p.file, p.line) for p in data.problems] == [(kind, str(tmp_path / "labels.csv"), line)]


def test_csv_unknown_label(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    write(tmp_path / "labels.csv", f"{HEAD}\na.png,1,2,30,20,dogs\n")
    data = open_dataset(write(tmp_path / "d.yaml", "train: labels.csv\nnames: [dog]\n"), split="train")
    assert kinds(data) == {("class_out_of_range", "box_left_out"): 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must name the columns"),
        ("image,x1,y1,x2,y2,label\na.png,1,2,3,4,dog\n", "xmin"),
        (f"{HEAD}\n", "no rows"),
        (f"{HEAD},split\na.png,1,2,30,20,dog,holdout\n", "line 2: split 'holdout' is unknown; allowed: train, val"),
        (f"{HEAD}\na.png,,,,,\n", "no row has a label"),
    ],
)
def test_csv_that_is_no_table_of_boxes(tmp_path: Path, text: str, says: str) -> None:
    save_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=says):
        open_dataset(write(tmp_path / "labels.csv", text), split="train")


def test_csv_aliases_other_columns_and_dealing(tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,60,40,dog,1,2,30,20\n" for number in range(10))
    for number in range(10):
        save_image(tmp_path / "pictures" / f"{number}.png")
    write(tmp_path / "t.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\n{rows}")
    yaml = write(tmp_path / "d.yaml", "format: csv\nannotations: t.csv\nimages: pictures\n")
    assert [len(open_dataset(yaml, split=split)) for split in ("train", "val")] == [8, 2]
