from __future__ import annotations

import os
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import ullage.data
from ullage.data.check import check
from ullage.data.source import dataset_info, open_dataset

DEMO = Path(str(files(ullage.data) / "demo"))


def test_the_demo_set_is_whole_and_balanced() -> None:
    report = check("demo")
    assert report.problems == ()
    assert (report.splits["train"].images, report.splits["val"].images, len(report.names)) == (240, 60, 10)
    for split in report.splits.values():
        counts = list(split.boxes_per_class.values())
        assert min(counts) > 0.9 * max(counts)
        assert (split.boxes_per_image.min, split.boxes_per_image.max) >= (1, 1)
        assert split.boxes_per_image.max <= 10
        assert split.sizes >= 4
    assert report.splits["val"].backgrounds == 0


def test_digits_are_large_enough_and_do_not_touch() -> None:
    for split in ("train", "val"):
        data = open_dataset("demo", split=split)  # pyright: ignore
        heights = data.boxes_xyxy_px_N4[:, 3] - data.boxes_xyxy_px_N4[:, 1]
        assert heights.min() > 20
        assert heights.max() < 120
        for index in range(len(data)):
            boxes = data.labels(index).boxes_xyxy_px_G4
            left_top = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
            right_bottom = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
            overlap = (right_bottom - left_top).clip(0).prod(-1)
            assert (overlap[~np.eye(len(boxes), dtype=bool)] == 0).all()


def test_the_demo_set_is_small_and_credited() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 3_000_000
    readme = (DEMO / "README.md").read_text()
    for credit in ("CC BY 4.0", "CC BY 2.0", "Alpaydin", "danielbuechele", "vultilion"):
        assert credit in readme


def test_demo_means_the_packaged_set_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert dataset_info("demo").root == DEMO


def test_opening_needs_no_write_access(tmp_path: Path) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(DEMO, copy)
    folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
    for folder in folders:
        os.chmod(folder, 0o555)
    try:
        before = sorted(copy.rglob("*"))
        assert len(open_dataset(copy, split="val")) == 60
        assert sorted(copy.rglob("*")) == before
    finally:
        for folder in folders:
            os.chmod(folder, 0o755)
