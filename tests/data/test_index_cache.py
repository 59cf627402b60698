"""Packed texts behave like tuples; a kept index is used only while everything it was read from is as it was."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from painted_sets import write_set

import ullage.data.source as source_module
from ullage.data.index import DetectionSet
from ullage.data.packed import Numbers, Texts, pack_ids
from ullage.data.source import open_dataset


@given(st.lists(st.text(max_size=12), max_size=20))
def test_texts_are_a_tuple_in_fewer_bytes(words):
    texts = Texts.of(f"/some/folder/{word}" for word in words)
    expected = tuple(f"/some/folder/{word}" for word in words)
    assert texts == expected
    assert tuple(texts) == expected
    assert len(texts) == len(expected)
    assert texts[1:-1] == expected[1:-1]
    assert [texts[i] for i in range(-len(words), len(words))] == list(expected) * 2
    assert pickle.loads(pickle.dumps(texts)) == expected
    with pytest.raises(IndexError):
        texts[len(words)]


def test_names_that_are_no_utf8_survive():
    assert Texts.of(["a\udcff", "b"])[0] == "a\udcff"


def test_identifiers_keep_their_kind():
    assert pack_ids([3, 10**15]) == (3, 10**15)
    assert isinstance(pack_ids([3])[0], int)
    assert isinstance(pack_ids([3]), Numbers)
    assert pack_ids(["3", "a"]) == ("3", "a")
    assert pack_ids([3, "a"]) == (3, "a")
    assert pack_ids([2**70]) == (2**70,)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(source_module, "MIN_IMAGES", 3)
    folder = tmp_path / "set"
    written = write_set(folder / "images", count=6)
    (folder / "labels").mkdir()
    (folder / "images" / "deeper").mkdir()
    for path in written.paths:
        (folder / "labels" / f"{Path(path).stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "labels" / "000.txt").write_text("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [a, b]\n")
    return folder


def opened(home: Path, monkeypatch) -> tuple[DetectionSet, bool]:
    """Open the set; tell whether it was read anew."""
    reads: list[bool] = []
    real = source_module._read
    with monkeypatch.context() as patch:
        patch.setattr(source_module, "_read", lambda *arguments: reads.append(True) or real(*arguments))
        return open_dataset(home / "data.yaml", split="train"), bool(reads)


def test_a_large_set_is_read_once(home, monkeypatch):
    before = sorted(home.rglob("*"))
    first, read = opened(home, monkeypatch)
    assert read
    again, read = opened(home, monkeypatch)
    assert not read
    assert (again.paths, again.image_ids, again.names, again.problems) == (
        first.paths, first.image_ids, first.names, first.problems,
    )  # fmt: skip
    assert len(again.problems) == 1
    for name in ("sizes_hw_I2", "offsets", "boxes_xyxy_px_N4", "class_ids_N", "crowd_N"):
        ours, theirs = getattr(again, name), getattr(first, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert sorted(home.rglob("*")) == before  # nothing is written into the user's folder
    pickle.loads(pickle.dumps(again)).labels(0)
    part = open_dataset(home / "data.yaml", split="train", fraction=0.5, classes=[0], single_cls=True)
    assert len(part) == 3


def rewrite(path: Path, text: str) -> None:
    """Change a file's content and give it its old time again."""
    state = path.stat()
    path.write_text(text)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


CHANGES = {
    "label of the same size and time": lambda home: rewrite(home / "labels/001.txt", "1 0.5 0.5 0.2 0.2\n"),
    "label removed": lambda home: (home / "labels/001.txt").unlink(),
    "image removed": lambda home: (home / "images/001.jpg").unlink(),
    "image added": lambda home: (home / "images/new.jpg").write_bytes((home / "images/001.jpg").read_bytes()),
    "image added in an empty folder": lambda home: (home / "images/deeper/new.jpg").write_bytes(
        (home / "images/001.jpg").read_bytes()
    ),
    "names of the same length": lambda home: rewrite(home / "data.yaml", "train: images\nval: images\nnames: [a, c]\n"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_noticed(home, monkeypatch, change):
    opened(home, monkeypatch)
    time.sleep(0.02)  # clocks of file systems tick slowly
    CHANGES[change](home)
    result, read = opened(home, monkeypatch)
    assert read
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.parent / "other"))
    fresh, _ = opened(home, monkeypatch)
    assert result.paths == fresh.paths
    assert result.names == fresh.names
    np.testing.assert_array_equal(result.class_ids_N, fresh.class_ids_N)
    monkeypatch.undo()


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_index_is_made_again(home, monkeypatch, damage):
    first, _ = opened(home, monkeypatch)
    (file,) = (home.parent / "xdg").rglob("*.index")
    file.write_bytes(file.read_bytes()[:900] if damage is None else damage)
    again, read = opened(home, monkeypatch)
    assert read
    assert again.paths == first.paths
    assert not opened(home, monkeypatch)[1]


def test_a_cache_folder_that_cannot_be_written_costs_only_time(home, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert opened(home, monkeypatch)[1]
    assert len(opened(home, monkeypatch)[0]) == 6
