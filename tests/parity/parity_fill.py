"""Deterministic weights for the parity fixtures, after the recipe that comes with them: the same on every machine.

Every tensor depends on its own checkpoint key alone.
"""

from __future__ import annotations

import zlib

import numpy as np


def uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in [0, 1), seeded by the key."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).random(size=shape, dtype=np.float32)


def tensor(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of one checkpoint key."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("dfl.conv.weight"):
        return np.arange(shape[1], dtype=np.float32).reshape(shape)
    numbers = uniform(key, shape)
    if key.endswith("running_mean"):
        return (numbers - 0.5) * 0.2
    if key.endswith(("running_var", "gamma", "bn.weight")):
        return 0.5 + numbers
    if len(shape) == 4:
        return (numbers - 0.5) * np.float32(2.0 * np.sqrt(6.0 / np.prod(shape[1:])))
    return (numbers - 0.5) * 0.2


def image(batch: int, height: int, width: int) -> np.ndarray:
    """RGB images in [0, 1], (batch, 3, height, width)."""
    return uniform(f"image-{batch}x{height}x{width}", (batch, 3, height, width))
