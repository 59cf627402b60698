"""Tar files and remote file systems give the same images, boxes, batches and order as a folder does."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from painted_sets import write_set

import ullage.data.ahead as ahead_module
from ullage.config.augment import AugmentSettings
from ullage.data import places
from ullage.data.ahead import ReadAhead
from ullage.data.cache import ImageStore
from ullage.data.check import check
from ullage.data.convert import convert
from ullage.data.decode import read_image
from ullage.data.index import DetectionSet
from ullage.data.loader import TrainLoader
from ullage.data.places import file_of, member_place, read_ends, read_place
from ullage.data.shards import list_shards
from ullage.data.source import open_dataset
from ullage.data.spec import SourceSpec
from ullage.data.yolo_txt import write as write_labels
from ullage.errors import DataError

fsspec = pytest.importorskip("fsspec")

COUNT = 11


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A YOLO set as files; the YAML of the same name in each form lies beside it."""
    home = tmp_path / "set"
    data = write_set(home / "images" / "train", count=COUNT)
    write_labels(home, "train", data, [os.path.basename(path) for path in data.paths])
    (home / "files.yaml").write_text(yaml_of("images/train"))
    return home


def yaml_of(entry: str) -> str:
    return f"train: {entry}\nnames: [red, green, blue, yellow]\n"


def sample_files(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.rglob("*/train/*.*"), key=lambda path: path.name)]


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def in_tars(folder: Path) -> Path:
    members = sample_files(folder)
    (folder / "shards").mkdir()
    for number, part in enumerate((members[:8], members[8:])):  # four samples, then seven
        (folder / f"shards/train-{number:03d}.tar").write_bytes(tar_of(part))
    (folder / "data.yaml").write_text(yaml_of("shards/train-{000..001}.tar"))
    return folder / "data.yaml"


def in_memory(folder: Path) -> Path:
    for path in folder.rglob("*/train/*.*"):
        fsspec.filesystem("memory").pipe(f"/bucket/{path.relative_to(folder)}", path.read_bytes())
    (folder / "data.yaml").write_text(yaml_of("memory://bucket/images/train"))
    return folder / "data.yaml"


def in_remote_tars(folder: Path) -> Path:
    in_tars(folder)
    for path in (folder / "shards").iterdir():
        fsspec.filesystem("memory").pipe(f"/bucket/{path.name}", path.read_bytes())
    (folder / "data.yaml").write_text(yaml_of("memory://bucket/train-*.tar"))
    return folder / "data.yaml"


FORMS = {"tars": in_tars, "memory": in_memory, "remote tars": in_remote_tars}


def batches(dataset: DetectionSet, *, workers: int, start: int = 0, cache: str | bool = False) -> list:
    loader = TrainLoader(
        dataset,
        batch=3,
        imgsz=96,
        augment=AugmentSettings(mixup=0.3),
        workers=workers,
        cache=cache,  # type: ignore[arg-type]
    )
    made = [
        (batch.indices, batch.images_BCHW.clone(), batch.targets.boxes_xyxy_px_G4.clone())
        for epoch in range(2)
        for batch in loader.epoch(epoch, epochs=10, start_batch=start if epoch == 0 else 0)
    ]
    loader.close()
    return made


def assert_same(one: list, other: list) -> None:
    assert [each[0] for each in one] == [each[0] for each in other]
    for (_, images, boxes), (_, images_again, boxes_again) in zip(one, other, strict=True):
        assert (images == images_again).all()
        assert (boxes == boxes_again).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_set_in_every_form(folder: Path, form: str):
    files = open_dataset(folder / "files.yaml", split="train")
    data = open_dataset(FORMS[form](folder), split="train")
    assert [os.path.basename(path) for path in data.paths] == [os.path.basename(path) for path in files.paths]
    assert list(data.image_ids) == list(files.image_ids)
    np.testing.assert_array_equal(data.sizes_hw_I2, files.sizes_hw_I2)
    np.testing.assert_array_equal(data.offsets, files.offsets)
    np.testing.assert_array_equal(data.boxes_xyxy_px_N4, files.boxes_xyxy_px_N4)
    np.testing.assert_array_equal(data.class_ids_N, files.class_ids_N)
    for path, same in zip(data.paths, files.paths, strict=True):
        np.testing.assert_array_equal(read_image(path), read_image(same))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_order_and_resume_are_those_of_files(folder: Path, form: str, workers: int):
    files = open_dataset(folder / "files.yaml", split="train")
    data = open_dataset(FORMS[form](folder), split="train")
    wanted = batches(files, workers=0)
    assert_same(batches(data, workers=workers), wanted)
    assert_same(batches(data, workers=workers, start=2), wanted[2:])


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_caches_work_from_afar(folder: Path, cache: str):
    files = open_dataset(folder / "files.yaml", split="train")
    data = open_dataset(in_remote_tars(folder), split="train")
    wanted = batches(files, workers=0)
    for _ in range(2):
        assert_same(batches(data, workers=0, cache=cache), wanted)


def test_images_are_fetched_side_by_side_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    data = open_dataset(in_memory(folder), split="train")
    together = threading.Barrier(4, timeout=30)  # breaks unless four are under way at the same time
    fetched: list[str] = []

    def slow(place: str) -> bytes:
        fetched.append(place)
        if len(fetched) <= 4:
            together.wait()
        return places.read_place(place)

    monkeypatch.setattr(ahead_module, "read_file", slow)
    store = ImageStore(data, side=96)
    store.expect([0, 1, 2, 3, 1])
    store.expect([1, 2, 3, 5])  # 0 is no longer wanted, 1 to 3 are on the way already
    for index in (1, 2, 3, 5, 1):
        store.get(index)
    assert sorted(fetched) == sorted(data.paths[index] for index in (0, 1, 2, 3, 5))
    store.expect([1, 2])  # both are among the recent images
    assert len(fetched) == 5


def test_an_error_of_a_thread_comes_out_where_the_image_is_asked_for():
    ahead = ReadAhead()
    ahead.expect(["memory://bucket/gone.jpg"])
    with pytest.raises(DataError, match=r"cannot read image memory://bucket/gone\.jpg"):
        ahead.take("memory://bucket/gone.jpg")


def test_members_are_read_alone(tmp_path: Path):
    content = os.urandom(1000)
    tar = tmp_path / "a.tar"
    tar.write_bytes(tar_of([("x.jpg", b"1" * 700), ("deep/y.jpg", content)]))
    with tarfile.open(tar) as opened:
        place = member_place(str(tar), offset=opened.getmembers()[1].offset_data, size=1000, name="deep/y.jpg")
    assert read_place(place) == content
    assert read_ends(place, head=10, tail=20) == (content[:10], content[-20:])
    assert read_ends(place, head=5000, tail=5000) == (content, content)
    assert file_of(place) == str(tar)
    assert os.path.basename(place) == "y.jpg"
    tar.write_bytes(tar.read_bytes()[:1500])
    with pytest.raises(OSError, match="shorter than when it was indexed"):
        read_place(place)


def test_problems_in_a_tar_are_told(folder: Path):
    samples = dict(sample_files(folder))
    jpeg = samples["000.jpg"]
    odd = [
        ("a.jpg", jpeg), ("a.txt", b"0 .5 .5 .1 .1\n9 .5 .5 .1 .1\nx\n"), ("b.jpg", jpeg),
        ("c.txt", b"0 .5 .5 .1 .1"), ("d.jpg", jpeg[:-300]), ("d.txt", b""), ("e.jpg", jpeg), ("e.txt", b"\xff\xfe"),
        ("a.png", jpeg), (".f.jpg", b""),
    ]  # fmt: skip
    (folder / "odd.tar").write_bytes(tar_of(odd))
    (folder / "odd.yaml").write_text(yaml_of("odd.tar"))
    data = open_dataset(folder / "odd.yaml", split="train")
    assert [os.path.basename(path) for path in data.paths] == ["a.jpg", "b.jpg"]
    assert sorted((p.kind, os.path.basename(p.file)) for p in data.problems) == [
        ("class_out_of_range", "a.txt"), ("corrupt_image", "d.jpg"), ("corrupt_label", "a.txt"),
        ("corrupt_label", "e.txt"), ("duplicate_image", "a.png"), ("missing_label", "b.jpg"), ("orphan_label", "c.txt"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("shards/none-{0..1}.tar", "'shards/none-0.tar' is not there"),
        ("[shards/train-000.tar, images/train]", "mixes shards and 'images/train'"),
        ("cut.tar", "no whole, uncompressed tar file"),
        ("text.tar", "no whole, uncompressed tar file"),
        ("empty.tar", "no images|has labels"),
        ("memory://bucket/nothing", "'memory://bucket/nothing' is not there"),
        ("nosuch://bucket/train.tar", "cannot read nosuch://bucket/train.tar"),
    ],
)
def test_what_is_no_shard_is_refused_in_one_line(folder: Path, entry: str, message: str):
    in_tars(folder)
    (folder / "cut.tar").write_bytes((folder / "shards/train-000.tar").read_bytes()[:700])
    (folder / "text.tar").write_text("this is no tar file" * 100)
    (folder / "empty.tar").write_bytes(tar_of([]))
    (folder / "bad.yaml").write_text(yaml_of(entry))
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(folder / "bad.yaml", split="train")
    assert "\n" not in str(caught.value)


def test_names_must_be_given(folder: Path):
    in_tars(folder)
    (folder / "bad.yaml").write_text("train: shards/train-*.tar\n")
    with pytest.raises(DataError, match="names no classes; add 'names"):
        open_dataset(folder / "bad.yaml", split="train")


def test_the_index_is_kept_and_a_changed_shard_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch):
    yaml = in_remote_tars(folder)
    first = open_dataset(yaml, split="train")
    with monkeypatch.context() as patched:
        patched.setattr("ullage.data.shards._index", lambda tar: pytest.fail(f"{tar} was read again"))
        assert list(open_dataset(yaml, split="train").paths) == list(first.paths)
    memory = fsspec.filesystem("memory")
    members = sample_files(folder)
    memory.pipe("/bucket/train-000.tar", tar_of(members[:6]))
    assert len(open_dataset(yaml, split="train")) == COUNT - 1
    memory.pipe("/bucket/train-002.tar", tar_of(members[6:8]))  # a new one, which the glob finds
    assert len(open_dataset(yaml, split="train")) == COUNT


def test_checking_and_converting(folder: Path, tmp_path: Path):
    yaml = in_tars(folder)
    report = check(yaml)
    assert (report.splits["train"].images, report.problems) == (COUNT, check(folder / "files.yaml").problems)
    out = convert(yaml, to="yolo", out=tmp_path / "out", images="link")
    again, files = open_dataset(out.path, split="train"), open_dataset(folder / "files.yaml", split="train")
    np.testing.assert_allclose(again.boxes_xyxy_px_N4, files.boxes_xyxy_px_N4, atol=1e-4)
    np.testing.assert_array_equal(read_image(again.paths[3]), read_image(files.paths[3]))


def test_braces_count_with_their_zeros(tmp_path: Path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar"):
        (tmp_path / name).touch()
    spec = SourceSpec("yolo", tmp_path, "set", splits={"train": ("a-{08..10}.tar",)})
    assert [os.path.basename(path) for path in list_shards(spec, "train")] == ["a-08.tar", "a-09.tar", "a-10.tar"]
