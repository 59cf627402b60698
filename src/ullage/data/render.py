"""Draw a recipe: every tile is resampled once, straight onto the canvas.

A tile writes only the canvas pixels whose centres lie inside it, so tiles that share an edge leave no seam and none
overwrites another. Where a tile shrinks to less than half it is halved by averaging first, so that nothing flickers.

Shape letters: H, W canvas or image; 33 matrices on continuous pixels (the first pixel's centre at 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from ullage.data.augment import map_boxes, recipe_labels
from ullage.data.index import DetectionSet
from ullage.data.recipe import Hsv, Recipe, Tile
from ullage.geometry.labels import Labels
from ullage.geometry.letterbox import PAD_GREY

Array = np.ndarray[Any, Any]
LoadImage = Callable[[int], Array]


def render(
    recipe: Recipe, *, dataset: DetectionSet, load: LoadImage, out_HW3: Array | None = None
) -> tuple[Array, Labels]:
    """Make the sample that a recipe describes.

    Args:
        recipe: From ``sample_recipe``.
        dataset: The set that the recipe was drawn from.
        load: Returns an image of the set by index: uint8 RGB, whole, at any size.
        out_HW3: Canvas to draw on, uint8 of ``recipe.size_hw``; None makes one.

    Returns:
        The canvas and the boxes on it.
    """
    canvas_HW3 = np.empty((*recipe.size_hw, 3), np.uint8) if out_HW3 is None else out_HW3
    _draw_layer(canvas_HW3, recipe.layers[0], dataset, load)
    for layer in recipe.layers[1:]:
        other_HW3 = np.empty_like(canvas_HW3)
        _draw_layer(other_HW3, layer, dataset, load)
        canvas_HW3[...] = cv2.addWeighted(canvas_HW3, recipe.blend, other_HW3, 1 - recipe.blend, 0)
    if recipe.hsv is not None:
        shift_colours(canvas_HW3, recipe.hsv)
    return canvas_HW3, recipe_labels(dataset, recipe)


def shift_colours(image_HW3: Array, hsv: Hsv) -> None:
    """Change hue, saturation and brightness of a uint8 RGB image in place, by tables of 256 entries."""
    values = np.arange(256)
    tables = np.stack(
        (
            np.rint(values + hsv.hue_shift * 180) % 180,  # OpenCV's 8-bit hue counts 180 steps
            np.rint(np.clip(values * hsv.saturation_gain, 0, 255)),
            np.rint(np.clip(values * hsv.value_gain, 0, 255)),
        ),
        axis=-1,
    )
    hsv_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2HSV)
    hsv_HW3 = cv2.LUT(hsv_HW3, tables.astype(np.uint8)[None], dst=hsv_HW3)
    image_HW3[...] = cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB)


def _draw_layer(canvas_HW3: Array, layer: tuple[Tile, ...], dataset: DetectionSet, load: LoadImage) -> None:
    canvas_HW3[...] = PAD_GREY
    for tile in layer:
        height, width = dataset.size_hw(tile.index)
        window_4 = np.array([0, 0, width, height], np.float64)
        if tile.box is not None:
            window_4 = dataset.labels(tile.index).boxes_xyxy_px_G4[tile.box].astype(np.float64)
        matrix_33 = tile.matrix_33()
        region = _region(map_boxes(matrix_33, window_4[None])[0], canvas_HW3)
        if region is not None:
            # Only now: an image of which nothing shows is not read.
            image_HW3 = load(tile.index)
            scale_wh = (image_HW3.shape[1] / width, image_HW3.shape[0] / height)
            scale_33 = np.diag([*scale_wh, 1.0])
            _draw_tile(canvas_HW3, image_HW3, matrix_33 @ np.linalg.inv(scale_33), window_4 * (scale_wh * 2), region)


def _region(bounds_4: Array, canvas_HW3: Array) -> tuple[int, int, int, int] | None:
    """Return left, top, right, bottom of the canvas pixels with their centres in bounds, None without any."""
    left, top = (max(math.ceil(side - 0.5), 0) for side in bounds_4[:2])
    right = min(math.ceil(bounds_4[2] - 0.5), canvas_HW3.shape[1])
    bottom = min(math.ceil(bounds_4[3] - 0.5), canvas_HW3.shape[0])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _draw_tile(
    canvas_HW3: Array, image_HW3: Array, matrix_33: Array, window_4: Array, region: tuple[int, int, int, int]
) -> None:
    image_HW3, matrix_33, window_4 = _halve(image_HW3, matrix_33, window_4)
    left, top, right, bottom = region
    view_HW3 = canvas_HW3[top:bottom, left:right]
    size_wh = (right - left, bottom - top)
    # OpenCV counts from the centre of the first pixel.
    to_view_33 = np.array([[1, 0, -0.5 - left], [0, 1, -0.5 - top], [0, 0, 1]]) @ matrix_33
    opencv_33 = to_view_33 @ np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    flat = matrix_33[2, 0] == 0 and matrix_33[2, 1] == 0
    if flat:
        drawn_HW3 = cv2.warpAffine(image_HW3, opencv_33[:2], size_wh, borderMode=cv2.BORDER_REPLICATE)
    else:
        drawn_HW3 = cv2.warpPerspective(image_HW3, opencv_33, size_wh, borderMode=cv2.BORDER_REPLICATE)
    if flat and matrix_33[0, 1] == 0 and matrix_33[1, 0] == 0:
        view_HW3[...] = drawn_HW3  # upright: the region is the tile
    else:
        inside_HW = _inside(to_view_33, window_4, size_wh)
        np.copyto(view_HW3, drawn_HW3, where=inside_HW[..., None])


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

    ``matrix_33`` maps the image's continuous pixels to view coordinates that count from pixel centres.
    """
    inverse_33 = np.linalg.inv(matrix_33)
    x_1W, y_H1 = np.arange(size_wh[0])[None], np.arange(size_wh[1])[:, None]
    u_HW, v_HW, w_HW = (row[0] * x_1W + (row[1] * y_H1 + row[2]) for row in inverse_33)
    left, top, right, bottom = window_4
    return (u_HW >= left * w_HW) & (u_HW < right * w_HW) & (v_HW >= top * w_HW) & (v_HW < bottom * w_HW) & (w_HW > 0)
