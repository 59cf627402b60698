"""The quick look at an image's header says what the thorough one says, or nothing."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ullage.data import probe
from ullage.data.headers import quick_size_hw
from ullage.data.probe import in_threads, probe_images

SIZE_HW = (24, 37)


def encoded(kind: str, *, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    Image.fromarray(picture).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = "a description"
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"icc_profile": b"x" * 3000}, {"comment": b"hello"}])
def test_jpegs(mode, options):
    assert quick_size_hw(encoded("JPEG", mode=mode, **options)) == SIZE_HW


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_size(orientation):
    expected = SIZE_HW if orientation < 5 else SIZE_HW[::-1]
    assert quick_size_hw(encoded("JPEG", exif=exif(orientation))) == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "I;16"])
def test_pngs(mode):
    assert quick_size_hw(encoded("PNG", mode=mode)) == SIZE_HW


@pytest.mark.parametrize(
    "content",
    [
        encoded("PNG", exif=exif(6)),
        encoded("JPEG", exif=exif(1), xmp=b'<x tiff:Orientation="6"/>'),
        encoded("BMP"),
        encoded("WEBP"),
        encoded("GIF"),
        b"",
        b"\xff\xd8\xff",
        encoded("PNG")[:30],
    ],
    ids=["png-exif", "jpeg-xmp", "bmp", "webp", "gif", "nothing", "short-jpeg", "short-png"],
)
def test_what_is_unusual_is_left_to_the_thorough_reader(content):
    assert quick_size_hw(content) is None


def test_a_png_header_with_a_wrong_checksum_is_not_believed():
    good = encoded("PNG")
    lied = bytearray(good)
    lied[16:20] = struct.pack(">L", 5000)
    assert quick_size_hw(bytes(lied)) is None
    lied[29:33] = struct.pack(">L", zlib.crc32(lied[12:29]))
    assert quick_size_hw(bytes(lied)) == (SIZE_HW[0], 5000)


SAMPLES = [encoded("JPEG", exif=exif(6)), encoded("JPEG", progressive=True), encoded("PNG"), encoded("PNG", mode="P")]


@settings(max_examples=400, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=3),
    end=st.none() | st.integers(0, 700),
)
def test_damage_never_crashes_and_sizes_agree_with_the_thorough_reader(sample, changes, end):
    spoilt = bytearray(sample)
    for place, value in changes:
        spoilt[place % len(spoilt)] = value
    content = bytes(spoilt[:end])
    found = quick_size_hw(content)
    if found is None:
        return
    try:
        with Image.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(0x0112, 1) if image.format == "JPEG" else 1
            upright = image.size if orientation in (5, 6, 7, 8) else image.size[::-1]
    except (OSError, SyntaxError, ValueError, struct.error, IndexError, KeyError, TypeError):
        return  # worse damage than sizes show; decoding finds it
    assert found == upright


def test_the_quick_way_is_the_one_that_is_taken(tmp_path, monkeypatch):
    """A set of customary files is looked at without decoding or Pillow."""
    kinds = [(".jpg", encoded("JPEG")), (".jpg", encoded("JPEG", exif=exif(8))), (".png", encoded("PNG"))] * 30
    paths = [str(tmp_path / f"{number}{suffix}") for number, (suffix, _) in enumerate(kinds)]
    for path, (_, content) in zip(paths, kinds, strict=True):
        Path(path).write_bytes(content)
    for name in ("probe_size_hw", "read_image"):
        monkeypatch.setattr(probe, name, lambda *_: pytest.fail("the slow way"))
    heard: list[tuple[str, int, int]] = []
    found = probe_images(paths, watch=lambda *each: heard.append(each))
    assert found == [SIZE_HW, SIZE_HW[::-1], SIZE_HW] * 30
    assert heard[-1] == ("image headers", 90, 90)
    assert [done for _, done, _ in heard] == sorted({done for _, done, _ in heard})


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")  # to be waited for by nobody
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "cut.jpg").write_bytes(encoded("JPEG")[:-200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    names = ("pipe.jpg", "folder.jpg", "none.jpg", "cut.jpg", "empty.jpg")
    pipe, folder, none, cut, empty = probe_images([str(tmp_path / name) for name in names])
    assert pipe == folder == none == "missing"
    assert "cut.jpg" in str(cut)
    assert "empty file" in str(empty)


@pytest.mark.parametrize("slow", [False, True])
def test_results_keep_their_order_and_errors_come_through(slow):
    import time

    def work(number: int) -> int:
        if slow:
            time.sleep(0.001)
        if number == 170:
            raise ValueError("this one")
        return -number

    assert in_threads(work, range(160)) == [-number for number in range(160)]
    with pytest.raises(ValueError, match="this one"):
        in_threads(work, range(400))
    assert in_threads(work, []) == []
