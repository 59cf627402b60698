"""Overlap of boxes, on torch tensors. Shape letters: N, M boxes; ... any leading dimensions."""

from __future__ import annotations

import math

import torch

from ullage.geometry.boxes import area_xyxy

_EPS = 1e-7


def iou_matrix(boxes_N4: torch.Tensor, boxes_M4: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every pair of corner boxes, shape (N, M); pairs of empty boxes give 0."""
    left_top_NM2 = torch.maximum(boxes_N4[:, None, :2], boxes_M4[None, :, :2])
    right_bottom_NM2 = torch.minimum(boxes_N4[:, None, 2:], boxes_M4[None, :, 2:])
    overlap_NM = (right_bottom_NM2 - left_top_NM2).clamp_(min=0).prod(-1)
    union_NM = area_xyxy(boxes_N4)[:, None] + area_xyxy(boxes_M4)[None] - overlap_NM
    return overlap_NM / union_NM.clamp_(min=_EPS)


def complete_iou(boxes_a: torch.Tensor, boxes_b: torch.Tensor) -> torch.Tensor:
    """Complete IoU of corner boxes, element by element (arXiv:1911.08287, section 4.2).

    CIoU = IoU - (distance of the centres / diagonal of the enclosing box)^2 - alpha v, where v measures the difference
    of the aspect ratios and alpha, its weight, is a constant for the gradient.

    Args:
        boxes_a: (..., 4), pixels or any common unit.
        boxes_b: (..., 4), broadcast against ``boxes_a``.

    Returns:
        CIoU in (-1.5, 1], shape (...).
    """
    ax1, ay1, ax2, ay2 = boxes_a.unbind(-1)
    bx1, by1, bx2, by2 = boxes_b.unbind(-1)
    aw, ah = ax2 - ax1, ay2 - ay1 + _EPS
    bw, bh = bx2 - bx1, by2 - by1 + _EPS
    overlap_w = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    overlap_h = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    overlap = overlap_w * overlap_h
    iou = overlap / (aw * ah + bw * bh - overlap + _EPS)
    enclosing_w = torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)
    enclosing_h = torch.maximum(ay2, by2) - torch.minimum(ay1, by1)
    diagonal_sq = enclosing_w.square() + enclosing_h.square() + _EPS
    distance_sq = ((bx1 + bx2 - ax1 - ax2).square() + (by1 + by2 - ay1 - ay2).square()) / 4
    v = (4 / math.pi**2) * (torch.atan(bw / bh) - torch.atan(aw / ah)).square()
    with torch.no_grad():
        alpha = v / (v - iou + (1 + _EPS))
    return iou - (distance_sq / diagonal_sq + v * alpha)
