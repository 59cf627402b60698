"""Resize an image along rows and columns, in whole numbers: the same bytes on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def resample(image_HW3: Array, size_hw: tuple[int, int]) -> Array:
    """Resize a uint8 image with a triangle as wide as two pixels of the coarser side."""
    image_1CHW = torch.from_numpy(np.ascontiguousarray(image_HW3))[None].permute(0, 3, 1, 2)
    resized_1CHW = torch.nn.functional.interpolate(
        image_1CHW, size=size_hw, mode="bilinear", antialias=True, align_corners=False
    )
    return resized_1CHW[0].permute(1, 2, 0).numpy()
