"""Which detection found which box, at one IoU threshold. Shape letters: G ground truth, D detections, K classes."""

from __future__ import annotations

import numpy as np

from ullage.metrics.columns import Array, Columns, overlapping_pairs

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2


def match_detections(columns: Columns, *, iou: float = 0.5) -> Array:
    """Match within each class as COCO does: best score first, each box found once, the best overlap wins.

    Args:
        columns: Ground truth and detections.
        iou: Least overlap of a match.

    Returns:
        int8 of shape (D,): FALSE_POSITIVE, TRUE_POSITIVE, or IGNORED for a detection that found no box but lies in a
        crowd region of its class.
    """
    outcome_D = np.zeros(len(columns.det_scores_D), np.int8)
    taken_G = np.zeros(len(columns.gt_class_G), bool)
    for det_P, gt_P, overlap_P in overlapping_pairs(
        columns,
        gt_group_G=columns.gt_image_G.astype(np.int64) * columns.class_count + columns.gt_class_G,
        det_rows=np.arange(len(outcome_D)),
        det_group=columns.det_image_D.astype(np.int64) * columns.class_count + columns.det_class_D,
        threshold=iou,
    ):
        crowd_P = columns.gt_crowd_G[gt_P]
        order = np.lexsort((-gt_P, -overlap_P, crowd_P, det_P))  # a crowd region only takes what found nothing else
        for det, gt, crowd in zip(det_P[order].tolist(), gt_P[order].tolist(), crowd_P[order].tolist(), strict=True):
            if outcome_D[det]:
                continue
            if crowd:
                outcome_D[det] = IGNORED
            elif not taken_G[gt]:
                taken_G[gt] = True
                outcome_D[det] = TRUE_POSITIVE
    return outcome_D


def count_confusions(columns: Columns, *, conf: float, iou: float) -> Array:
    """Count which class was taken for which, whatever the class: best overlap first, each side used once.

    Args:
        columns: Ground truth and detections.
        conf: Detections below this score are left out.
        iou: Least overlap of a match.

    Returns:
        int64 of shape (K + 1, K + 1): row what was predicted, column what it is; the last row are boxes that nothing
        found, the last column detections where nothing is. A detection without a match in a crowd region of its class
        is not counted.
    """
    background = columns.class_count
    matrix = np.zeros((background + 1, background + 1), np.int64)
    rows = np.flatnonzero(columns.det_scores_D >= conf)
    taken_G = columns.gt_crowd_G.copy()
    taken_D = np.ones(len(columns.det_scores_D), bool)
    taken_D[rows] = False
    excused_D = np.zeros_like(taken_D)
    pairs = list(
        overlapping_pairs(
            columns, gt_group_G=columns.gt_image_G, det_rows=rows, det_group=columns.det_image_D[rows], threshold=iou
        )
    )
    if pairs:
        det_P, gt_P, overlap_P = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        same_class_P = columns.det_class_D[det_P] == columns.gt_class_G[gt_P]
        excused_D[det_P[columns.gt_crowd_G[gt_P] & same_class_P]] = True
        for pair in np.lexsort((gt_P, det_P, ~same_class_P, -overlap_P)).tolist():
            det, gt = det_P[pair], gt_P[pair]
            if not (taken_D[det] or taken_G[gt]):
                taken_D[det] = taken_G[gt] = True
                matrix[columns.det_class_D[det], columns.gt_class_G[gt]] += 1
    matrix[background] += np.bincount(columns.gt_class_G[~taken_G], minlength=background + 1)
    matrix[:, background] += np.bincount(columns.det_class_D[~taken_D & ~excused_D], minlength=background + 1)
    return matrix
