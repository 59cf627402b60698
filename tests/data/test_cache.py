"""Caches change the speed, never the pixels; they leave the user's folders alone, and take only what is there."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import warnings
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
from painted_sets import make_set, write_set

import ullage.data.cache as cache_module
from ullage.data.cache import ImageStore, cache_folder, free_ram_bytes
from ullage.data.decode import read_image
from ullage.data.recent import RecentImages
from ullage.data.shared import start_method
from ullage.errors import ConfigError, DataError, StorageError


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "ullage"


@pytest.fixture
def dataset(tmp_path):
    return write_set(tmp_path / "data", count=7)


def all_images(store: ImageStore, count: int = 7) -> list[np.ndarray]:
    store.prepare()
    return [store.get(i).copy() for i in range(count)]


def no_decoding(*_: object, **__: object) -> np.ndarray:
    raise AssertionError("an image was decoded again")


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("side", [64, 640])
def test_every_cache_gives_the_same_pixels(dataset, cache, side):
    plain = all_images(ImageStore(dataset, side=side))
    kept = all_images(ImageStore(dataset, side=side, cache=cache))
    for i, (a, b) in enumerate(zip(plain, kept, strict=True)):
        np.testing.assert_array_equal(a, b)
        assert max(a.shape) == min(side, max(dataset.size_hw(i)))


@pytest.mark.parametrize("cache", [False, "ram", "disk"])
def test_a_kept_image_is_not_decoded_again(dataset, cache, monkeypatch):
    store = ImageStore(dataset, side=64, cache=cache)
    before = all_images(store)
    monkeypatch.setattr(cache_module, "read_image", no_decoding)
    if cache == "disk":
        store = ImageStore(dataset, side=64, cache=cache)  # another run
    for a, b in zip(before, all_images(store), strict=True):
        np.testing.assert_array_equal(a, b)


def test_exact_images_are_the_whole_decode_averaged(dataset):
    store = ImageStore(dataset, side=64, exact=True)
    for i in range(7):
        height, width = store.base_size_hw(i)
        expected = cv2.resize(read_image(dataset.paths[i]), (width, height), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(store.get(i), expected)


def test_the_disk_cache_stays_out_of_the_data_folder(dataset, tmp_path, own_cache_folder):
    before = sorted((tmp_path / "data").rglob("*"))
    all_images(ImageStore(dataset, side=64, cache="disk"))
    assert sorted((tmp_path / "data").rglob("*")) == before
    assert len(list(own_cache_folder.rglob("*.npy"))) == 7
    assert not list(own_cache_folder.rglob("*.tmp"))
    assert cache_folder() == own_cache_folder


def test_a_changed_image_is_read_again(dataset):
    first = ImageStore(dataset, side=64, cache="disk").get(0)
    assert cv2.imwrite(dataset.paths[0], np.full((*dataset.size_hw(0), 3), 200, np.uint8))
    os.utime(dataset.paths[0], ns=(1, 1))
    again = ImageStore(dataset, side=64, cache="disk").get(0)
    assert again.mean() > 190 > first.mean()


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_a_damaged_cache_file_is_made_again(dataset, own_cache_folder, damage):
    good = all_images(ImageStore(dataset, side=64, cache="disk"))
    for file in own_cache_folder.rglob("*.npy"):
        file.write_bytes(damage)
    for a, b in zip(good, all_images(ImageStore(dataset, side=64, cache="disk")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_memory_cache_that_does_not_fit_is_refused(dataset, monkeypatch):
    need = sum(ImageStore(dataset, side=64).base_bytes(i) for i in range(7))
    monkeypatch.setattr(cache_module, "free_ram_bytes", lambda: int(need / 0.8) - 100)
    with pytest.raises(ConfigError, match=r"cache='ram' needs .* for 7 images at 64 px.*cache='disk'"):
        ImageStore(dataset, side=64, cache="ram")
    monkeypatch.setattr(cache_module, "free_ram_bytes", lambda: int(need / 0.8) + 100)
    ImageStore(dataset, side=64, cache="ram").prepare()


def test_a_disk_cache_that_does_not_fit_is_refused(dataset, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 20_000))
    with pytest.raises(ConfigError, match=r"cache='disk' needs .* has 20.0 kB free"):
        ImageStore(dataset, side=64, cache="disk")


def test_what_is_on_disk_already_needs_no_room(dataset, monkeypatch):
    all_images(ImageStore(dataset, side=64, cache="disk"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    all_images(ImageStore(dataset, side=64, cache="disk"))


def test_a_cache_folder_that_cannot_be_made_is_named(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"cannot make the image cache folder .*file.*XDG_CACHE_HOME"):
        ImageStore(dataset, side=64, cache="disk")


def test_a_full_disk_is_named(dataset, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    store = ImageStore(dataset, side=64, cache="disk")
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(StorageError, match="No space left on device"):
        store.get(0)


@pytest.mark.parametrize("processes", [1, 2])
def test_recent_images_stay_within_their_bound(tmp_path, monkeypatch, processes):
    dataset = write_set(tmp_path / "data", count=12)
    monkeypatch.setattr(cache_module, "RECENT_BYTES", 40_000)  # three slots of the largest image
    store = ImageStore(dataset, side=64, processes=processes)
    assert store._recent is not None
    assert not store._recent.holds_all
    kept = all_images(store, count=12)
    assert store.decoded == 12
    assert store._recent.indices() == [9, 10, 11]
    assert store._recent._starts.tolist() == [0, 12288, 24576]
    for i in (10, 9, 11, 10):
        np.testing.assert_array_equal(store.get(i), kept[i])
    assert store.decoded == 12  # used a moment ago
    np.testing.assert_array_equal(store.get(0), kept[0])
    assert store._recent.indices() == [0, 10, 11]  # 9 was the one used least recently
    assert store.decoded == 13


def test_a_set_that_fits_is_decoded_once(dataset):
    store = ImageStore(dataset, side=64)
    first = all_images(store)
    for a, b in zip(first, all_images(store), strict=True):
        np.testing.assert_array_equal(a, b)
    assert store.decoded == 7


def test_without_reuse_a_large_set_is_not_kept(dataset, monkeypatch):
    monkeypatch.setattr(cache_module, "RECENT_BYTES", 40_000)
    store = ImageStore(dataset, side=64, reuse=False)
    assert store._recent is None
    all_images(store)
    all_images(store)
    assert store.decoded == 14


def _fill(recent: RecentImages, images: list[np.ndarray]) -> None:
    for i, image in enumerate(images):
        if recent.get(i, image.shape) is None:
            recent.put(i, image)
    for _ in range(200):  # keep reading one, so that the others never find it half written
        for i, image in enumerate(images):
            found = recent.get(i, image.shape)
            assert found is None or (found == image).all()
            if found is None:
                assert (recent.put(i, image) == image).all()


@pytest.mark.skipif(start_method() != "fork", reason="processes are not forked here")
@pytest.mark.parametrize("limit", [10 * 4096, 3 * 4096])
def test_processes_share_recent_images_and_never_see_a_half_written_one(limit):
    images = [np.full((8, 32, 3), i, np.uint8) for i in range(10)]
    recent = RecentImages(np.full(10, 768), limit=limit, shared=True)
    assert recent.holds_all
    slotted = RecentImages(np.array([4000] * 10), limit=limit, shared=True)
    for each in (recent, slotted):
        each.put(0, images[0])
        context = multiprocessing.get_context("fork")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This process .* is multi-threaded", category=DeprecationWarning)
            processes = [context.Process(target=_fill, args=(each, images)) for _ in range(3)]
            for process in processes:
                process.start()
        for process in processes:
            process.join(timeout=120)
        assert [process.exitcode for process in processes] == [0, 0, 0]
        here = each.indices()
        assert len(here) == (10 if each.holds_all or limit > 10 * 4095 else 3)
        for i in here:
            np.testing.assert_array_equal(each.get(i, (8, 32, 3)), images[i])


def test_an_image_that_is_read_is_not_overwritten():
    recent = RecentImages(np.array([5000, 5000, 5000]), limit=8192, shared=False)  # one slot
    first = recent.put(0, np.full((10, 10, 3), 7, np.uint8))
    readers = recent._columns()[1]
    readers[0] += 1  # another process reads it
    image = np.full((10, 10, 3), 9, np.uint8)
    assert recent.put(1, image) is image
    assert (first == 7).all()
    recent.forget_readers()
    assert recent.put(1, image) is not image
    assert (first == 9).all()


def test_an_image_that_changed_its_size_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    assert cv2.imwrite(str(path), np.zeros((40, 60, 3), np.uint8))
    with pytest.raises(DataError, match=r"a\.jpg is 60x40 pixels but was 50x40"):
        ImageStore(make_set([(40, 50)], [[]], paths=[path]), side=32).get(0)


@pytest.mark.parametrize("cache", [False, "ram", "disk"])
def test_a_missing_image_is_named(dataset, cache):
    os.remove(dataset.paths[3])
    with pytest.raises(DataError, match=r"003\.jpg"):
        all_images(ImageStore(dataset, side=64, cache=cache))


def test_progress_of_the_memory_cache(dataset):
    seen: list[tuple[int, int]] = []
    ImageStore(dataset, side=64, cache="ram").prepare(lambda done, count: seen.append((done, count)))
    assert seen == [(i, 7) for i in range(1, 8)]


def test_free_memory_is_plausible():
    free = free_ram_bytes()
    assert free is None or 10**6 < free < 10**14
