"""Pictures drawn in one pass against supersampled ones: no worse than the customary passes, much better when shrunk."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from painted_sets import make_set

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from quality import compare, psnr, supersampled  # noqa: E402  # pyright: ignore[reportMissingImports]
from ullage.data.recipe import Tile  # noqa: E402

SIZES = ((96, 128), (128, 96), (128, 120), (90, 128))


def detailed(size_hw: tuple[int, int], seed: int) -> np.ndarray:
    """A picture with detail at every scale and some hard edges, as photographs have."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    total = np.zeros((height, width, 3), np.float32)
    for scale in (1, 2, 4, 8, 16):
        coarse = rng.normal(0, 6 * scale**0.7, (height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    total[height // 4 : height // 2, width // 3 : width // 2] += 80
    return np.clip(total + 110, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("mosaic", [1.0, 0.0])
def test_one_pass_is_no_worse_than_separate_passes(mosaic):
    images = [detailed(size, seed) for seed, size in enumerate(SIZES)]
    dataset = make_set(SIZES, [[]] * 4)
    ours, theirs = compare(dataset, images.__getitem__, images.__getitem__, imgsz=128, mosaic=mosaic, samples=10)
    gains = np.array(ours) - np.array(theirs)
    assert gains.mean() > 2  # where images are shrunk, averaging wins by far
    assert gains.min() > -1.5  # where they are enlarged both interpolate between the same pixels
    assert np.mean(ours) > 30


def test_the_measure_notices_half_a_pixel():
    image = detailed((128, 128), 1)
    dataset = make_set([(128, 128)], [[]])
    tile = Tile(0, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1))
    maps = np.array([tile.matrix_33()])
    reference = supersampled(dataset, (tile,), maps, lambda _: image, (128, 128))
    shifted = cv2.warpAffine(image, np.array([[1, 0, 0.5], [0, 1, 0.0]]), (128, 128))
    assert psnr(image, *reference) > psnr(shifted, *reference) + 3
