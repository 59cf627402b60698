"""Compare augmented pictures with supersampled ones: ours, and the customary way of one pass a step.

    python bench/quality.py [--data ../shared/data/coco128/data.yaml] [--imgsz 640] [--samples 64]

The reference maps 4 x 4 points a pixel straight back into the original image and averages. The customary way resizes
the image to the training size, pastes it into the double-size mosaic, and warps that; both sample between four pixels.
"""

from __future__ import annotations

import argparse
from typing import Any

import cv2
import numpy as np

from ullage.config.augment import AugmentSettings
from ullage.data.augment import sample_recipe
from ullage.data.cache import ImageStore
from ullage.data.decode import read_image
from ullage.data.index import DetectionSet
from ullage.data.recipe import Tile
from ullage.data.render import LoadImage, draw_tiles
from ullage.data.source import open_dataset
from ullage.geometry.letterbox import PAD_GREY, fit

Array = np.ndarray[Any, Any]
POINTS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="../shared/data/coco128/data.yaml")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--samples", type=int, default=64)
    options = parser.parse_args()
    dataset = open_dataset(options.data, split="train")
    store = ImageStore(dataset, side=options.imgsz)
    originals = lambda index: read_image(dataset.paths[index])  # noqa: E731
    for mosaic in (1.0, 0.0):
        ours, theirs = compare(
            dataset, store.get, originals, imgsz=options.imgsz, mosaic=mosaic, samples=options.samples
        )
        print(
            f"quality imgsz={options.imgsz} mosaic={mosaic:g}: one pass {np.mean(ours):.2f} dB, separate passes "
            f"{np.mean(theirs):.2f} dB, one pass better in {np.mean(np.array(ours) > np.array(theirs)):.0%} of "
            f"{len(ours)} pictures"
        )


def compare(
    dataset: DetectionSet, load: LoadImage, originals: LoadImage, *, imgsz: int, mosaic: float, samples: int
) -> tuple[list[float], list[float]]:
    """Return the PSNR in dB of our pictures and of the customary ones."""
    settings = AugmentSettings(hsv_h=0, hsv_s=0, hsv_v=0, mosaic=mosaic)
    size_hw = (imgsz, imgsz)
    ours: list[float] = []
    theirs: list[float] = []
    for sample in range(samples):
        (layer,) = sample_recipe(
            dataset, index=sample % len(dataset), size_hw=size_hw, settings=settings, seed=0, epoch=sample
        ).layers
        canvas = np.empty((*size_hw, 3), np.uint8)
        drawn_T33 = draw_tiles(canvas, layer, dataset=dataset, load=load)
        ours.append(psnr(canvas, *supersampled(dataset, layer, drawn_T33, originals, size_hw)))
        maps_T33 = np.array([tile.matrix_33() for tile in layer])
        passes = separate_passes(dataset, layer, maps_T33, originals, size_hw)
        theirs.append(psnr(passes, *supersampled(dataset, layer, maps_T33, originals, size_hw)))
    return ours, theirs


def supersampled(
    dataset: DetectionSet, layer: tuple[Tile, ...], maps_T33: Array, originals: LoadImage, size_hw: tuple[int, int]
) -> tuple[Array, Array]:
    """Return the picture as float32 from 4 x 4 points a pixel, and where a pixel lies in one tile only, (H, W)."""
    height, width = size_hw
    steps = (np.arange(POINTS) + 0.5) / POINTS
    x_1W = (np.arange(width)[:, None] + steps).reshape(1, -1)
    y_H1 = (np.arange(height)[:, None] + steps).reshape(-1, 1)
    fine_HW3 = np.full((height * POINTS, width * POINTS, 3), PAD_GREY, np.uint8)
    owner_HW = np.full(fine_HW3.shape[:2], -1, np.int8)
    for number, (tile, map_33) in enumerate(zip(layer, maps_T33, strict=True)):
        source_hw = dataset.size_hw(tile.index)
        u_HW, v_HW, w_HW = (row[0] * x_1W + row[1] * y_H1 + row[2] for row in np.linalg.inv(map_33))
        u_HW, v_HW = u_HW / w_HW, v_HW / w_HW
        inside_HW = (u_HW >= 0) & (u_HW < source_hw[1]) & (v_HW >= 0) & (v_HW < source_hw[0])
        if inside_HW.any():
            points = (u_HW - 0.5).astype(np.float32), (v_HW - 0.5).astype(np.float32)
            sampled_HW3 = cv2.remap(originals(tile.index), *points, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            fine_HW3[inside_HW], owner_HW[inside_HW] = sampled_HW3[inside_HW], number
    blocks = owner_HW.reshape(height, POINTS, width, POINTS)
    whole_HW = (blocks.max((1, 3)) == blocks.min((1, 3))) & (blocks.min((1, 3)) >= 0)
    # One pixel more: how a picture ends at its edge is a matter of taste, not of quality.
    whole_HW = cv2.erode(whole_HW.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0).astype(bool)
    return cv2.resize(fine_HW3.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA), whole_HW


def separate_passes(
    dataset: DetectionSet, layer: tuple[Tile, ...], maps_T33: Array, originals: LoadImage, size_hw: tuple[int, int]
) -> Array:
    """Draw a picture the customary way: resize, paste into the scene, warp the scene."""
    height, width = size_hw
    place_T33 = []
    scene_hw = (2 * height, 2 * width) if len(layer) > 1 else size_hw
    for tile in layer:
        resized_hw = fit(dataset.size_hw(tile.index), size_hw).resized_hw
        source_hw = dataset.size_hw(tile.index)
        place_T33.append(np.diag([resized_hw[1] / source_hw[1], resized_hw[0] / source_hw[0], 1.0]))
    # What is common to all tiles of the picture: the view. The first tile's map tells it, up to where it was placed.
    gain = maps_T33[0] @ np.linalg.inv(place_T33[0])
    corners = [np.linalg.inv(gain)[:2, :2] @ (map_33 @ np.linalg.inv(place))[:2, 2]
               for map_33, place in zip(maps_T33, place_T33, strict=True)]  # fmt: skip
    origin = np.min(corners, 0)
    room = np.max([np.array(fit(dataset.size_hw(t.index), size_hw).resized_hw[::-1]) + c for t, c in
                   zip(layer, corners, strict=True)], 0) - origin  # fmt: skip
    scene_hw = tuple(int(np.ceil(side)) + 1 for side in room[::-1])
    scene = np.full((*scene_hw, 3), PAD_GREY, np.uint8)
    for tile, corner in zip(layer, corners, strict=True):
        image = originals(tile.index)
        resized_hw = fit(dataset.size_hw(tile.index), size_hw).resized_hw
        if image.shape[:2] != resized_hw:
            image = cv2.resize(image, resized_hw[::-1], interpolation=cv2.INTER_LINEAR)
        left, top = np.round(corner - origin).astype(int)
        scene[top : top + resized_hw[0], left : left + resized_hw[1]] = image
    view = gain.copy()
    view[:2, 2] = gain[:2, :2] @ origin
    shift = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    pixels = shift @ view @ np.linalg.inv(shift)
    return cv2.warpAffine(scene, pixels[:2], (width, height), borderValue=(PAD_GREY,) * 3)


def psnr(picture: Array, reference: Array, counted_HW: Array) -> float:
    """Return the peak signal-to-noise ratio in dB over the pixels that count."""
    error = np.square(picture[counted_HW].astype(np.float64) - reference[counted_HW]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


if __name__ == "__main__":
    main()
