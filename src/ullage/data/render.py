"""Draw a recipe: every pixel of the canvas is sampled once, and nothing larger than the canvas is ever built.

Mosaic, gain, shift, turn and flips are one map from an image to the canvas. A tile writes only the canvas pixels whose
centres lie inside it, so tiles that share an edge leave no seam and none overwrites another.

An upright tile, the customary case, is cut out of its image and resampled along rows and columns with a triangle as
wide as the shrinking asks for, so that nothing flickers. The cut lies on whole pixels of the image: the map that is
drawn differs from the one in the recipe by up to half of such a pixel, and the boxes follow the map that is drawn.
A tile that is turned, sheared or seen in perspective is interpolated between four pixels, after halving by averaging
where it shrinks to less than half.

Colours are changed tile by tile, before or after resampling, whichever has fewer pixels.
Differs from the customary implementation: the grey around and between the tiles keeps its shade, as at prediction, and
of two pictures that are blended each is changed before they are.

Shape letters: H, W canvas or image; T tiles; 33 matrices on continuous pixels (the first pixel's centre at 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from ullage.data.augment import join_labels, layer_labels, map_boxes
from ullage.data.index import DetectionSet
from ullage.data.recipe import Hsv, Recipe, Tile
from ullage.data.resample import resample
from ullage.geometry.labels import Labels
from ullage.geometry.letterbox import PAD_GREY

Array = np.ndarray[Any, Any]
LoadImage = Callable[[int], Array]
Region = tuple[int, int, int, int]

MIN_CUT_PX = 32  # a smaller cut would be stretched by more than 3 % when its sides go to whole pixels
MAX_CUT_GAIN = 4.0
# (mirrored, upside down) -> how OpenCV calls it
_FLIPS = {(False, False): None, (True, False): 1, (False, True): 0, (True, True): -1}
_FINE_BITS = 4  # of the fractions of a pixel to which outlines are drawn
_BLOCK_PX = 64  # what the widest registers take at a time
_HUE_STEPS = 180  # of OpenCV's 8-bit hue
_MAX_HUE_STEP = 70.0  # the shifted hue must fit 8 bits


def render(
    recipe: Recipe, *, dataset: DetectionSet, load: LoadImage, out_HW3: Array | None = None
) -> tuple[Array, Labels]:
    """Make the sample that a recipe describes.

    Args:
        recipe: From ``sample_recipe``.
        dataset: The set that the recipe was drawn from.
        load: Returns an image of the set by index: uint8 RGB, whole, at any size. The next call may overwrite it.
        out_HW3: Canvas to draw on, uint8 of ``recipe.size_hw``; None makes one.

    Returns:
        The canvas and the boxes on it.
    """
    canvas_HW3 = np.empty((*recipe.size_hw, 3), np.uint8) if out_HW3 is None else out_HW3
    labels = [_draw_layer(canvas_HW3, recipe.layers[0], dataset, load, recipe.hsv)]
    for layer in recipe.layers[1:]:
        other_HW3 = np.empty_like(canvas_HW3)
        labels.append(_draw_layer(other_HW3, layer, dataset, load, recipe.hsv))
        cv2.addWeighted(canvas_HW3, recipe.blend, other_HW3, 1 - recipe.blend, 0, dst=canvas_HW3)
    return canvas_HW3, join_labels(labels)


def shift_colours(image_HW3: Array, hsv: Hsv) -> Array:
    """Return an RGB image with hue, saturation and brightness changed, to the nearest of 180, 256 and 256 steps."""
    # One row of whole blocks: what is left of a row OpenCV takes pixel by pixel, which is slow and rounds differently.
    pixels = image_HW3.shape[0] * image_HW3.shape[1]
    row_1P3 = np.empty((1, -(-pixels // _BLOCK_PX) * _BLOCK_PX, 3), np.uint8)
    row_1P3[0, :pixels].reshape(image_HW3.shape)[...] = image_HW3
    step = (hsv.hue_shift * _HUE_STEPS + _HUE_STEPS / 2) % _HUE_STEPS - _HUE_STEPS / 2
    if abs(step) > _MAX_HUE_STEP:
        return _shift_by_table(row_1P3, hsv)[0, :pixels].reshape(image_HW3.shape)
    # A turn backwards is a turn forwards with red and blue exchanged; forwards, 8 bits hold it without wrapping round.
    forwards = step >= 0
    hsv_1P3 = cv2.cvtColor(row_1P3, cv2.COLOR_RGB2HSV if forwards else cv2.COLOR_BGR2HSV)
    change_34 = np.array([[1, 0, 0, abs(step)], [0, hsv.saturation_gain, 0, 0], [0, 0, hsv.value_gain, 0]], np.float64)
    changed_1P3 = cv2.transform(hsv_1P3, change_34)  # into memory of its own: in place it costs a fifth more
    back = cv2.COLOR_HSV2RGB if forwards else cv2.COLOR_HSV2BGR
    return cv2.cvtColor(changed_1P3, back, dst=hsv_1P3)[0, :pixels].reshape(image_HW3.shape)


def _shift_by_table(image_HW3: Array, hsv: Hsv) -> Array:
    values = np.arange(256)
    tables = np.stack(
        (
            np.rint(values + hsv.hue_shift * _HUE_STEPS) % _HUE_STEPS,
            np.rint(np.clip(values * hsv.saturation_gain, 0, 255)),
            np.rint(np.clip(values * hsv.value_gain, 0, 255)),
        ),
        axis=-1,
    )
    hsv_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2HSV)
    hsv_HW3 = cv2.LUT(hsv_HW3, tables.astype(np.uint8)[None])
    return cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB)


def draw_tiles(
    canvas_HW3: Array, layer: tuple[Tile, ...], *, dataset: DetectionSet, load: LoadImage, hsv: Hsv | None = None
) -> Array:
    """Draw a picture on grey; return the map of each tile as it was drawn, (T, 3, 3), from the original image."""
    canvas_HW3.fill(PAD_GREY)
    return np.array([_draw(canvas_HW3, tile, dataset, load, hsv) for tile in layer]).reshape(-1, 3, 3)


def _draw_layer(
    canvas_HW3: Array, layer: tuple[Tile, ...], dataset: DetectionSet, load: LoadImage, hsv: Hsv | None
) -> Labels:
    matrices_T33 = draw_tiles(canvas_HW3, layer, dataset=dataset, load=load, hsv=hsv)
    return layer_labels(dataset, layer, canvas_HW3.shape[:2], matrices_T33=matrices_T33)


def _draw(canvas_HW3: Array, tile: Tile, dataset: DetectionSet, load: LoadImage, hsv: Hsv | None) -> Array:
    """Draw one tile; return the matrix from the original image to the canvas that was drawn."""
    height, width = dataset.size_hw(tile.index)
    a, b, left, c, d, top, e, f, g = tile.matrix
    if tile.box is None and b == c == e == f == 0 and g == 1:
        return _draw_upright(canvas_HW3, tile, (a, d, left, top), (height, width), load, hsv)
    return _draw_any(canvas_HW3, tile, dataset, load, hsv)


def _draw_upright(
    canvas_HW3: Array, tile: Tile, gains_shifts: tuple[float, float, float, float], size_hw: tuple[int, int],
    load: LoadImage, hsv: Hsv | None,
) -> Array:  # fmt: skip
    """Draw a whole image that is neither turned nor sheared; plain numbers, because matrices cost more than pixels."""
    gain_x, gain_y, left, top = gains_shifts
    x_2, y_2 = sorted((left, left + gain_x * size_hw[1])), sorted((top, top + gain_y * size_hw[0]))
    region = _region((x_2[0], y_2[0], x_2[1], y_2[1]), canvas_HW3)
    if region is None:
        return tile.matrix_33()  # nothing shows: the image is not read
    image_HW3 = load(tile.index)
    scale_x, scale_y = image_HW3.shape[1] / size_hw[1], image_HW3.shape[0] / size_hw[0]
    cut = _cut((gain_x / scale_x, gain_y / scale_y, left, top), region, image_HW3.shape[:2])
    if cut is None:
        matrix_33 = tile.matrix_33() @ np.diag([1 / scale_x, 1 / scale_y, 1.0])
        window_4 = np.array([0, 0, image_HW3.shape[1], image_HW3.shape[0]], np.float64)
        _draw_turned(canvas_HW3, image_HW3, matrix_33, window_4, region, hsv)
        return tile.matrix_33()
    _draw_cut(canvas_HW3, image_HW3, cut, region, hsv)
    gain_x, gain_y = (region[2] - region[0]) / (cut[2] - cut[0]), (region[3] - region[1]) / (cut[3] - cut[1])
    shift_x, shift_y = region[0] - cut[0] * gain_x, region[1] - cut[1] * gain_y
    return np.array([[gain_x * scale_x, 0, shift_x], [0, gain_y * scale_y, shift_y], [0, 0, 1]])


def _draw_any(canvas_HW3: Array, tile: Tile, dataset: DetectionSet, load: LoadImage, hsv: Hsv | None) -> Array:
    """Draw an image, or one object of it, by any map."""
    height, width = dataset.size_hw(tile.index)
    window_4, rings = np.array([0, 0, width, height], np.float64), []
    if tile.box is not None:
        row = int(dataset.offsets[tile.index]) + tile.box
        window_4 = dataset.boxes_xyxy_px_N4[row].astype(np.float64)
        rings = dataset.outlines.rings(row) if dataset.outlines is not None else []
    matrix_33 = tile.matrix_33()
    region = _region(map_boxes(matrix_33, window_4[None])[0], canvas_HW3)
    if region is None:
        return matrix_33  # nothing shows: the image is not read
    image_HW3 = load(tile.index)
    scale_wh = (image_HW3.shape[1] / width, image_HW3.shape[0] / height)
    from_image_33 = matrix_33 @ np.diag([1 / scale_wh[0], 1 / scale_wh[1], 1.0])
    mask_HW = _mask(rings, matrix_33, region) if rings else None
    _draw_turned(canvas_HW3, image_HW3, from_image_33, window_4 * (scale_wh * 2), region, hsv, mask_HW)
    return matrix_33


def _mask(rings: Sequence[Array], matrix_33: Array, region: Region) -> Array:
    """Return which pixels of a region have their centres in or on an outline, (H, W) bool."""
    left, top, right, bottom = region
    mask_HW = np.zeros((bottom - top, right - left), np.uint8)
    for ring_P2 in rings:
        x_P, y_P, w_P = matrix_33 @ np.column_stack((ring_P2, np.ones(len(ring_P2)))).T
        points_P2 = np.stack((x_P / w_P - left - 0.5, y_P / w_P - top - 0.5), axis=1)  # from the first pixel's centre
        cv2.fillPoly(mask_HW, [np.rint(points_P2 * 2**_FINE_BITS).astype(np.int32)], 1, shift=_FINE_BITS)
    return mask_HW.view(bool)


def _region(bounds_4: Sequence[float] | Array, canvas_HW3: Array) -> Region | None:
    """Return left, top, right, bottom of the canvas pixels with their centres in bounds, None without any."""
    left, top = (max(math.ceil(side - 0.5), 0) for side in bounds_4[:2])
    right = min(math.ceil(bounds_4[2] - 0.5), canvas_HW3.shape[1])
    bottom = min(math.ceil(bounds_4[3] - 0.5), canvas_HW3.shape[0])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _cut(
    gains_shifts: tuple[float, float, float, float], region: Region, size_hw: tuple[int, int]
) -> tuple[int, int, int, int] | None:
    """Return the image's columns and rows under a region's left, top, right and bottom.

    A flip has the right one before the left one. None where whole pixels would be too coarse.
    """
    gain_x, gain_y, shift_x, shift_y = gains_shifts
    if max(abs(gain_x), abs(gain_y)) > MAX_CUT_GAIN:
        return None
    left, right = (round((side - shift_x) / gain_x) for side in (region[0], region[2]))
    top, bottom = (round((side - shift_y) / gain_y) for side in (region[1], region[3]))
    height, width = size_hw
    cut = (min(max(left, 0), width), min(max(top, 0), height), min(max(right, 0), width), min(max(bottom, 0), height))
    return cut if min(abs(cut[2] - cut[0]), abs(cut[3] - cut[1])) >= MIN_CUT_PX else None


def _draw_cut(
    canvas_HW3: Array, image_HW3: Array, cut: tuple[int, int, int, int], region: Region, hsv: Hsv | None
) -> None:
    """Resample a part of an image onto a region of the canvas."""
    left, top, right, bottom = region
    view_HW3 = canvas_HW3[top:bottom, left:right]
    columns, rows = sorted((cut[0], cut[2])), sorted((cut[1], cut[3]))
    part_HW3 = image_HW3[rows[0] : rows[1], columns[0] : columns[1]]
    flip = _FLIPS[cut[0] > cut[2], cut[1] > cut[3]]
    grows = part_HW3.size <= view_HW3.size
    if grows:  # flips and colours where there are fewer pixels
        part_HW3 = _change(part_HW3, flip, hsv)
    if part_HW3.shape != view_HW3.shape:
        part_HW3 = resample(part_HW3, (bottom - top, right - left))
    view_HW3[...] = part_HW3 if grows else _change(part_HW3, flip, hsv)


def _change(image_HW3: Array, flip: int | None, hsv: Hsv | None) -> Array:
    if flip is not None:
        image_HW3 = cv2.flip(image_HW3, flip)
    return image_HW3 if hsv is None else shift_colours(image_HW3, hsv)


def _draw_turned(
    canvas_HW3: Array, image_HW3: Array, matrix_33: Array, window_4: Array, region: Region, hsv: Hsv | None,
    mask_HW: Array | None = None,
) -> None:  # fmt: skip
    image_HW3, matrix_33, window_4 = _halve(image_HW3, matrix_33, window_4)
    left, top, right, bottom = region
    view_HW3 = canvas_HW3[top:bottom, left:right]
    size_wh = (right - left, bottom - top)
    # OpenCV counts from the centre of the first pixel.
    to_view_33 = np.array([[1, 0, -0.5 - left], [0, 1, -0.5 - top], [0, 0, 1]]) @ matrix_33
    opencv_33 = to_view_33 @ np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    if matrix_33[2, 0] == 0 and matrix_33[2, 1] == 0:
        drawn_HW3 = cv2.warpAffine(image_HW3, opencv_33[:2], size_wh, borderMode=cv2.BORDER_REPLICATE)
    else:
        drawn_HW3 = cv2.warpPerspective(image_HW3, opencv_33, size_wh, borderMode=cv2.BORDER_REPLICATE)
    if hsv is not None:
        drawn_HW3 = shift_colours(drawn_HW3, hsv)
    inside_HW = _inside(to_view_33, window_4, size_wh)
    if mask_HW is not None:
        inside_HW &= mask_HW
    cv2.copyTo(drawn_HW3, inside_HW.view(np.uint8), view_HW3)


def _halve(image_HW3: Array, matrix_33: Array, window_4: Array) -> tuple[Array, Array, Array]:
    """Average 2 x 2 pixels while the map shrinks to less than half."""
    middle = np.array([image_HW3.shape[1] / 2, image_HW3.shape[0] / 2, 1.0])
    depth = float(matrix_33[2] @ middle)
    linear_22 = (matrix_33[:2, :2] - np.outer(matrix_33[:2] @ middle, matrix_33[2, :2]) / depth) / depth
    scale = math.sqrt(abs(np.linalg.det(linear_22)))
    while scale < 0.5 and min(image_HW3.shape[:2]) >= 4:
        height, width = image_HW3.shape[0] // 2, image_HW3.shape[1] // 2
        # An odd last row or column is left to the border: an exact factor of 2 is many times faster.
        image_HW3 = cv2.resize(image_HW3[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
        matrix_33, window_4, scale = matrix_33 @ np.diag([2.0, 2.0, 1.0]), window_4 / 2, scale * 2
    return image_HW3, matrix_33, window_4


def _inside(matrix_33: Array, window_4: Array, size_wh: tuple[int, int]) -> Array:
    """Tell for each pixel of the view whether its centre comes from within the window, (H, W) bool.

    ``matrix_33`` maps the image's continuous pixels to view coordinates that count from pixel centres. Each side of the
    window is a line in the view, so the pixels inside are one run in each row.
    """
    u_3, v_3, w_3 = np.linalg.inv(matrix_33)
    left, top, right, bottom = window_4
    y_H = np.arange(size_wh[1], dtype=np.float64)
    first_H, past_H = np.zeros(size_wh[1]), np.full(size_wh[1], float(size_wh[0]))
    # Each (line, open) tells a x + b y + c >= 0, or > 0 where the side does not belong to the window.
    for (a, b, c), is_open in (
        (u_3 - left * w_3, False), (v_3 - top * w_3, False), (right * w_3 - u_3, True), (bottom * w_3 - v_3, True),
        (w_3, True),
    ):  # fmt: skip
        rest_H = b * y_H + c
        if a == 0:
            past_H[(rest_H <= 0) if is_open else (rest_H < 0)] = 0
            continue
        cross_H = (-rest_H / a).clip(-1, size_wh[0] + 1)
        if a > 0:
            first_H = np.maximum(first_H, np.floor(cross_H) + 1 if is_open else np.ceil(cross_H))
        else:
            past_H = np.minimum(past_H, np.ceil(cross_H) if is_open else np.floor(cross_H) + 1)
    x_1W = np.arange(size_wh[0], dtype=np.int16)[None]
    return (x_1W >= first_H.astype(np.int16)[:, None]) & (x_1W < past_H.astype(np.int16)[:, None])
