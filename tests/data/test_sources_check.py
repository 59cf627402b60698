from __future__ import annotations

import json
from pathlib import Path

from sources_kit import make_yolo, save_image, write

from ullage.data.check import check


def test_counts_by_hand(tmp_path: Path) -> None:
    labels = {"a": "0 .5 .5 .5 .5\n1 .5 .5 1 1\n1 .1 .1 .1 .1\n", "b": "", "c": "1 .5 .5 .5 .5\n1 .5 .5 0 0\n"}
    make_yolo(tmp_path, labels)
    save_image(tmp_path / "images/train/d.png", size_hw=(200, 300))
    write(tmp_path / "labels/train/d.txt", "0 .5 .5 .5 .5")
    report = check(tmp_path)
    train = report.splits["train"]
    assert (train.images, train.backgrounds, train.boxes, train.crowds) == (4, 1, 5, 0)
    assert train.boxes_per_class == {"cat": 2, "dog": 3}
    assert (train.boxes_per_image.min, train.boxes_per_image.median, train.boxes_per_image.max) == (0, 1, 3)
    assert train.boxes_per_image.mean == 1.25
    assert (train.widths_px.min, train.widths_px.max, train.heights_px.max, train.sizes) == (60, 300, 200, 2)
    assert (train.small, train.medium, train.large) == (3, 1, 1)  # areas 600, 24, 600; 2400; 15000
    assert (train.box_share.min, train.box_share.median, train.box_share.max) == (24 / 2400, 0.25, 1)
    assert [problem.kind for problem in report.problems] == ["box_empty"]
    assert json.loads(report.to_json())["splits"]["train"]["problems"][0]["line"] == 2


def test_full_decoding_finds_what_opening_does_not(tmp_path: Path) -> None:
    """Damage in the middle of a PNG: header and end are in order."""
    yaml = make_yolo(tmp_path, {"a": "0 .5 .5 .5 .5", "b": "0 .5 .5 .5 .5"})
    bad = tmp_path / "images/train/b.png"
    content = bytearray(bad.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    bad.write_bytes(content)
    report = check(yaml)
    assert [(p.kind, p.file, p.action) for p in report.problems] == [("corrupt_image", str(bad), "image_left_out")]
    assert (report.splits["train"].images, report.splits["train"].boxes) == (1, 1)


def test_copies_between_splits_are_found(tmp_path: Path) -> None:
    make_yolo(tmp_path, {"a": "0 .5 .5 .5 .5"})
    yaml = make_yolo(
        tmp_path, {"z": "1 .5 .5 .5 .5"}, split="val", yaml="train: images/train\nval: images/val\nnames: [cat, dog]\n"
    )
    (tmp_path / "images/val/z.png").write_bytes((tmp_path / "images/train/a.png").read_bytes())
    (problem,) = check(yaml).problems
    assert (problem.kind, problem.action) == ("duplicate_image", "kept")
    assert "images/train/a.png" in problem.message


def test_notes_and_text(tmp_path: Path) -> None:
    text = "train: images/train\nval: images/train\nnames: [cat, dog]\n"
    yaml = make_yolo(tmp_path, {f"i{n}": f"0 .5 .5 .5 .5\n{'0 .5 .5 0 0' * (n % 2)}\n" for n in range(60)}, yaml=text)
    report = check(yaml)
    said = str(report)
    assert "train and val share 60 images" in said
    assert "train shows no dog" in said
    assert "train: 60 images (0 without boxes), 60 boxes" in said
    assert "30 problems:" in said
    assert "30 box empty: box left out" in said
    assert "... and 10 more" in said


def test_a_set_without_boxes(tmp_path: Path) -> None:
    report = check(make_yolo(tmp_path, {"a": "", "b": ""}))
    assert (report.splits["train"].boxes, report.splits["train"].box_share.max) == (0, 0)
    assert "classes none" in str(report)
