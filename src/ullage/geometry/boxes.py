"""Box formats. Every function takes a numpy array or a torch tensor of shape (..., 4) and returns the same kind.

Formats: ``xyxy`` is left, top, right, bottom; ``cxcywh`` is centre and size. Units (``px``: pixels of the stated frame,
``unit``: fractions of the image's width and height) are in the names of the variables that hold the boxes.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray[Any, Any], torch.Tensor)


def _stack_last(like: Array, columns: list[Any]) -> Array:
    return torch.stack(columns, -1) if isinstance(like, torch.Tensor) else np.stack(columns, -1)  # pyright: ignore


def xyxy_to_cxcywh(boxes_xyxy: Array) -> Array:
    """Convert corners to centre and size."""
    left, top, right, bottom = (boxes_xyxy[..., i] for i in range(4))
    return _stack_last(boxes_xyxy, [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])


def cxcywh_to_xyxy(boxes_cxcywh: Array) -> Array:
    """Convert centre and size to corners."""
    x, y, half_w, half_h = (boxes_cxcywh[..., i] / (1 if i < 2 else 2) for i in range(4))
    return _stack_last(boxes_cxcywh, [x - half_w, y - half_h, x + half_w, y + half_h])


def scale_boxes(boxes: Array, size_hw: tuple[float, float]) -> Array:
    """Multiply x by the width and y by the height: unit boxes become pixel boxes (use 1/h, 1/w for the way back)."""
    height, width = size_hw
    return _stack_last(boxes, [boxes[..., i] * (width if i % 2 == 0 else height) for i in range(4)])


def clip_xyxy(boxes_xyxy_px: Array, size_hw: tuple[int, int]) -> Array:
    """Clip corner boxes to an image of ``size_hw`` pixels."""
    height, width = size_hw
    limits = (width, height, width, height)
    return _stack_last(boxes_xyxy_px, [boxes_xyxy_px[..., i].clip(0, limits[i]) for i in range(4)])


def area_xyxy(boxes_xyxy: Array) -> Array:
    """Area of corner boxes, shape (...); a box whose right is left of its left has area 0."""
    width = (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]).clip(0, None)
    height = (boxes_xyxy[..., 3] - boxes_xyxy[..., 1]).clip(0, None)
    return width * height
