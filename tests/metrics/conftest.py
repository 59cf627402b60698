"""Fixtures of the metrics tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from metrics_scenes import make_detections, make_labels

from ullage.metrics.evaluator import DetectionEvaluator


@pytest.fixture(scope="session")
def feed_coco() -> Callable[..., tuple[DetectionEvaluator, dict[str, Any], list[Any]]]:
    """Feed COCO files through the evaluator, image by image; also returns the content and what was fed."""

    def feed(
        truth_path: Any, results_path: Any, **settings: Any
    ) -> tuple[DetectionEvaluator, dict[str, Any], list[Any]]:
        truth, results = json.loads(truth_path.read_text()), json.loads(results_path.read_text())
        categories = sorted(entry["id"] for entry in truth["categories"])
        evaluator = DetectionEvaluator(names=[str(category) for category in categories], **settings)
        fed = []
        for image in truth["images"]:
            gt = [entry for entry in truth["annotations"] if entry["image_id"] == image["id"]]
            found = [entry for entry in results if entry["image_id"] == image["id"]]
            corners = lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])  # noqa: E731
            labels = make_labels(
                (categories.index(entry["category_id"]), *corners(entry["bbox"]), *["crowd"] * entry["iscrowd"])
                for entry in gt
            )
            detections = make_detections(
                (categories.index(entry["category_id"]), *corners(entry["bbox"]), entry["score"]) for entry in found
            )
            areas = np.array([entry["area"] for entry in gt])
            evaluator.add(image["id"], labels, detections, (image["height"], image["width"]), areas_px_G=areas)
            fed.append((image["id"], detections))
        return evaluator, truth, fed

    return feed
