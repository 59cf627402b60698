from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sources_kit import coco_yaml, make_coco, make_yolo, save_image, write

from ullage.data.convert import convert
from ullage.data.index import DetectionSet
from ullage.data.source import dataset_info, open_dataset
from ullage.errors import ConfigError, DataError, StorageError

FORMATS = ("yolo", "coco", "voc", "csv")
Target = Literal["yolo", "coco", "voc", "csv"]
Content = dict[str, tuple[tuple[int, int], set[tuple[float, ...]]]]


def content(data: DetectionSet, *, crowds: bool = True) -> Content:
    """Return what a data set says, by image: size and rows of class, crowd and box."""
    found: Content = {}
    for index, path in enumerate(data.paths):
        labels = data.labels(index)
        rows = np.column_stack((labels.class_ids_G, labels.crowd_G, labels.boxes_xyxy_px_G4.astype(np.float64)))
        found[Path(path).name] = (data.size_hw(index), {tuple(row) for row in rows.tolist() if crowds or not row[1]})
    return found


def close(one: Content, other: Content) -> bool:
    """Compare to a ten thousandth of a pixel."""

    def rounded(values: Content) -> object:
        return {
            name: (size, sorted((*row[:2], *np.round(row[2:], 3)) for row in rows))
            for name, (size, rows) in values.items()
        }

    return rounded(one) == rounded(other)


@st.composite
def boxes(draw: st.DrawFn, height: int, width: int) -> tuple[float, float, float, float]:
    """Boxes on a grid of an eighth of a pixel, exact in every format."""
    left, right = sorted(draw(st.lists(st.integers(0, width * 8), min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(draw(st.lists(st.integers(0, height * 8), min_size=2, max_size=2, unique=True)))
    return left / 8, top / 8, right / 8, bottom / 8


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[tuple[tuple[int, int], list[tuple[int, tuple[float, ...]]]]]]:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    images = []
    for _ in range(draw(st.integers(1, 4))):
        height, width = draw(st.integers(8, 40)), draw(st.integers(8, 40))
        entry = st.tuples(st.integers(0, len(names) - 1), boxes(height, width))
        images.append(((height, width), draw(st.lists(entry, max_size=5, unique=True))))
    return names, images


@settings(max_examples=25, deadline=None)
@given(table=tables(), chain=st.permutations(FORMATS))
def test_round_trips(table: tuple[list[str], list], chain: list[Target]) -> None:
    """Any data set, converted from format to format in any order, stays the same."""
    names, images = table
    root = Path(tempfile.mkdtemp())
    try:
        for number, (size_hw, rows) in enumerate(images):
            save_image(root / f"images/{number}.png", size_hw=size_hw)
            (height, width) = size_hw
            lines = [
                f"{kind} {(x0 + x1) / 2 / width} {(y0 + y1) / 2 / height} {(x1 - x0) / width} {(y1 - y0) / height}"
                for kind, (x0, y0, x1, y1) in rows
            ]
            write(root / f"labels/{number}.txt", "\n".join(lines))
        write(root / "data.yaml", yaml.safe_dump({"train": "images", "names": names}, allow_unicode=True))
        first = open_dataset(root, split="train")
        assert first.problems == ()
        data: Path | str = root
        for number, to in enumerate(chain):
            data = convert(data, to=to, out=root / f"out{number}").path
            again = open_dataset(data, split="train")
            assert dataset_info(data).format == to
            assert again.names == tuple(names)
            assert again.problems == ()
            assert close(content(again), content(first))
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("to", FORMATS)
def test_real_sets_survive(shared: Path, tmp_path: Path, to: Target) -> None:
    file = shared / "data/coco128/annotations/instances_train2017.json"
    source = write(tmp_path / "d.yaml", f"val: {file}\n")
    result = convert(source, to=to, out=tmp_path / "out")
    before, after = open_dataset(source, split="val"), open_dataset(result.path, split="val")
    assert after.names == before.names
    assert after.problems == ()
    assert close(content(after), content(before, crowds=to != "yolo"))
    assert ("10 crowd regions were left out: YOLO files cannot mark them" in result.notes) == (to == "yolo")
    if to == "coco":
        assert (after.image_ids, after.category_ids) == (before.image_ids, before.category_ids)
        assert np.allclose(after.areas_px2_N, before.areas_px2_N)  # pyright: ignore


@pytest.mark.parametrize("to", FORMATS)
def test_splits_stay_apart_and_shared_images_stay_shared(tmp_path: Path, to: Target) -> None:
    make_yolo(tmp_path / "in", {"a": "0 .5 .5 .5 .5", "b": "1 .5 .5 .5 .5"})
    make_yolo(tmp_path / "in", {"a": "1 .25 .25 .25 .25"}, split="val")
    write(tmp_path / "in/data.yaml", "train: images/train\nval: [images/val, images/train/b.png]\nnames: [cat, dog]\n")
    result = convert(tmp_path / "in", to=to, out=tmp_path / "out")
    assert result.images == {"train": 2, "val": 2}
    assert any("1 images got a new name" in note for note in result.notes)
    train, val = (content(open_dataset(result, split=split)) for split in ("train", "val"))  # pyright: ignore
    assert set(train) == {"a.png", "b.png"}
    assert set(val) == {"a_2.png", "b.png"}
    assert val["a_2.png"][1] == {(1, 0, 7.5, 5, 22.5, 15)}


def test_cleaning_is_carried_over_and_told(tmp_path: Path) -> None:
    make_yolo(tmp_path / "in", {"a": "0 .5 .5 .5 .5\n0 .5 .5 0 0\n"})
    result = convert(tmp_path / "in", to="csv", out=tmp_path / "out")
    assert open_dataset(result.path, split="train").problems == ()
    assert any("1 problems were cleaned away" in note for note in result.notes)
    assert "1 images, 1 boxes" in str(result)


def test_links_instead_of_copies(tmp_path: Path) -> None:
    make_yolo(tmp_path / "in", {"a": "0 .5 .5 .5 .5"})
    linked = convert(tmp_path / "in", to="yolo", out=tmp_path / "out", images="link").path / "images/train/a.png"
    copied = convert(tmp_path / "in", to="yolo", out=tmp_path / "copy").path / "images/train/a.png"
    source = tmp_path / "in/images/train/a.png"
    assert linked.samefile(source)
    assert not copied.samefile(source)
    assert copied.read_bytes() == source.read_bytes()


def test_refusals(tmp_path: Path) -> None:
    yaml_file = make_yolo(tmp_path / "in", {"a": "0 .5 .5 .5 .5"})
    write(tmp_path / "full/mine.txt", "keep me")
    with pytest.raises(StorageError, match="not an empty folder"):
        convert(yaml_file, to="coco", out=tmp_path / "full")
    with pytest.raises(StorageError, match="not an empty folder"):
        convert(yaml_file, to="coco", out=tmp_path / "full/mine.txt")
    with pytest.raises(ConfigError, match="Did you mean 'coco'"):
        convert(yaml_file, to="cocoo", out=tmp_path / "x")  # pyright: ignore
    with pytest.raises(ConfigError, match="allowed: copy, link"):
        convert(yaml_file, to="coco", out=tmp_path / "x", images="move")  # pyright: ignore
    write(tmp_path / "in/data.yaml", "train: images/train\nnames: [cat, cat]\n")
    with pytest.raises(DataError, match="two are named 'cat'"):
        convert(yaml_file, to="voc", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "full/mine.txt").read_text() == "keep me"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    yaml_file = make_yolo(tmp_path / "in", {"a": "0 .5 .5 .5 .5"})
    (tmp_path / "out").mkdir()
    assert len(open_dataset(convert(yaml_file, to="voc", out=tmp_path / "out").path, split="train")) == 1


def fail_with(number: int) -> Callable[..., None]:
    def fail(source: str, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(target))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    yaml_file = coco_yaml(make_coco(tmp_path / "in", annotations=[]))
    monkeypatch.setattr(shutil, "copyfile", fail_with(number))
    with pytest.raises(StorageError, match=os.strerror(number)) as caught:
        convert(yaml_file, to="yolo", out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    yaml_file = make_yolo(tmp_path / "in", {"a": "0 .5 .5 .5 .5"})
    write(tmp_path / "file", "")
    with pytest.raises(StorageError, match="cannot write to"):
        convert(yaml_file, to="yolo", out=tmp_path / "file/out")
