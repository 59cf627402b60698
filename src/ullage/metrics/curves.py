"""Precision, recall and F1 at IoU .5. Shape letters: C classes with ground truth, X points, D detections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ullage.metrics.columns import Array, Columns
from ullage.metrics.matching import IGNORED, TRUE_POSITIVE, match_detections

POINTS = 1000
_SMOOTHING = 101  # points, a tenth of the confidence axis: a peak of the curve and not of the noise


@dataclass(frozen=True, eq=False)
class Curve:
    """One line per class over one axis.

    Attributes:
        name: What is drawn.
        x_label: Name of the axis.
        y_label: Name of the values.
        x_X: The axis, 0 to 1.
        y_CX: The values.
        class_ids_C: The class of each line.
    """

    name: str
    x_label: str
    y_label: str
    x_X: Array
    y_CX: Array
    class_ids_C: Array

    @property
    def mean_X(self) -> Array:
        """Mean over classes; zero without classes."""
        return self.y_CX.mean(0) if len(self.y_CX) else np.zeros_like(self.x_X)


@dataclass(frozen=True, eq=False)
class Curves:
    """The four curves at IoU .5 of the classes that have ground truth.

    Attributes:
        precision: Precision over confidence. Above a class's best score the last value stands; 0 if it found nothing.
        recall: Recall over confidence.
        f1: Harmonic mean of the two over confidence.
        precision_recall: Best precision at a recall or beyond, over recall; 0 beyond the highest recall.
    """

    precision: Curve
    recall: Curve
    f1: Curve
    precision_recall: Curve

    def __iter__(self) -> Iterator[Curve]:
        return iter((self.precision, self.recall, self.f1, self.precision_recall))

    def best_point(self) -> int:
        """Point of the confidence axis where the mean F1, smoothed, is highest; the lowest such confidence."""
        mean_X = self.f1.mean_X
        padded = np.pad(mean_X, _SMOOTHING // 2, mode="edge")
        return int(np.argmax(np.convolve(padded, np.full(_SMOOTHING, 1 / _SMOOTHING), mode="valid").round(12)))


def compute_curves(columns: Columns) -> Curves:
    """Sweep the confidence of each class that has ground truth."""
    instances = columns.instances()
    class_ids = np.flatnonzero(instances)
    outcome_D = match_detections(columns)
    axis_X = np.linspace(0, 1, POINTS)
    precision_CX, recall_CX, envelope_CX = (np.zeros((len(class_ids), POINTS)) for _ in range(3))
    by_class = np.argsort(columns.det_class_D, kind="stable")
    bounds = np.searchsorted(columns.det_class_D[by_class], np.stack((class_ids, class_ids + 1)))
    for place, (start, stop) in enumerate(bounds.T.tolist()):
        rows = by_class[start:stop]
        rows = rows[outcome_D[rows] != IGNORED]
        if not len(rows):
            continue
        rows = rows[np.argsort(-columns.det_scores_D[rows], kind="stable")]
        scores_D = columns.det_scores_D[rows].astype(np.float64)
        found_D = np.cumsum(outcome_D[rows] == TRUE_POSITIVE)
        precision_D = found_D / np.arange(1, len(rows) + 1)
        recall_D = found_D / instances[class_ids[place]]
        kept_X = np.searchsorted(-scores_D, -axis_X, "right")  # detections whose score is at least x
        recall_CX[place] = np.where(kept_X > 0, recall_D[kept_X - 1], 0)
        precision_CX[place] = precision_D[np.maximum(kept_X, 1) - 1]
        best_onwards_D = np.maximum.accumulate(precision_D[::-1])[::-1]
        envelope_CX[place] = np.append(best_onwards_D, 0)[np.searchsorted(recall_D, axis_X, "left")]
    total = precision_CX + recall_CX
    f1_CX = np.divide(2 * precision_CX * recall_CX, total, out=np.zeros_like(total), where=total > 0)
    return Curves(
        precision=Curve("Precision-confidence", "Confidence", "Precision", axis_X, precision_CX, class_ids),
        recall=Curve("Recall-confidence", "Confidence", "Recall", axis_X, recall_CX, class_ids),
        f1=Curve("F1-confidence", "Confidence", "F1", axis_X, f1_CX, class_ids),
        precision_recall=Curve("Precision-recall", "Recall", "Precision", axis_X, envelope_CX, class_ids),
    )
