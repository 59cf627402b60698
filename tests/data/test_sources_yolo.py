from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sources_kit import boxes, kinds, make_yolo, save_image, write

from ullage.data.source import dataset_info, open_dataset
from ullage.data.yolo_txt import label_path
from ullage.errors import DataError


def test_boxes_become_pixels(tmp_path: Path) -> None:
    data = open_dataset(make_yolo(tmp_path, {"a": "1 .5 .5 .5 .5\n0 0.25 0.5 0.1 1\n"}), split="train")
    assert boxes(data) == [[15, 10, 45, 30], [12, 0, 18, 40]]
    assert data.class_ids_N.tolist() == [1, 0]
    assert data.size_hw(0) == (40, 60)
    assert data.boxes_xyxy_px_N4.dtype == np.float32
    assert data.class_ids_N.dtype == np.int32
    assert data.offsets.tolist() == [0, 2]
    assert (data.names, data.category_ids, data.image_ids) == (("cat", "dog"), (0, 1), ("a",))
    assert data.problems == ()


def test_polygons_become_the_box_around_them(tmp_path: Path) -> None:
    text = "0 0.1 0.1 0.5 0.2 0.3 0.9\n1 .2 .2 .4 .2 .4 .6 .2 .6\n"
    assert boxes(open_dataset(make_yolo(tmp_path, {"a": text}), split="train")) == [[6, 4, 30, 36], [12, 8, 24, 24]]


@pytest.mark.parametrize(
    ("line", "kind", "action", "says"),
    [
        ("0 .5 .5 .2", "corrupt_label", "box_left_out", "4 fields"),
        ("0 .5 .5 .2 .2 .9", "corrupt_label", "box_left_out", "6 fields"),
        ("cat .5 .5 .2 .2", "corrupt_label", "box_left_out", "not a number"),
        ("0 nan .5 .2 .2", "corrupt_label", "box_left_out", "not finite"),
        ("0.5 .5 .5 .2 .2", "corrupt_label", "box_left_out", "not a class number"),
        ("1e300 .5 .5 .2 .2", "corrupt_label", "box_left_out", "not a class number"),
        ("2 .5 .5 .2 .2", "class_out_of_range", "box_left_out", "0 to 1"),
        ("-1 .5 .5 .2 .2", "class_out_of_range", "box_left_out", "0 to 1"),
        ("0 .5 .5 0 .2", "box_empty", "box_left_out", "no area"),
        ("0 .5 .5 .2 -.2", "box_empty", "box_left_out", "no area"),
        ("0 30 20 10 10", "box_outside", "box_left_out", "not pixels"),
        ("0 1e308 .5 1e308 .5", "box_empty", "box_left_out", "no area"),
        ("0 1.2 .5 .2 .2", "box_outside", "box_left_out", "60x40"),
        ("0 0 .5 .5 .5", "box_outside", "box_clipped", "overhangs"),
    ],
)
def test_bad_lines_are_reported_with_file_and_line(
    tmp_path: Path, line: str, kind: str, action: str, says: str
) -> None:
    data = open_dataset(make_yolo(tmp_path, {"a": f"0 .5 .5 .1 .1\n\n{line}\n"}), split="train")
    (problem,) = data.problems
    assert (problem.kind, problem.action, problem.line) == (kind, action, 3)
    assert problem.file == str(tmp_path / "labels/train/a.txt")
    assert says in problem.message
    assert f"{problem.file}:3: " in str(problem)
    assert len(data.class_ids_N) == (2 if action == "box_clipped" else 1)


def test_clipping(tmp_path: Path) -> None:
    """Half a pixel of overhang is rounding; more is reported; both end at the border."""
    data = open_dataset(make_yolo(tmp_path, {"a": "0 .1 .5 .21 .5\n0 .9 .5 .4 .5\n"}), split="train")
    assert boxes(data) == [[0, 10, 12.3, 30], [42, 10, 60, 30]]
    assert [problem.line for problem in data.problems] == [2]


def test_duplicate_boxes_are_left_out_once(tmp_path: Path) -> None:
    text = "0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n0 .5 .5 .2 .2\n"
    data = open_dataset(make_yolo(tmp_path, {"a": text}), split="train")
    assert data.class_ids_N.tolist() == [0, 1]
    assert [(problem.kind, problem.line) for problem in data.problems] == [("duplicate_box", 3)]


def test_missing_and_empty_label_files_mean_background(tmp_path: Path) -> None:
    data = open_dataset(make_yolo(tmp_path, {"a": "0 .5 .5 .2 .2", "b": None, "c": ""}), split="train")
    assert [len(data.labels(index)) for index in range(3)] == [1, 0, 0]
    assert kinds(data) == {("missing_label", "kept"): 1}


def test_no_label_file_at_all_is_an_error(tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path, {"a": None, "b": None})
    with pytest.raises(
        DataError, match=r"none of the 2 images of split 'train' has a label file; looked for '.*a\.txt'"
    ):
        open_dataset(yaml, split="train")


def test_orphan_labels_are_reported_but_lists_of_classes_are_not(tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .2 .2"})
    write(tmp_path / "labels/train/gone.txt", "0 .5 .5 .2 .2\n")
    write(tmp_path / "labels/train/classes.txt", "cat\ndog\n")
    data = open_dataset(yaml, split="train")
    assert [(p.kind, p.file, p.action) for p in data.problems] == [
        ("orphan_label", str(tmp_path / "labels/train/gone.txt"), "label_left_out")
    ]


def test_two_images_with_one_label_file(tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .2 .2"})
    save_image(tmp_path / "images/train/a.jpg")
    data = open_dataset(yaml, split="train")
    assert len(data.class_ids_N) == 2
    assert kinds(data) == {("duplicate_label", "kept"): 1}


def test_label_files_that_are_no_text_leave_the_image_out(tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .2 .2", "b": ""})
    (tmp_path / "labels/train/b.txt").write_bytes(b"\xff\xfe\x00\x81")
    data = open_dataset(yaml, split="train")
    assert [Path(path).stem for path in data.paths] == ["a"]
    assert kinds(data) == {("corrupt_label", "image_left_out"): 1}


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path, {"a": ""})
    (tmp_path / "labels/train/a.txt").write_bytes(b"\xef\xbb\xbf0 .5 .5 .2 .2\r\n1 .5 .5 .4 .4\r\n")
    data = open_dataset(yaml, split="train")
    assert data.class_ids_N.tolist() == [0, 1]
    assert data.problems == ()


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_corrupt_images_are_left_out(tmp_path: Path, damage: str) -> None:
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .2 .2"})
    bad = save_image(tmp_path / "images/train/b.jpg", size_hw=(80, 80))
    write(tmp_path / "labels/train/b.txt", "0 .5 .5 .2 .2")
    whole = bad.read_bytes()
    bad.write_bytes({"empty": b"", "text": b"no image", "truncated": whole[: len(whole) // 2]}[damage])
    data = open_dataset(yaml, split="train")
    assert [Path(path).name for path in data.paths] == ["a.png"]
    assert len(data.class_ids_N) == 1
    assert [(p.kind, p.file, p.action) for p in data.problems] == [("corrupt_image", str(bad), "image_left_out")]


def test_only_corrupt_images_are_an_error(tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .2 .2"})
    (tmp_path / "images/train/a.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="none of its 1 images can be used"):
        open_dataset(yaml, split="train")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("I;16", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("P", "gif")]
)
def test_all_kinds_of_images_open(tmp_path: Path, mode: str, suffix: str) -> None:
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .2 .2"})
    save_image(tmp_path / f"images/train/b.{suffix}", size_hw=(20, 30), mode=mode)
    write(tmp_path / "labels/train/b.txt", "0 .5 .5 .2 .2")
    data = open_dataset(yaml, split="train")
    assert data.size_hw(1) == (20, 30)
    assert data.problems == ()


def test_orientation_counts(tmp_path: Path) -> None:
    from PIL import Image

    yaml = make_yolo(tmp_path, {"b": "0 .5 .5 .2 .2"})
    write(tmp_path / "labels/train/a.txt", "0 .5 .25 1 .5")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "images/train/a.jpg", exif=exif)
    data = open_dataset(yaml, split="train")
    assert data.size_hw(0) == (60, 40)
    assert boxes(data) == [[0, 0, 40, 30]]


def test_where_labels_are() -> None:
    assert label_path("/d/images/train/a.b.jpg") == "/d/labels/train/a.b.txt"
    assert label_path("/images/x/images/a.jpg") == "/images/x/labels/a.txt"
    assert label_path("/d/myimages/a.jpg") == "/d/myimages/a.txt"


def test_symbolic_links_keep_their_place(tmp_path: Path) -> None:
    """Images are often links into a common store; their labels lie beside the links."""
    save_image(tmp_path / "store/1234.png")
    (tmp_path / "set/images").mkdir(parents=True)
    os.symlink(tmp_path / "store/1234.png", tmp_path / "set/images/a.png")
    write(tmp_path / "set/labels/a.txt", "0 .5 .5 .2 .2")
    data = open_dataset(write(tmp_path / "set/data.yaml", "train: images\nnc: 1\n"), split="train")
    assert data.paths == (str(tmp_path / "set/images/a.png"),)
    assert len(data.class_ids_N) == 1


def test_names_from_the_labels_when_nobody_tells(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"a": "3 .5 .5 .2 .2"}, yaml="train: images/train\n")
    assert dataset_info(tmp_path).names == ("0", "1", "2", "3")
    write(tmp_path / "classes.txt", "w\nx\ny\nz\n")
    assert dataset_info(tmp_path).names == ("w", "x", "y", "z")


def test_classes_single_cls_and_fraction(tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path, {f"i{number}": "0 .5 .5 .2 .2\n1 .5 .5 .4 .4\n" for number in range(10)})
    one = open_dataset(yaml, split="train", classes=[1])
    assert (len(one), one.names, set(one.class_ids_N.tolist())) == (10, ("cat", "dog"), {1})
    assert [len(one.labels(index)) for index in range(10)] == [1] * 10
    single = open_dataset(yaml, split="train", single_cls=True)
    assert (single.names, single.category_ids, set(single.class_ids_N.tolist())) == (("object",), (0,), {0})
    part = open_dataset(yaml, split="train", fraction=0.3, seed=1)
    again = open_dataset(yaml, split="train", fraction=0.3, seed=1)
    other = open_dataset(yaml, split="train", fraction=0.3, seed=2)
    assert len(part) == 3
    assert part.paths == again.paths != other.paths
    assert list(part.paths) == sorted(part.paths)
    assert len(open_dataset(yaml, split="train", fraction=0.01)) == 1
    with pytest.raises(DataError, match="classes 0 to 1"):
        open_dataset(yaml, split="train", classes=[2])
    with pytest.raises(DataError, match="fraction"):
        open_dataset(yaml, split="train", fraction=0)


def test_nothing_is_written(tmp_path: Path) -> None:
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .2 .2\n0 .5 .5 0 0\n", "b": None})
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    open_dataset(yaml, split="train")
    assert sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
