"""Images of every kind become upright uint8 RGB; damaged ones become a DataError that names the file."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ullage.data.decode import probe_size_hw, read_image
from ullage.errors import DataError

SIZE_HW = (40, 64)
LEFT, RIGHT = (200, 40, 60), (30, 90, 220)


def two_colours() -> np.ndarray:
    image = np.empty((*SIZE_HW, 3), np.uint8)
    image[:, :32], image[:, 32:] = LEFT, RIGHT
    return image


def grey_of(rgb: tuple[int, int, int]) -> int:
    return round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])


def _pil(path, mode, **options):
    Image.fromarray(two_colours()).convert(mode).save(path, **options)


def _palette(path):
    Image.fromarray(two_colours()).quantize(4).save(path)


def _cv2(path, array):
    assert cv2.imwrite(str(path), array)


def _rgb16(path):
    _cv2(path, two_colours()[..., ::-1].astype(np.uint16) * 257)


def _grey16(path):
    grey = np.array(Image.fromarray(two_colours()).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)


COLOUR_KINDS = {
    "rgb.jpg": lambda p: _pil(p, "RGB", quality=95),
    "progressive.jpg": lambda p: _pil(p, "RGB", quality=95, progressive=True),
    "cmyk.jpg": lambda p: _pil(p, "CMYK", quality=95),
    "rgb.png": lambda p: _pil(p, "RGB"),
    "palette.png": _palette,
    "rgba.png": lambda p: _pil(p, "RGBA"),
    "16.png": _rgb16,
    "16.tif": _rgb16,
    "rgb.tif": lambda p: _pil(p, "RGB"),
    "cmyk.tif": lambda p: _pil(p, "CMYK"),
    "rgb.bmp": lambda p: _pil(p, "RGB"),
    "rgbx.bmp": lambda p: _cv2(p, cv2.cvtColor(two_colours(), cv2.COLOR_RGB2BGRA)),
    "palette.gif": _palette,
    "lossy.webp": lambda p: _pil(p, "RGB", quality=95),
    "alpha.webp": lambda p: _pil(p, "RGBA", lossless=True),
    "jpeg_in_disguise.png": lambda p: _pil(p, "RGB", format="JPEG", quality=95),
}
GREY_KINDS = {
    "grey.jpg": lambda p: _pil(p, "L", quality=95),
    "grey.png": lambda p: _pil(p, "L"),
    "grey_alpha.png": lambda p: _pil(p, "LA"),
    "grey.tif": lambda p: _pil(p, "L"),
    "16.png": _grey16,
    "16.tif": _grey16,
}


def check_colours(image: np.ndarray, left: tuple[int, ...], right: tuple[int, ...], tolerance: int = 12) -> None:
    assert image.dtype == np.uint8
    assert image.shape == (*SIZE_HW, 3)
    assert image.flags.c_contiguous
    for colour, part in ((left, image[4:-4, 4:28]), (right, image[4:-4, 36:-4])):
        assert np.abs(part.reshape(-1, 3).astype(int) - colour).max() <= tolerance


@pytest.mark.parametrize("name", COLOUR_KINDS)
def test_colour_images_become_rgb(tmp_path, name):
    path = tmp_path / name
    COLOUR_KINDS[name](path)
    check_colours(read_image(path), LEFT, RIGHT)
    assert probe_size_hw(path) == SIZE_HW


@pytest.mark.parametrize("name", GREY_KINDS)
def test_grey_images_become_rgb(tmp_path, name):
    path = tmp_path / name
    GREY_KINDS[name](path)
    check_colours(read_image(path), (grey_of(LEFT),) * 3, (grey_of(RIGHT),) * 3, tolerance=4)
    assert probe_size_hw(path) == SIZE_HW


def test_black_and_white_image(tmp_path):
    _pil(tmp_path / "bits.png", "1", format="PNG")
    image = read_image(tmp_path / "bits.png")
    assert set(np.unique(image)) <= {0, 255}


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif"])
def test_transparent_pixels_lie_over_grey(tmp_path, name):
    rgba = np.dstack((two_colours(), np.full(SIZE_HW, 255, np.uint8)))
    rgba[:, 32:, 3] = 0
    options = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(rgba).save(tmp_path / name, **options)
    check_colours(read_image(tmp_path / name), LEFT, (114, 114, 114), tolerance=12)


def test_half_transparent_pixels_are_blended(tmp_path):
    rgba = np.dstack((two_colours(), np.full(SIZE_HW, 128, np.uint8)))
    Image.fromarray(rgba).save(tmp_path / "a.png")
    blend = [tuple(round(part * 128 / 255 + 114 * 127 / 255) for part in colour) for colour in (LEFT, RIGHT)]
    check_colours(read_image(tmp_path / "a.png"), *blend, tolerance=1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    marked = two_colours()
    marked[:8, :16] = 255
    Image.fromarray(marked).save(path, exif=exif, **({} if suffix in ("png", "tif") else {"quality": 95}))
    image = read_image(path)
    with Image.open(path) as opened:
        upright = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 2
    assert probe_size_hw(path) == image.shape[:2]


@pytest.mark.parametrize(("at_least_hw", "expected_hw"), [((153, 200), (304, 400)), ((152, 201), (304, 400)),
                                                          ((152, 200), (152, 200)), ((77, 100), (152, 200)),
                                                          ((76, 100), (76, 100)), ((1, 1), (38, 50))])  # fmt: skip
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decoding_is_no_smaller_than_asked(tmp_path, at_least_hw, expected_hw, orientation):
    y, x = np.mgrid[:304, :400]
    smooth = np.stack((x / 2, y / 2, (x + y) / 4), -1).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = slice(None, None, -1 if orientation == 6 else 1)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95, exif=exif)
    image = read_image(tmp_path / "a.jpg", at_least_hw=at_least_hw[turn])
    assert image.shape[:2] == expected_hw[turn]
    whole = read_image(tmp_path / "a.jpg")
    averaged = cv2.resize(whole, image.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(averaged.astype(int) - image).mean() < 1


def test_sides_that_do_not_divide_are_decoded_whole(tmp_path):
    Image.fromarray(np.zeros((303, 400, 3), np.uint8)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", at_least_hw=(10, 10)).shape == (303, 400, 3)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 60000, 60000, 16, 2, 0, 0, 0)
    body = _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", zlib.compress(b"0" * 99)) + _png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _encoded(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.jpg", b""),
        ("text.jpg", b"this is not an image"),
        ("cut.jpg", _encoded("JPEG")[:1500]),
        ("cut.png", _encoded("PNG")[:1500]),
        ("cut.webp", _encoded("WEBP")[:300]),
        ("cut.tif", _encoded("TIFF")[:500]),
        ("cut.bmp", _encoded("BMP")[:500]),
        ("head.jpg", _encoded("JPEG")[:30]),
        ("bomb.png", _png_bomb()),
    ],
)
def test_damaged_files_are_named(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_follows_the_end_of_a_jpeg_does_no_harm(tmp_path):
    (tmp_path / "a.jpg").write_bytes(_encoded("JPEG") + b"trailer" * 100)
    assert read_image(tmp_path / "a.jpg").shape == (*SIZE_HW, 3)


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path / "absent.jpg", tmp_path):
        with pytest.raises(DataError, match=path.name):
            read_image(path)
        with pytest.raises(DataError, match=path.name):
            probe_size_hw(path)


def test_numbers_without_a_known_white_are_refused(tmp_path):
    Image.fromarray(np.full(SIZE_HW, 0.5, np.float32)).save(tmp_path / "fractions.tif")
    Image.fromarray(np.full(SIZE_HW, 1_000_000, np.int32)).save(tmp_path / "large.tif")
    for name in ("fractions.tif", "large.tif"):
        with pytest.raises(DataError, match=f"{name}.*convert it to 8 or 16 bits"):
            read_image(tmp_path / name)
