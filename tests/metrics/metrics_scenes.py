"""Small scenes to judge: labels are (class, x1, y1, x2, y2[, "crowd"]), detections (class, x1, y1, x2, y2, score)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ullage.geometry.detections import Detections
from ullage.geometry.labels import Labels
from ullage.metrics.evaluator import DetectionEvaluator

SIZE_HW = (400, 400)


def make_labels(rows: Iterable[Sequence[Any]]) -> Labels:
    rows = list(rows)
    return Labels(
        np.array([row[1:5] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[0] for row in rows], np.int32),
        np.array([len(row) > 5 for row in rows], bool),
    )


def make_detections(rows: Iterable[Sequence[Any]]) -> Detections:
    rows = list(rows)
    return Detections(
        torch.tensor([row[1:5] for row in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([row[5] for row in rows], dtype=torch.float32),
        torch.tensor([row[0] for row in rows], dtype=torch.int64),
    )


def judge(
    images: Iterable[tuple[Iterable[Sequence[Any]], Iterable[Sequence[Any]]]],
    names: Sequence[str] = ("cat", "dog"),
    **settings: Any,
) -> DetectionEvaluator:
    """Feed images given as (labels, detections) and return the evaluator."""
    evaluator = DetectionEvaluator(names=names, **settings)
    for index, (labels, detections) in enumerate(images):
        evaluator.add(index, make_labels(labels), make_detections(detections), SIZE_HW)
    return evaluator
