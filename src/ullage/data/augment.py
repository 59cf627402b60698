"""Draw the augmentation of a sample, and carry its boxes along.

A sample's augmentation depends on (seed, epoch, index) alone, through the order of the epoch that (seed, epoch) give:
not on the batch, the worker or the machine. Sizes are drawn as fractions, so that one draw serves every image size.

Shape letters: N boxes of one image or one canvas, M other boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ullage.config.augment import AugmentSettings
from ullage.data.index import DetectionSet
from ullage.data.mosaic import View, place_mosaic, place_single, sample_meeting_point, sample_view
from ullage.data.outlines import seen_boxes
from ullage.data.recipe import Hsv, Recipe, Tile
from ullage.geometry.boxes import area_xyxy, clip_xyxy
from ullage.geometry.labels import Labels

Array = np.ndarray[Any, Any]

MIN_SIDE_PX = 2.0
MIN_VISIBLE = 0.1
MAX_ASPECT = 100.0
MAX_COVERED = 0.3
MAX_COMPANY = 0.1
MAX_PASTES = 20
MAX_TRIES = 100
MIXUP_BETA = 32.0
_SAMPLE_STREAM = 1


def settings_at(settings: AugmentSettings, *, epoch: int, epochs: int) -> AugmentSettings:
    """Return the settings in force in an epoch: mosaic, mixup and copy-paste stop for the last ``close_mosaic`` epochs.

    Args:
        settings: What the user asked for.
        epoch: 0-based.
        epochs: How many epochs the run has.
    """
    if epoch < epochs - settings.close_mosaic:
        return settings
    return settings.model_copy(update={"mosaic": 0.0, "mixup": 0.0, "copy_paste": 0.0})


def sample_recipe(
    dataset: DetectionSet,
    *,
    index: int,
    size_hw: tuple[int, int],
    settings: AugmentSettings,
    seed: int,
    epoch: int,
    partners: Sequence[int] | None = None,
) -> Recipe:
    """Draw the augmentation of one sample.

    Args:
        dataset: Sizes and boxes; no image is read.
        index: The image that the sample is about.
        size_hw: Size of the canvas.
        settings: Settings of this epoch, see ``settings_at``.
        seed: Seed of the run.
        epoch: 0-based.
        partners: Images that mosaic, mixup and copy-paste take, each with the same chance; None means the whole set.
    """
    partners = range(len(dataset)) if partners is None else partners
    rng = np.random.Generator(np.random.PCG64([_SAMPLE_STREAM, seed, epoch, index]))
    hsv = _sample_hsv(rng, settings)
    mixes, pastes = rng.random(2) < (settings.mixup, settings.copy_paste)
    first = _sample_layer(rng, dataset, index, partners, size_hw, settings)
    if pastes:
        first += _sample_pastes(rng, dataset, _draw_from(rng, partners), first, size_hw, settings)
    if not mixes:
        return Recipe(size_hw, (first,), hsv=hsv)
    second = _sample_layer(rng, dataset, _draw_from(rng, partners), partners, size_hw, settings)
    return Recipe(size_hw, (first, second), float(rng.beta(MIXUP_BETA, MIXUP_BETA)), hsv)


def layer_labels(
    dataset: DetectionSet, layer: tuple[Tile, ...], size_hw: tuple[int, int], *, matrices_T33: Array | None = None
) -> Labels:
    """Return the boxes that training sees in one picture: on the canvas, clipped, without crowds and slivers.

    A box stays when it is larger than 2 pixels each way, more than a tenth of it is visible, and neither side is more
    than 100 times the other.

    Args:
        dataset: Where the boxes are.
        layer: The tiles.
        size_hw: Size of the canvas.
        matrices_T33: The maps that were drawn; None takes those of the tiles.
    """
    rows_T = [_tile_rows(dataset, tile) for tile in layer]
    rows_N = np.concatenate(rows_T) if layer else np.zeros(0, np.int64)
    if len(rows_N) == 0:
        return Labels.empty()
    if matrices_T33 is None:
        matrices_T33 = np.array([tile.matrix for tile in layer]).reshape(-1, 3, 3)
    matrices_N33 = np.repeat(matrices_T33, [len(rows) for rows in rows_T], axis=0)
    boxes_N4, keep_N = shown_boxes(dataset, rows_N, matrices_N33, size_hw)
    kept = rows_N[keep_N]
    return Labels(boxes_N4[keep_N].astype(np.float32), dataset.class_ids_N[kept], dataset.crowd_N[kept])


def recipe_labels(dataset: DetectionSet, recipe: Recipe) -> Labels:
    """Return the boxes of a sample as it was drawn by chance; two blended pictures give the boxes of both.

    ``render`` returns the boxes as the pixels lie, which differ by less than a pixel of the image.
    """
    return join_labels([layer_labels(dataset, layer, recipe.size_hw) for layer in recipe.layers])


def map_boxes(matrices_N33: Array, boxes_xyxy_px_N4: Array) -> Array:
    """Map corner boxes and return the upright boxes around their mapped corners, float64.

    Args:
        matrices_N33: One matrix a box, or one of shape (3, 3) for all.
        boxes_xyxy_px_N4: Corners.
    """
    x_N4, y_N4 = (boxes_xyxy_px_N4[:, sides].astype(np.float64) for sides in ([0, 2, 2, 0], [1, 1, 3, 3]))
    x_w_N4, y_w_N4, w_N4 = (
        matrices_N33[..., row, 0, None] * x_N4
        + matrices_N33[..., row, 1, None] * y_N4
        + matrices_N33[..., row, 2, None]
        for row in range(3)
    )
    x_N4, y_N4 = x_w_N4 / w_N4, y_w_N4 / w_N4
    return np.stack((x_N4.min(1), y_N4.min(1), x_N4.max(1), y_N4.max(1)), axis=1)


def shown_boxes(
    dataset: DetectionSet, rows_N: Array, matrices_N33: Array, size_hw: tuple[int, int]
) -> tuple[Array, Array]:
    """Map objects to a canvas; return their boxes, clipped, and which of them are worth training on, (N,) bool.

    Where an object has an outline, and is turned or cut off by the canvas, its box is the one around what the canvas
    shows of the outline; the box around turned or cut corners would be larger than the object.

    Args:
        dataset: Where the objects are.
        rows_N: Which objects, as rows of the columns of the data set.
        matrices_N33: The map of each.
        size_hw: Size of the canvas.
    """
    mapped_N4 = map_boxes(matrices_N33, dataset.boxes_xyxy_px_N4[rows_N])
    shown_N4, keep_N = visible_boxes(mapped_N4, size_hw)
    outlines = dataset.outlines
    if outlines is None or not keep_N.any():
        return shown_N4, keep_N
    turned_N = matrices_N33.reshape(-1, 9)[:, [1, 3, 6, 7]].any(1)
    loose_M = np.flatnonzero(keep_N & (turned_N | (shown_N4 != mapped_N4).any(1)) & outlines.have(rows_N))
    whole_M4, seen_M4 = seen_boxes(outlines.select(rows_N[loose_M]), matrices_N33[loose_M], size_hw)
    in_sight_M = ~np.isnan(seen_M4[:, 0])
    shown_N4[loose_M] = np.where(in_sight_M[:, None], seen_M4, 0)
    keep_N[loose_M] = in_sight_M & _worth_training_on(shown_N4[loose_M], whole_M4)
    return shown_N4, keep_N


def visible_boxes(boxes_xyxy_px_N4: Array, size_hw: tuple[int, int]) -> tuple[Array, Array]:
    """Clip boxes to the canvas; return them and which of them are worth training on, (N,) bool."""
    clipped_N4 = clip_xyxy(boxes_xyxy_px_N4, size_hw)
    return clipped_N4, _worth_training_on(clipped_N4, boxes_xyxy_px_N4)


def _worth_training_on(shown_N4: Array, whole_N4: Array) -> Array:
    """Tell which boxes are neither slivers nor mostly out of sight."""
    width_N, height_N = shown_N4[:, 2] - shown_N4[:, 0], shown_N4[:, 3] - shown_N4[:, 1]
    large_N = np.minimum(width_N, height_N) > MIN_SIDE_PX
    slim_N = np.maximum(width_N, height_N) >= MAX_ASPECT * np.minimum(width_N, height_N)
    return large_N & ~slim_N & (area_xyxy(shown_N4) > MIN_VISIBLE * area_xyxy(whole_N4))


def _tile_rows(dataset: DetectionSet, tile: Tile) -> Array:
    """Return the rows of the objects that a tile brings, crowds not among them."""
    first, past = dataset.offsets[tile.index : tile.index + 2].tolist()
    if tile.box is not None:
        return np.array([first + tile.box])
    rows = np.arange(first, past)
    crowd_N = dataset.crowd_N[first:past]
    return rows[~crowd_N] if crowd_N.any() else rows


def join_labels(parts: list[Labels]) -> Labels:
    """Put the boxes of several pictures behind each other."""
    if len(parts) == 1:
        return parts[0]
    return Labels(
        np.concatenate([part.boxes_xyxy_px_G4 for part in parts]),
        np.concatenate([part.class_ids_G for part in parts]),
        np.concatenate([part.crowd_G for part in parts]),
    )


def _sample_hsv(rng: np.random.Generator, settings: AugmentSettings) -> Hsv | None:
    hue, saturation, value = (float(draw) for draw in rng.uniform(-1, 1, 3))
    if settings.hsv_h == settings.hsv_s == settings.hsv_v == 0:
        return None
    return Hsv(hue * settings.hsv_h, 1 + saturation * settings.hsv_s, 1 + value * settings.hsv_v)


def _sample_layer(
    rng: np.random.Generator,
    dataset: DetectionSet,
    index: int,
    partners: Sequence[int],
    size_hw: tuple[int, int],
    settings: AugmentSettings,
) -> tuple[Tile, ...]:
    mosaic = bool(rng.random() < settings.mosaic)
    view = sample_view(rng, settings=settings, size_hw=size_hw, mosaic=mosaic)
    if not mosaic:
        return (_single(dataset, index, view, size_hw),)
    meet_xy = sample_meeting_point(rng, size_hw)
    quarters = rng.permutation(4)  # the image that the sample is about takes any of the four places
    members = [index, *(partners[place] for place in rng.integers(len(partners), size=3).tolist())]
    view_33 = view.matrix(size_hw)
    return tuple(
        _tile(member, view_33 @ place_mosaic(dataset.size_hw(member), size_hw, quarter=int(quarter), meet_xy=meet_xy))
        for member, quarter in zip(members, quarters, strict=True)
    )


def _draw_from(rng: np.random.Generator, partners: Sequence[int]) -> int:
    return partners[int(rng.integers(len(partners)))]


def _single(dataset: DetectionSet, index: int, view: View, size_hw: tuple[int, int]) -> Tile:
    return _tile(index, view.matrix(size_hw) @ place_single(dataset.size_hw(index), size_hw))


def _tile(index: int, matrix_33: Array, box: int | None = None) -> Tile:
    return Tile(index, tuple(matrix_33.ravel().tolist()), box)


def _sample_pastes(
    rng: np.random.Generator,
    dataset: DetectionSet,
    donor: int,
    layer: tuple[Tile, ...],
    size_hw: tuple[int, int],
    settings: AugmentSettings,
) -> tuple[Tile, ...]:
    """Draw objects of another image to paste into a picture (arXiv:2012.07177).

    The other image gets a view of its own; an object keeps the place that it has there. Together they may cover
    less than 30 % of any object below them; each must itself be in view. An object with an outline is cut out along it;
    one without comes as its box, which may hold next to nothing of another object, crowds included: nothing arrives
    without its label. At most 20 objects are pasted.
    """
    view = sample_view(rng, settings=settings, size_hw=size_hw, mosaic=False)
    tile = _single(dataset, donor, view, size_hw)
    labels = dataset.labels(donor)
    sources_N4 = labels.boxes_xyxy_px_G4
    rows_N = np.arange(dataset.offsets[donor], dataset.offsets[donor + 1])
    boxes_N4, keep_N = shown_boxes(dataset, rows_N, np.tile(tile.matrix_33(), (len(rows_N), 1, 1)), size_hw)
    cut_out_N = np.zeros(len(rows_N), bool) if dataset.outlines is None else dataset.outlines.have(rows_N)
    # A random order, so that where objects compete for a place each has the same chance.
    candidates = rng.permutation(np.flatnonzero(~labels.crowd_G & keep_N))[:MAX_TRIES]
    below_M4 = layer_labels(dataset, layer, size_hw).boxes_xyxy_px_G4.astype(np.float64)
    covered_M = np.zeros(len(below_M4))
    pasted: list[Tile] = []
    for row in candidates:
        # Summed over all that is pasted, so that many small objects cannot hide a large one.
        covers_M = covered_M + _overlap(boxes_N4[row], below_M4)
        if (covers_M < MAX_COVERED * area_xyxy(below_M4)).all() and (cut_out_N[row] or _alone(int(row), sources_N4)):
            pasted.append(Tile(donor, tile.matrix, int(row)))
            below_M4 = np.concatenate((below_M4, boxes_N4[row : row + 1]))
            covered_M = np.append(covers_M, 0.0)
            if len(pasted) == MAX_PASTES:
                break
    return tuple(pasted)


def _alone(row: int, boxes_N4: Array) -> bool:
    """Tell whether the rectangle of one box holds next to nothing of any other box."""
    areas_N = area_xyxy(boxes_N4)
    shared_N = _overlap(boxes_N4[row], boxes_N4) > MAX_COMPANY * np.minimum(areas_N, areas_N[row])
    shared_N[row] = False
    return not shared_N.any()


def _overlap(box_4: Array, boxes_M4: Array) -> Array:
    sides_M2 = np.minimum(box_4[2:], boxes_M4[:, 2:]) - np.maximum(box_4[:2], boxes_M4[:, :2])
    return np.prod(sides_M2.clip(0), axis=1)
