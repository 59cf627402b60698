"""Pictures of boxes: drawn on one image, and many images on one sheet.

Sizes follow the picture, so that a 200-pixel thumbnail and an 8K frame read alike on a screen. A label looks for a free
place near its box and is left out, best scores first, where it would hide another label or another box: in a crowd the
colour still tells the class. Shape letters: H, W image; N boxes; P plates placed so far.
"""

from __future__ import annotations

import colorsys
import importlib.util
import math
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ullage.errors import DataError
from ullage.geometry.letterbox import fit

Array = np.ndarray[Any, Any]
Rgb = tuple[int, int, int]

MIN_FONT_PX = 10
_MAX_HIDDEN = 0.5  # a label may cover at most this part of any box
_MAX_PLATES = 0.25  # labels may cover at most this part of a picture; the first few always may
_FEW = 3
_SHEET_GREY = 245
# Fonts that systems commonly bring for scripts that DejaVu Sans lacks; looked for only when a name needs them.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "Hiragino Sans GB.ttc", "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf", "Arial Unicode.ttf", "NotoSansDevanagari-Regular.ttf", "Nirmala.ttf",
)  # fmt: skip


def class_colour(class_id: int) -> Rgb:
    """Return the fixed colour of a class: hues a golden section apart, in three strengths that take turns."""
    hue = (0.02 + class_id * 0.618034) % 1
    lightness, saturation = ((0.52, 0.92), (0.45, 0.85), (0.66, 0.90))[class_id % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(plate: Rgb) -> Rgb:
    """Return black or white, whichever contrasts more with a plate (relative luminance of WCAG 2)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in plate)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else (255, 255, 255)


def draw_boxes(
    image_HW3: Array,
    *,
    boxes_xyxy_px: Array | torch.Tensor,
    class_ids: Array | torch.Tensor | Sequence[int],
    names: Sequence[str],
    scores: Array | torch.Tensor | Sequence[float] | None = None,
    line_width: int | None = None,
    labels: bool = True,
) -> Array:
    """Draw labelled boxes on a copy of an image.

    Args:
        image_HW3: uint8 RGB.
        boxes_xyxy_px: (N, 4) corners in pixels of the image; what lies outside is clipped.
        class_ids: N class ids; they choose the colour.
        names: Class names by id, in any script; an id without a name is shown as a number.
        scores: N scores, shown beside the name.
        line_width: Pixels; None follows the size of the picture and of each box.
        labels: False draws the boxes alone.

    Returns:
        A new uint8 RGB array of the same shape.

    Raises:
        DataError: The image is not uint8 (H, W, 3), the counts of boxes, ids and scores differ, or a box is not finite.
    """
    check_rgb(image_HW3)
    boxes_N4 = np.asarray(boxes_xyxy_px, np.float32).reshape(-1, 4)
    ids_N = np.asarray(class_ids, np.int64).reshape(-1)
    scores_N = None if scores is None else np.asarray(scores, np.float32).reshape(-1)
    if len(ids_N) != len(boxes_N4) or (scores_N is not None and len(scores_N) != len(boxes_N4)):
        counts = f"{len(boxes_N4)} boxes, {len(ids_N)} class ids"
        raise DataError(
            f"cannot draw {counts}{'' if scores_N is None else f', {len(scores_N)} scores'}: they must agree"
        )
    if not np.isfinite(boxes_N4).all():
        raise DataError("cannot draw boxes whose corners are NaN or infinite")
    height, width = image_HW3.shape[:2]
    boxes_N4 = boxes_N4.clip(0, np.array([width, height, width, height], np.float32))
    scale = _picture_scale(height, width)
    base_width = max(round(2 * scale), 1) if line_width is None else max(line_width, 1)
    picture = Image.fromarray(np.ascontiguousarray(image_HW3)).copy()
    draw = ImageDraw.Draw(picture)
    order = np.arange(len(boxes_N4)) if scores_N is None else np.argsort(-scores_N, kind="stable")
    for row in order[::-1]:  # the best score last, on top
        box_width = base_width if line_width is not None else _box_line_width(boxes_N4[row], base_width)
        _outline(draw, boxes_N4[row], class_colour(int(ids_N[row])), box_width)
    plates = _Plates(boxes_N4, (height, width))
    for row in order if labels else ():
        class_id = int(ids_N[row])
        name, font_file = drawable_name(names[class_id] if 0 <= class_id < len(names) else "", class_id)
        score = None if scores_N is None else float(scores_N[row])
        _label(draw, plates, boxes_N4[row], name, score, font_file, max(round(12.5 * scale), MIN_FONT_PX), class_id)
    return np.array(picture)


def tile_images(
    images: Sequence[Array],
    *,
    columns: int | None = None,
    size: int | tuple[int, int] = 320,
    captions: Sequence[str] | None = None,
) -> Array:
    """Lay images out on one sheet, row by row.

    Args:
        images: uint8 RGB (H, W, 3), of any sizes; each keeps its aspect ratio.
        columns: Images a row; None makes the sheet about square.
        size: Side of a cell, or (h, w), in pixels.
        captions: A line of text for each image, drawn in its upper left corner.

    Returns:
        The sheet, uint8 RGB.

    Raises:
        DataError: There is no image, an image is not uint8 (H, W, 3), or captions do not match.
    """
    if not images:
        raise DataError("a sheet of images needs at least one image")
    if captions is not None and len(captions) != len(images):
        raise DataError(f"{len(images)} images but {len(captions)} captions")
    cell_hw = (size, size) if isinstance(size, int) else size
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    gap = max(round(min(cell_hw) / 100), 1)
    sheet = np.full((rows * (cell_hw[0] + gap) + gap, columns * (cell_hw[1] + gap) + gap, 3), _SHEET_GREY, np.uint8)
    for index, image in enumerate(images):
        check_rgb(image)
        top, left = ((index // columns) * (cell_hw[0] + gap) + gap, (index % columns) * (cell_hw[1] + gap) + gap)
        fit((image.shape[0], image.shape[1]), cell_hw).apply(
            image, out_HW3=sheet[top : top + cell_hw[0], left : left + cell_hw[1]]
        )
    return sheet if captions is None else _captioned(sheet, captions, columns, cell_hw, gap)


def check_rgb(image_HW3: Array) -> None:
    """Refuse what is not a uint8 RGB image.

    Raises:
        DataError: The array is not uint8 of shape (H, W, 3), or empty.
    """
    if image_HW3.dtype != np.uint8 or image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.size == 0:
        raise DataError(f"a picture must be uint8 of shape (H, W, 3), got {image_HW3.dtype} of shape {image_HW3.shape}")


def drawable_name(name: str, class_id: int) -> tuple[str, str | None]:
    """Return what to write for a class, and the font file to write it with (None: Pillow's own).

    A name that no font at hand can draw becomes ``"class 7"``: empty squares would tell nothing.
    """
    clean = " ".join("".join(c for c in name if c.isprintable() or c.isspace()).split())
    if not clean:
        return f"class {class_id}", _main_font_file()
    return (clean, _font_file_for(clean)) if _font_file_for(clean) != "" else (f"class {class_id}", _main_font_file())


class _Plates:
    """Where labels are, and whether another one still fits."""

    def __init__(self, boxes_N4: Array, size_hw: tuple[int, int]) -> None:
        self._boxes_N4 = boxes_N4
        self._areas_N = np.maximum((boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1]), 1.0)
        self._size_hw = size_hw
        self._placed_P4 = np.zeros((0, 4), np.float32)
        self._covered = 0

    def find(self, box_4: Array, width: int, height: int) -> tuple[int, int] | None:
        """Return the left top corner of a free place for a plate near a box, None when there is none."""
        limit_x, limit_y = self._size_hw[1] - width, self._size_hw[0] - height
        full = self._covered + width * height > _MAX_PLATES * self._size_hw[0] * self._size_hw[1]
        if limit_x < 0 or limit_y < 0 or (full and len(self._placed_P4) >= _FEW):
            return None
        left, top, right, bottom = (round(float(side)) for side in box_4)
        row = min(max(left, 0), limit_x)
        places = ((row, top - height), (row, bottom), (row, top), (right, top), (left - width, top))
        for x, y in places:
            if 0 <= x <= limit_x and 0 <= y <= limit_y and self._free(x, y, x + width, y + height):
                return x, y
        return None

    def _free(self, left: int, top: int, right: int, bottom: int) -> bool:
        plate_4 = np.array([left, top, right, bottom], np.float32)
        if _overlaps(self._placed_P4, plate_4).any():
            return False
        return bool((_overlaps(self._boxes_N4, plate_4) <= _MAX_HIDDEN * self._areas_N).all())

    def add(self, left: int, top: int, right: int, bottom: int) -> None:
        """Take a place."""
        self._covered += (right - left) * (bottom - top)
        self._placed_P4 = np.concatenate((self._placed_P4, np.array([[left, top, right, bottom]], np.float32)))


def _overlaps(boxes_N4: Array, plate_4: Array) -> Array:
    sides = np.minimum(boxes_N4[:, 2:], plate_4[2:]) - np.maximum(boxes_N4[:, :2], plate_4[:2])
    return np.prod(sides.clip(0), axis=1)


def _picture_scale(height: int, width: int) -> float:
    # Sublinear: large pictures are looked at from nearer, or zoomed into.
    return (math.sqrt(height * width) / 600) ** 0.85


def _box_line_width(box_4: Array, base_width: int) -> int:
    shorter = float(min(box_4[2] - box_4[0], box_4[3] - box_4[1]))
    return min(base_width, max(round(shorter / 12), base_width // 4, 1))


def _outline(draw: ImageDraw.ImageDraw, box_4: Array, colour: Rgb, width: int) -> None:
    left, top, right, bottom = (float(side) for side in box_4)
    half = width // 2
    corners = (round(left) - half, round(top) - half, round(right) - 1 + half, round(bottom) - 1 + half)
    x1, y1, x2, y2 = (*corners[:2], max(corners[2], corners[0]), max(corners[3], corners[1]))
    limit_x, limit_y = draw.im.size[0] - 1, draw.im.size[1] - 1
    box = (min(max(x1, 0), limit_x), min(max(y1, 0), limit_y), min(max(x2, 0), limit_x), min(max(y2, 0), limit_y))
    draw.rectangle(box, outline=colour, width=width)


def _label(
    draw: ImageDraw.ImageDraw,
    plates: _Plates,
    box_4: Array,
    name: str,
    score: float | None,
    font_file: str | None,
    font_px: int,
    class_id: int,
) -> None:
    """Write a label in the first form that finds a free place; write none when no form does."""
    side = float(max(box_4[2] - box_4[0], box_4[3] - box_4[1]))
    wanted = font_px if side >= 4 * font_px else max(round(side / 4), font_px * 2 // 3, MIN_FONT_PX)
    for size, text in _label_forms(name, score, wanted, max(font_px * 2 // 3, MIN_FONT_PX)):
        font = load_font(size, font_file)
        ascent, descent = font.getmetrics()
        pad = max(size // 5, 1)
        width, height = math.ceil(font.getlength(text)) + 2 * pad, ascent + descent + 2 * (pad // 2)
        place = plates.find(box_4, width, height)
        if place is not None:
            left, top = place
            colour = class_colour(class_id)
            draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
            draw.text((left + pad, top + pad // 2), text, fill=text_colour(colour), font=font)
            plates.add(left, top, left + width, top + height)
            return


def _label_forms(name: str, score: float | None, size: int, small: int) -> Iterator[tuple[int, str]]:
    full = name if score is None else f"{name} {score:.2f}"
    yield size, full
    if small < size:
        yield small, full
    if full != name:
        yield small, name
    if len(name) > 10:
        yield small, name[:9] + "…"


def _captioned(sheet: Array, captions: Sequence[str], columns: int, cell_hw: tuple[int, int], gap: int) -> Array:
    picture = Image.fromarray(sheet).copy()
    draw = ImageDraw.Draw(picture)
    size = max(min(cell_hw) // 24, MIN_FONT_PX)
    for index, caption in enumerate(captions):
        text, file = drawable_name(caption, index)
        font = load_font(size, file)
        while len(text) > 1 and font.getlength(text) > cell_hw[1] - size:
            text = text[:-2] + "…" if text.endswith("…") else text[:-1] + "…"
        top, left = ((index // columns) * (cell_hw[0] + gap) + gap, (index % columns) * (cell_hw[1] + gap) + gap)
        box = (left, top, left + math.ceil(font.getlength(text)) + size // 2, top + sum(font.getmetrics()))
        draw.rectangle(box, fill=(0, 0, 0))
        draw.text((left + size // 4, top), text, fill=(255, 255, 255), font=font)
    return np.array(picture)


@lru_cache(maxsize=64)
def load_font(size: int, file: str | None) -> ImageFont.FreeTypeFont:
    """Load a font of ``size`` pixels; ``None`` is the one that Pillow carries."""
    if file is not None:
        return ImageFont.truetype(file, size)
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow built without FreeType: its bitmap font has no sizes
        raise DataError("this Pillow cannot draw text (no FreeType); install Pillow from its wheels")
    return font


@lru_cache(maxsize=1)
def _main_font_file() -> str | None:
    """Find DejaVu Sans, which matplotlib carries and which covers most alphabets; matplotlib is not imported."""
    spec = importlib.util.find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return str(file)
    return None


@lru_cache(maxsize=4096)
def _font_file_for(text: str) -> str | None:
    """Return the first font that can draw every character of a text, ``""`` when none can."""
    main = _main_font_file()
    if _covers(main, text):
        return main
    for file in _WIDE_FONTS:
        try:
            ImageFont.truetype(file, MIN_FONT_PX)
        except OSError:  # not on this system
            continue
        if _covers(file, text):
            return file
    return ""


def _covers(file: str | None, text: str) -> bool:
    missing = _glyph(file, "\U0010fffe")
    drawn = (c for c in text if not c.isspace() and unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return all(_glyph(file, character) != missing for character in drawn)


def _glyph(file: str | None, character: str) -> bytes:
    """Return how a font draws one character, to be compared with how it draws what it lacks."""
    canvas = Image.new("L", (40, 40))
    ImageDraw.Draw(canvas).text((4, 4), character, fill=255, font=load_font(24, file))
    return canvas.tobytes()
