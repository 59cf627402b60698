"""The size of a JPEG or PNG from its first bytes, in a few microseconds: data sets have a million of them.

Only what is customary is understood; None leaves a file to the thorough reader, whose verdict counts.
"""

from __future__ import annotations

import struct
import zlib

HEAD_BYTES = 16384

_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended, progressive; the other processes are rare
_SCAN, _EXIF_SEGMENT, _ORIENTATION_TAG = 0xDA, 0xE1, 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def quick_size_hw(head: bytes) -> tuple[int, int] | None:
    """Return the upright (h, w) of a JPEG or PNG, None where the thorough reader must look.

    Args:
        head: The first ``HEAD_BYTES`` bytes of the file.
    """
    try:
        if head.startswith(b"\xff\xd8\xff"):
            return _jpeg_size(head)
        if head.startswith(_PNG):
            return _png_size(head)
    except (IndexError, struct.error):
        return None  # cut off, or longer than usual
    return None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    """Walk from segment to segment until the first scan begins, so that a damaged header is noticed."""
    place, size_hw, orientation = 2, None, None
    while True:
        if head[place] != 0xFF:
            return None
        kind = head[place + 1]
        if kind == _SCAN:
            break
        if not 0xC0 <= kind <= 0xFE or 0xD0 <= kind <= 0xD9:
            return None  # a fill byte or a marker without a length: allowed, but unusual here
        length = head[place + 2] << 8 | head[place + 3]
        if kind in _FRAMES:
            precision, height, width, parts = struct.unpack_from(">BHHB", head, place + 4)
            if precision != 8 or not height or not width or parts not in (1, 3, 4) or size_hw is not None:
                return None
            size_hw = (height, width)
        elif kind == _EXIF_SEGMENT:
            if orientation is not None or head[place + 4 : place + 10] != b"Exif\x00\x00":
                return None  # several blocks, or XMP, which may state an orientation, too
            orientation = _orientation(head[place + 10 : place + 2 + length])
            if orientation is None:
                return None
        if length < 2:
            return None
        place += 2 + length
    if size_hw is None:
        return None
    height, width = size_hw
    return (width, height) if orientation is not None and orientation >= 5 else (height, width)


def _orientation(exif: bytes) -> int | None:
    """Return the orientation that an EXIF block states, 1 where it states none, None where it is unusual."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(exif[:4])
    if order is None:
        return None
    (start,) = struct.unpack_from(order + "L", exif, 4)
    (count,) = struct.unpack_from(order + "H", exif, start)
    for number in range(count):
        tag, kind, values, value = struct.unpack_from(order + "HHLH", exif, start + 2 + 12 * number)
        if tag == _ORIENTATION_TAG:
            return value if kind == 3 and values == 1 and 1 <= value <= 8 else None
    return 1


def _png_size(head: bytes) -> tuple[int, int] | None:
    length, kind, width, height, depth, colours = struct.unpack_from(">L4sLLBB", head, 8)
    (checksum,) = struct.unpack_from(">L", head, 29)
    if length != 13 or kind != b"IHDR" or not width or not height or depth not in _PNG_DEPTHS.get(colours, ()):
        return None
    if zlib.crc32(head[12:29]) != checksum or b"IDAT" not in head or b"eXIf" in head:
        return None  # an orientation may be stated before the pixels
    return height, width
