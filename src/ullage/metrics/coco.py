"""COCO average precision and recall, computed by faster-coco-eval, one class at a time to bound the memory.

Shape letters: C classes with ground truth, T IoU thresholds, A area ranges (all, small, medium, large), M limits on the
detections per image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from ullage.errors import DataError
from ullage.metrics.columns import Array, Columns

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
_AREAS = 4
_AT_50, _AT_75 = IOU_THRESHOLDS.index(0.5), IOU_THRESHOLDS.index(0.75)


@dataclass(frozen=True)
class CocoSummary:
    """The twelve figures that COCO publishes; nan where no ground truth falls into the range (pycocotools prints -1).

    Attributes:
        ap: Mean over IoU .50 to .95 and over classes, all sizes, ``max_det`` detections.
        ap50: At IoU .50.
        ap75: At IoU .75.
        ap_small: Areas below 32^2 pixels.
        ap_medium: Areas from 32^2 to 96^2 pixels.
        ap_large: Areas above 96^2 pixels.
        ar_1: Average recall with one detection per image and class.
        ar_10: With ten.
        ar_max: With ``max_det``.
        ar_small: Average recall, small, with ``max_det``.
        ar_medium: Medium.
        ar_large: Large.
        max_det: Detections per image and class at most; 100 in COCO's own protocol.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_max: float
    ar_small: float
    ar_medium: float
    ar_large: float
    max_det: int = 100

    def as_dict(self) -> dict[str, float]:
        """Return the figures by name."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class CocoTables:
    """Average precision and recall before the mean over classes.

    Attributes:
        class_ids_C: Classes with ground truth other than crowd regions, ascending.
        ap_CTA: Average precision with ``max_det`` detections; nan where a class has no ground truth of that size.
        ar_CTAM: Highest recall, for 1, 10 and ``max_det`` detections; nan likewise.
        max_det: The last limit.
    """

    class_ids_C: Array
    ap_CTA: Array
    ar_CTAM: Array
    max_det: int

    def summary(self) -> CocoSummary:
        """Take the means."""
        ap, ar = self.ap_CTA, self.ar_CTAM
        return CocoSummary(
            *(mean_of(part) for part in (ap[:, :, 0], ap[:, _AT_50, 0], ap[:, _AT_75, 0])),
            *(mean_of(ap[:, :, area]) for area in (1, 2, 3)),
            *(mean_of(ar[:, :, 0, limit]) for limit in range(3)),
            *(mean_of(ar[:, :, area, -1]) for area in (1, 2, 3)),
            max_det=self.max_det,
        )

    @property
    def ap_C(self) -> Array:
        """AP of each class, mean over IoU .50 to .95."""
        return self.ap_CTA[:, :, 0].mean(1)

    @property
    def ap50_C(self) -> Array:
        """AP of each class at IoU .50."""
        return self.ap_CTA[:, _AT_50, 0]

    @property
    def ap75_C(self) -> Array:
        """AP of each class at IoU .75."""
        return self.ap_CTA[:, _AT_75, 0]


def mean_of(values: Array) -> float:
    """Mean of the values that are not nan; nan when there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def evaluate_coco(columns: Columns, *, max_det: int) -> CocoTables:
    """Compute COCO's tables.

    Args:
        columns: Ground truth and detections.
        max_det: Detections per image and class that count; the limits are 1, 10 and this.
    """
    class_ids = np.flatnonzero(columns.instances())
    limits = (1, min(10, max_det), max_det)
    ap_CTA = np.full((len(class_ids), len(IOU_THRESHOLDS), _AREAS), np.nan)
    ar_CTAM = np.full((len(class_ids), len(IOU_THRESHOLDS), _AREAS, len(limits)), np.nan)
    gt_rows, det_rows = _rows_by_class(columns.gt_class_G), _rows_by_class(columns.det_class_D)
    nothing = np.zeros(0, np.int64)
    for place, class_id in enumerate(class_ids.tolist()):
        precision_TRAM, recall_TAM = _evaluate_class(
            columns, gt_rows[class_id], det_rows.get(class_id, nothing), sorted(set(limits))
        )
        # COCO marks what has no ground truth with -1, for all recall levels alike
        ap_CTA[place] = np.where(precision_TRAM[:, 0, :, -1] < 0, np.nan, precision_TRAM[..., -1].mean(1))
        columns_of_limits = [sorted(set(limits)).index(limit) for limit in limits]
        ar_CTAM[place] = np.where(recall_TAM < 0, np.nan, recall_TAM)[..., columns_of_limits]
    return CocoTables(class_ids, ap_CTA, ar_CTAM, max_det)


def _rows_by_class(class_N: Array) -> dict[int, Array]:
    order = np.argsort(class_N, kind="stable")
    class_ids, starts = np.unique(class_N[order], return_index=True)
    return dict(zip(class_ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}


def _evaluate_class(columns: Columns, gt_rows: Array, det_rows: Array, limits: list[int]) -> tuple[Array, Array]:
    gt_images, det_images = columns.gt_image_G[gt_rows], columns.det_image_D[det_rows]
    shared = {
        "images": [{"id": image} for image in np.union1d(gt_images, det_images).tolist()],
        "categories": [{"id": 1}],
    }
    truth = _annotations(gt_images, columns.gt_boxes_xyxy_px_G4[gt_rows], area=columns.gt_area_px_G[gt_rows])
    for annotation, crowd in zip(truth, columns.gt_crowd_G[gt_rows].tolist(), strict=True):
        annotation["iscrowd"] = int(crowd)
    found = _annotations(det_images, columns.det_boxes_xyxy_px_D4[det_rows], area=None)
    for annotation, score in zip(found, columns.det_scores_D[det_rows].tolist(), strict=True):
        annotation["score"] = score
    evaluation = COCOeval_faster(
        COCO({**shared, "annotations": truth}, print_function=_say_nothing),
        COCO({**shared, "annotations": found}, print_function=_say_nothing),
        "bbox",
        print_function=_say_nothing,
    )
    evaluation.params.maxDets = limits
    evaluation.evaluate()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])[:, :, 0], np.asarray(evaluation.eval["recall"])[:, 0]


def _say_nothing(*words: object) -> None:
    """Take the place of faster-coco-eval's printing."""


def _annotations(images_N: Array, boxes_xyxy_N4: Array, *, area: Array | None) -> list[dict[str, Any]]:
    boxes = boxes_xyxy_N4.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    areas = boxes[:, 2] * boxes[:, 3] if area is None else area
    # ids start at 1: zero means "no match" to the evaluator
    return [
        {"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": size}
        for number, (image, box, size) in enumerate(
            zip(images_N.tolist(), boxes.tolist(), areas.tolist(), strict=True), start=1
        )
    ]


def coco_metrics(ground_truth_json: str | Path, results_json: str | Path, *, max_det: int = 100) -> CocoSummary:
    """Judge a COCO results file against a COCO annotation file, boxes only.

    Args:
        ground_truth_json: ``instances_*.json``.
        results_json: A list of ``{image_id, category_id, bbox, score}``.
        max_det: Detections per image and class that count. COCO's own limit is 100.

    Raises:
        DataError: A file is missing or not of that form, or a result names an image that the ground truth lacks.
    """
    truth, results = _read_json(ground_truth_json, dict), _read_json(results_json, list)
    try:
        return evaluate_coco(_columns_from_json(truth, results), max_det=max_det).summary()
    except (KeyError, TypeError, IndexError, ValueError) as problem:
        raise DataError(
            f"cannot judge {results_json} against {ground_truth_json}: an entry is not in COCO form ({problem!r}); "
            "results need image_id, category_id, bbox [x, y, width, height] and score, "
            "ground truth needs images, categories and annotations"
        ) from problem


def _read_json(path: str | Path, kind: type) -> Any:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror}") from problem
    except ValueError as problem:
        raise DataError(f"{path} is not JSON: {problem}") from problem
    if not isinstance(content, kind):
        wanted = "an object with images, categories and annotations" if kind is dict else "a list of results"
        raise DataError(f"{path} holds a {type(content).__name__}, but {wanted} was expected")
    return content


def _columns_from_json(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Columns:
    image_numbers = {image: number for number, image in enumerate(sorted(entry["id"] for entry in truth["images"]))}
    class_numbers = {name: number for number, name in enumerate(sorted(entry["id"] for entry in truth["categories"]))}
    strangers = {entry["image_id"] for entry in results} - image_numbers.keys()
    if strangers:
        raise DataError(
            f"{len(strangers)} of the images that the results name are not in the ground truth, "
            f"for example {next(iter(strangers))!r}; both files must be about the same images"
        )
    annotations = [entry for entry in truth["annotations"] if entry["category_id"] in class_numbers]
    found = [entry for entry in results if entry["category_id"] in class_numbers]
    scores = np.array([entry["score"] for entry in found], np.float64)
    gt_image, gt_class, gt_boxes = _table(annotations, image_numbers, class_numbers)
    det_image, det_class, det_boxes = _table(found, image_numbers, class_numbers)
    gt_order, det_order = np.lexsort((gt_class, gt_image)), np.lexsort((-scores, det_class, det_image))
    areas = np.array([entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in annotations], np.float64)
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], bool)
    return Columns(
        class_count=len(class_numbers),
        gt_image_G=gt_image[gt_order],
        gt_class_G=gt_class[gt_order],
        gt_boxes_xyxy_px_G4=gt_boxes[gt_order],
        gt_area_px_G=areas[gt_order],
        gt_crowd_G=crowd[gt_order],
        det_image_D=det_image[det_order],
        det_class_D=det_class[det_order],
        det_boxes_xyxy_px_D4=det_boxes[det_order],
        det_scores_D=scores[det_order],
    )


def _table(
    entries: Sequence[Mapping[str, Any]], image_numbers: Mapping[Any, int], class_numbers: Mapping[Any, int]
) -> tuple[Array, Array, Array]:
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(len(entries), 4)
    boxes[:, 2:] += boxes[:, :2]
    images = np.array([image_numbers[entry["image_id"]] for entry in entries], np.int32)
    return images, np.array([class_numbers[entry["category_id"]] for entry in entries], np.int32), boxes
