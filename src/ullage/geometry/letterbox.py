"""Letterbox: fit an image into the network's input without changing its aspect ratio, and find the way back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ullage.geometry.boxes import Array, clip_xyxy

PAD_GREY = 114


@dataclass(frozen=True)
class Letterbox:
    """How one image was fitted: resized to ``resized_hw``, then padded on the left and the top to ``size_hw``.

    Pixel frames are continuous: x in [0, width]. ``scale_wh`` differs between the axes by the rounding of the size.
    """

    source_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    pad_lt: tuple[int, int]
    size_hw: tuple[int, int]

    @property
    def scale_wh(self) -> tuple[float, float]:
        """Input pixels per source pixel, along x and along y."""
        return self.resized_hw[1] / self.source_hw[1], self.resized_hw[0] / self.source_hw[0]

    def forward(self, boxes_xyxy_px: Array) -> Array:
        """Map corner boxes (..., 4) from the source image to the network's input."""
        return self._affine(boxes_xyxy_px, self.scale_wh, self.pad_lt)

    def backward(self, boxes_xyxy_px: Array, *, clip: bool = True) -> Array:
        """Map corner boxes (..., 4) from the network's input to the source image, clipped to it unless told not to."""
        (sx, sy), (left, top) = self.scale_wh, self.pad_lt
        boxes = self._affine(boxes_xyxy_px, (1 / sx, 1 / sy), (-left / sx, -top / sy))
        return clip_xyxy(boxes, self.source_hw) if clip else boxes

    @staticmethod
    def _affine(boxes: Array, scale: tuple[float, float], shift: tuple[float, float]) -> Array:
        columns: list[Any] = [boxes[..., i : i + 1] * scale[i % 2] + shift[i % 2] for i in range(4)]
        if isinstance(boxes, np.ndarray):
            return np.concatenate(columns, -1)
        import torch

        return torch.cat(columns, -1)  # pyright: ignore

    def apply(
        self, image_HW3: np.ndarray[Any, Any], out_HW3: np.ndarray[Any, Any] | None = None
    ) -> np.ndarray[Any, Any]:
        """Resize and pad a uint8 image (H, W, 3); the margin is grey. Writes into ``out_HW3`` when given."""
        height, width = self.resized_hw
        left, top = self.pad_lt
        canvas = np.empty((*self.size_hw, 3), np.uint8) if out_HW3 is None else out_HW3
        if (height, width) != self.size_hw:
            canvas[...] = PAD_GREY
        if image_HW3.shape[:2] != (height, width):
            shrinks = height < image_HW3.shape[0]
            image_HW3 = cv2.resize(
                image_HW3, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
        canvas[top : top + height, left : left + width] = image_HW3
        return canvas


def fit(
    source_hw: tuple[int, int], size_hw: tuple[int, int], *, upscale: bool = True, centre: bool = True
) -> Letterbox:
    """Plan the letterbox of an image of ``source_hw`` into exactly ``size_hw``.

    Args:
        source_hw: Size of the image.
        size_hw: Size of the network's input.
        upscale: False never enlarges a small image.
        centre: Pad on both sides alike; False pads right and bottom only.
    """
    ratio, larger = sorted(limit / side for side, limit in zip(source_hw, size_hw, strict=True))
    if all(round(side * larger) <= limit for side, limit in zip(source_hw, size_hw, strict=True)):
        ratio = larger  # a side that only rounding brought down to its limit must not shrink the other one
    if not upscale:
        ratio = min(ratio, 1.0)
    resized_hw = tuple(min(max(round(side * ratio), 1), limit) for side, limit in zip(source_hw, size_hw, strict=True))
    spare_h, spare_w = size_hw[0] - resized_hw[0], size_hw[1] - resized_hw[1]
    pad_lt = (spare_w // 2, spare_h // 2) if centre else (0, 0)
    return Letterbox(source_hw, (resized_hw[0], resized_hw[1]), pad_lt, size_hw)


def tight_size(source_hw: tuple[int, int], imgsz: int, *, stride: int = 32) -> tuple[int, int]:
    """Smallest (h, w), multiples of ``stride``, that holds the image when its longer side is resized to ``imgsz``."""
    ratio = imgsz / max(source_hw)
    height, width = (max(math.ceil(round(side * ratio) / stride), 1) * stride for side in source_hw)
    return height, width
