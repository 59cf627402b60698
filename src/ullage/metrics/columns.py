"""Everything that was shown and everything that was found, as flat numpy columns: an image costs bytes, not objects.

Shape letters: G ground-truth boxes of all images, D detections of all images, P pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_PAIRS_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class Columns:
    """Ground truth and detections, both ascending by image, then class; detections of a group best score first.

    Attributes:
        class_count: Class ids lie in [0, class_count).
        gt_image_G: int32, number of the image.
        gt_class_G: int32.
        gt_boxes_xyxy_px_G4: float32 or float64, corners in pixels of the original image.
        gt_area_px_G: float64, what decides between small, medium and large.
        gt_crowd_G: bool, regions where detections count neither for nor against.
        det_image_D: int32.
        det_class_D: int32.
        det_boxes_xyxy_px_D4: float32 or float64.
        det_scores_D: float32 or float64 in [0, 1].
    """

    class_count: int
    gt_image_G: Array
    gt_class_G: Array
    gt_boxes_xyxy_px_G4: Array
    gt_area_px_G: Array
    gt_crowd_G: Array
    det_image_D: Array
    det_class_D: Array
    det_boxes_xyxy_px_D4: Array
    det_scores_D: Array

    def instances(self) -> Array:
        """Boxes to find of each class, crowd regions left out: int64 of shape (class_count,)."""
        return np.bincount(self.gt_class_G[~self.gt_crowd_G], minlength=self.class_count)

    def images_with(self) -> Array:
        """Images that show each class, crowd regions left out: int64 of shape (class_count,)."""
        keep = ~self.gt_crowd_G
        seen = np.unique(self.gt_image_G[keep].astype(np.int64) * self.class_count + self.gt_class_G[keep])
        return np.bincount(seen % self.class_count, minlength=self.class_count)


def best_per_group(group_D: Array, limit: int) -> Array:
    """Mask of the first ``limit`` rows of every run of equal values in ``group_D``."""
    if len(group_D) <= limit:
        return np.ones(len(group_D), bool)
    starts = np.flatnonzero(np.r_[True, group_D[1:] != group_D[:-1]])
    run_lengths = np.diff(np.r_[starts, len(group_D)])
    return np.arange(len(group_D)) - np.repeat(starts, run_lengths) < limit


def overlaps(gt_boxes_P4: Array, gt_crowd_P: Array, det_boxes_P4: Array) -> Array:
    """IoU, pair by pair; with a crowd region it is the share of the detection that lies inside (COCO's rule)."""
    gt, det = gt_boxes_P4.astype(np.float64), det_boxes_P4.astype(np.float64)
    inter = _area(np.maximum(gt[:, :2], det[:, :2]), np.minimum(gt[:, 2:], det[:, 2:]))
    gt_area, det_area = _area(gt[:, :2], gt[:, 2:]), _area(det[:, :2], det[:, 2:])
    whole = np.where(gt_crowd_P, det_area, det_area + gt_area - inter)
    return np.divide(inter, whole, out=np.zeros_like(inter), where=whole > 0)


def _area(left_top_P2: Array, right_bottom_P2: Array) -> Array:
    sides = np.clip(right_bottom_P2 - left_top_P2, 0, None)
    return sides[:, 0] * sides[:, 1]


def overlapping_pairs(
    columns: Columns, *, gt_group_G: Array, det_rows: Array, det_group: Array, threshold: float
) -> Iterator[tuple[Array, Array, Array]]:
    """Find the pairs of one group that overlap enough, a bounded number of pairs at a time.

    Args:
        columns: The boxes.
        gt_group_G: Group of each ground-truth box, ascending.
        det_rows: Rows of the detections to pair.
        det_group: Group of each of these detections.
        threshold: Pairs that overlap less are left out.

    Yields:
        ``(det_row_P, gt_row_P, overlap_P)``; all pairs of a detection come together.
    """
    first = np.searchsorted(gt_group_G, det_group, "left")
    count = np.searchsorted(gt_group_G, det_group, "right") - first
    ends = np.cumsum(count)
    start = 0
    while start < len(det_rows):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, "right")), start + 1)
        counts = count[start:stop]
        det_P = np.repeat(det_rows[start:stop], counts)
        before = np.repeat(np.cumsum(counts) - counts - first[start:stop], counts)
        gt_P = np.arange(len(det_P)) - before
        overlap_P = overlaps(
            columns.gt_boxes_xyxy_px_G4[gt_P], columns.gt_crowd_G[gt_P], columns.det_boxes_xyxy_px_D4[det_P]
        )
        keep = overlap_P >= threshold
        yield det_P[keep], gt_P[keep], overlap_P[keep]
        start = stop
