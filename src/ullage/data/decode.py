"""Read image files of any common kind as uint8 RGB, upright.

JPEG, BMP and plain PNG go through OpenCV; everything else, and every file that looks damaged, through Pillow, whose
verdict on damage is the stricter one. What each kind becomes:

- EXIF orientation is applied, so (h, w) is what a viewer shows. Of animated or paged files the first picture is read.
- Grey and palette images become RGB; CMYK is converted.
- 16 bits a channel keep their upper 8 (65535 is white): values are not stretched.
- Transparent pixels are laid over grey 114, the colour of the letterbox margin, not over whatever hides below them.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

from ullage.data.places import is_plain, read_place
from ullage.errors import DataError
from ullage.geometry.letterbox import PAD_GREY

Array = np.ndarray[Any, Any]

# What Pillow's format readers raise on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error,
    zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_JPEG, _BMP, _PNG = b"\xff\xd8\xff", b"BM", b"\x89PNG\r\n\x1a\n"
# Older versions of OpenCV only decode to blue, green, red.
_COLOUR_RGB = getattr(cv2, "IMREAD_COLOR_RGB", None)
_COLOUR = cv2.IMREAD_COLOR if _COLOUR_RGB is None else _COLOUR_RGB
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
_ORIENTATION_TAG, _TIFF_WIDTH_TAG = 0x0112, 0x0100
# EXIF orientation -> what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: str | Path, *, at_least_hw: tuple[int, int] | None = None, size_hw: tuple[int, int] | None = None
) -> Array:
    """Read an image file.

    Args:
        path: The file.
        at_least_hw: Allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size, where both sides divide and the result
            is no smaller than this. That costs a third to a half of the time, and differs from a full decode
            that is then averaged by about half a grey level.
        size_hw: The image's size where it is known; spares reading the header twice.

    Returns:
        uint8 RGB, (H, W, 3), contiguous.

    Raises:
        DataError: The file is missing, no image, damaged, or of a kind that cannot become RGB.
    """
    return decode_image(read_file(path), path, at_least_hw=at_least_hw, size_hw=size_hw)


def decode_image(
    data: bytes, path: str | Path, *, at_least_hw: tuple[int, int] | None = None, size_hw: tuple[int, int] | None = None
) -> Array:
    """Decode what an image file holds, as ``read_image`` does.

    Args:
        data: The content of the file.
        path: Its name, for messages.
        at_least_hw: See ``read_image``.
        size_hw: See ``read_image``.

    Raises:
        DataError: It is empty, no image, damaged, or of a kind that cannot become RGB.
    """
    if not data:
        raise DataError(f"image {path} is an empty file; remove it or copy it again")
    image = _decode_fast(data, at_least_hw, size_hw)
    return _decode_thorough(data, path) if image is None else image


def probe_size_hw(path: str | Path) -> tuple[int, int]:
    """Return the (h, w) that ``read_image`` would give, reading only the header where the format allows it.

    Raises:
        DataError: The file is missing or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on EXIF damage and large sizes; reading the image tells
            # Of a file, only the header is read.
            with Image.open(path if is_plain(str(path)) else io.BytesIO(read_file(path))) as image:
                width, height = image.size
                return (width, height) if _lies_down(image) else (height, width)
    except _DAMAGE:
        # Pillow lacks a few kinds that OpenCV reads, such as TIFF with 16 bits a colour.
        height, width, _ = read_image(path).shape
        return height, width


def read_file(path: str | Path) -> bytes:
    """Return the content of an image, wherever it is (see ``places``).

    Raises:
        DataError: It cannot be read.
    """
    try:
        return read_place(str(path))
    except OSError as error:
        raise DataError(f"cannot read image {path}: {error.strerror or error}") from error


def _decode_fast(data: bytes, at_least_hw: tuple[int, int] | None, size_hw: tuple[int, int] | None) -> Array | None:
    """Decode with OpenCV what it decodes well; None leaves the file to Pillow."""
    flags = _COLOUR
    if data.startswith(_JPEG):
        if b"\xff\xd9" not in data[-64:]:
            return None  # no end marker: truncated, or something is appended. Only Pillow tells which.
        if at_least_hw is not None:
            flags = _reduced_flags(data, at_least_hw, size_hw)
    elif data.startswith(_PNG):
        if not _plain_png(data):
            return None
    elif not data.startswith(_BMP):
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # for example more pixels than OpenCV allows
        return None
    if image is None or flags == _COLOUR_RGB:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _plain_png(data: bytes) -> bool:
    """Tell whether a PNG has 8 bits, grey or RGB, no transparency, no orientation, and is whole."""
    return (
        len(data) > 26
        and data[24] == 8
        and data[25] in (0, 2)
        and b"tRNS" not in data[:4096]
        and b"eXIf" not in data
        and _png_is_whole(data)
    )


def _png_is_whole(data: bytes) -> bool:
    """Tell whether all chunks have the checksums that they state; OpenCV would complain on stderr, past the caller."""
    place, view = len(_PNG), memoryview(data)
    while place + 12 <= len(data):
        length = int.from_bytes(view[place : place + 4], "big")
        end = place + 8 + length
        if zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return False
        if view[place + 4 : place + 8] == b"IEND":
            return True
        place = end + 4
    return False


def _reduced_flags(data: bytes, at_least_hw: tuple[int, int], size_hw: tuple[int, int] | None) -> int:
    height, width = size_hw or _stated_size(data)
    for factor, flags in _REDUCED.items():
        # Sides that do not divide would be stretched by part of a pixel, and boxes would be off by it.
        divides = height % factor == 0 and width % factor == 0
        if divides and height >= factor * at_least_hw[0] and width >= factor * at_least_hw[1]:
            return flags
    return _COLOUR


def _stated_size(data: bytes) -> tuple[int, int]:
    """Return the upright (h, w) that a file's header states; (1, 1) when it is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                return (width, height) if _lies_down(image) else (height, width)
    except _DAMAGE:
        return 1, 1


def _decode_thorough(data: bytes, path: str | Path) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EXIF damage harms no pixel
            with Image.open(io.BytesIO(data)) as image:
                if image.format == "TIFF":
                    image.load()  # some versions of Pillow turn TIFF upright themselves, and then forget the tag
                orientation = _orientation(image)
                upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
                return _to_rgb(upright, path)
    except _DAMAGE as error:
        rgb = None if data.startswith((_JPEG, _PNG)) else _decode_deep(data)
        if rgb is None:
            reason = f"{error}".replace(f"{io.BytesIO.__module__}.BytesIO", "file")
            if isinstance(error, Image.UnidentifiedImageError):
                reason = "it is no image of a known kind"
            raise DataError(f"cannot decode image {path}: {reason}; remove it or convert it to JPEG or PNG") from error
        return rgb


def _orientation(image: Image.Image) -> int:
    # Pillow would decode a whole PNG to find an EXIF block behind the pixels; only a block in front counts.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    value = image.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) else 1


def _lies_down(image: Image.Image) -> bool:
    """Tell whether turning an opened, not yet loaded image upright swaps the width and height that it states."""
    if _orientation(image) < 5:
        return False
    # Some versions of Pillow state the upright size of a TIFF from the start.
    return not isinstance(image, TiffImagePlugin.TiffImageFile) or image.tag_v2.get(_TIFF_WIDTH_TAG) == image.width


def _to_rgb(image: Image.Image, path: str | Path) -> Array:
    if image.mode.startswith("I") or image.mode == "F":
        values_HW = np.asarray(image)
        if image.mode == "F" or values_HW.min() < 0 or values_HW.max() > 65535:
            raise DataError(
                f"image {path} stores {'fractions' if image.mode == 'F' else '32-bit numbers'} without a known white; "
                "convert it to 8 or 16 bits a channel"
            )
        grey_HW = (values_HW.astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=2)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _over_grey(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def _decode_deep(data: bytes) -> Array | None:
    """Decode with OpenCV what Pillow does not know, 16-bit colour above all."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        return None
    if image.dtype == np.uint16:
        image = np.right_shift(image, 8).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4:
        return _over_grey(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.shape[2] == 3 else None


def _over_grey(rgba_HW4: Array) -> Array:
    alpha_HW1 = rgba_HW4[..., 3:].astype(np.uint16)
    blended = rgba_HW4[..., :3] * alpha_HW1 + PAD_GREY * (255 - alpha_HW1)
    return ((blended + 127) // 255).astype(np.uint8)
