"""Judge detections as they come, image by image. Shape letters: G ground truth, D detections of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ullage.errors import ConfigError, DataError
from ullage.geometry.boxes import area_xyxy
from ullage.geometry.detections import Detections
from ullage.geometry.labels import Labels
from ullage.metrics.coco import evaluate_coco
from ullage.metrics.columns import Array, Columns, best_per_group
from ullage.metrics.curves import compute_curves
from ullage.metrics.matching import count_confusions
from ullage.metrics.result import BoxMetrics, ConfusionMatrix, Metrics

_FRAME_SLACK_PX = 2.0


@dataclass(frozen=True, eq=False)
class _Image:
    gt_class_G: Array
    gt_boxes_G4: Array
    gt_area_G: Array
    gt_crowd_G: Array
    det_class_D: Array
    det_boxes_D4: Array
    det_scores_D: Array


class DetectionEvaluator:
    """Collects ground truth and detections, 24 bytes a detection, and computes ``Metrics`` from them.

    AP follows COCO's protocol (101 recall levels, IoU .50 to .95, crowd regions neither for nor against), except that
    up to ``max_det`` detections per image and class count, where COCO's own tables stop at 100; ``max_det=100`` gives
    COCO's figures. The order of images does not matter, nor that of detections except between equal scores of a class,
    where the first comes first as in COCO. Memory beyond the columns follows the class with most detections, since the
    classes are evaluated one by one.
    """

    def __init__(
        self, *, names: Sequence[str], max_det: int = 300, matrix_conf: float = 0.25, matrix_iou: float = 0.45
    ) -> None:
        """Prepare for a set of classes.

        Args:
            names: Class names; class ids index them.
            max_det: Detections per image and class that count, best score first.
            matrix_conf: Least score in the confusion matrix.
            matrix_iou: Least overlap of a match in the confusion matrix.

        Raises:
            ConfigError: There is no class, or a limit is out of range.
        """
        if not names or isinstance(names, str):
            raise ConfigError(f"names must be a list of at least one class name, got {names!r}")
        if max_det < 1:
            raise ConfigError(f"max_det must be at least 1, got {max_det}")
        if not (0 <= matrix_conf <= 1 and 0 < matrix_iou <= 1):
            raise ConfigError(
                f"matrix_conf must lie in [0, 1] and matrix_iou in (0, 1], got {matrix_conf} and {matrix_iou}"
            )
        self._names = tuple(str(name) for name in names)
        self._max_det = max_det
        self._matrix_conf, self._matrix_iou = matrix_conf, matrix_iou
        self._images: dict[int | str, _Image] = {}

    def __len__(self) -> int:
        return len(self._images)

    def images(self) -> dict[int | str, object]:
        """Return what was added so far, to be taken over by another evaluator, perhaps in another process."""
        return dict(self._images)

    def take(self, images: Mapping[int | str, object]) -> None:
        """Add the images of another evaluator of the same classes and limits.

        Raises:
            DataError: One of them was already judged here.
        """
        for key, image in images.items():
            if key in self._images:
                raise DataError(f"image {key!r} was already judged; every image counts once")
            assert isinstance(image, _Image)
            self._images[key] = image

    def reset(self) -> None:
        """Forget all images, ready for the next epoch."""
        self._images.clear()

    def add(
        self,
        image: int | str,
        labels: Labels,
        detections: Detections,
        size_hw: tuple[int, int],
        *,
        areas_px_G: Array | None = None,
    ) -> None:
        """Take one image.

        Args:
            image: Index or identifier, different for every image.
            labels: What it shows, in pixels of the original image.
            detections: What was found, in the same pixels; on any device, in any order.
            size_hw: Size of the original image, to catch labels in another frame.
            areas_px_G: Areas that decide between small, medium and large, such as COCO's segment areas; None takes the
                areas of the boxes.

        Raises:
            DataError: The image came before, a class id is out of range, a value is not finite, labels lie outside the
                image, or the areas are not one per label.
        """
        if image in self._images:
            raise DataError(f"image {image!r} was already judged; every image counts once")
        gt_boxes_G4 = np.asarray(labels.boxes_xyxy_px_G4, np.float32)
        gt_class_G = np.asarray(labels.class_ids_G, np.int32)
        gt_crowd_G = np.asarray(labels.crowd_G, bool)
        gt_area_G = area_xyxy(gt_boxes_G4) if areas_px_G is None else np.asarray(areas_px_G)
        if gt_area_G.shape != gt_class_G.shape:
            raise DataError(f"image {image!r}: {len(gt_class_G)} labels, but areas of shape {gt_area_G.shape}")
        det_boxes_D4 = detections.boxes_xyxy_px_D4.detach().cpu().float().numpy()
        det_scores_D = detections.scores_D.detach().cpu().float().numpy()
        det_class_D = detections.class_ids_D.cpu().numpy().astype(np.int32)
        self._check_values(image, "labels", gt_class_G, gt_boxes_G4)
        self._check_values(image, "detections", det_class_D, det_boxes_D4, det_scores_D)
        self._check_frame(image, gt_boxes_G4, size_hw)
        # stable sorts: what ties keeps its order, as in COCO
        order = np.argsort(gt_class_G, kind="stable")
        rows = np.lexsort((-det_scores_D, det_class_D))
        rows = rows[best_per_group(det_class_D[rows], self._max_det)]
        self._images[image] = _Image(
            gt_class_G[order],
            gt_boxes_G4[order],
            gt_area_G[order].astype(np.float64),
            gt_crowd_G[order],
            det_class_D[rows],
            det_boxes_D4[rows],
            det_scores_D[rows],
        )

    def _check_values(self, image: int | str, what: str, class_ids: Array, *values: Array) -> None:
        if len(class_ids) and not 0 <= class_ids.min() <= class_ids.max() < len(self._names):
            raise DataError(
                f"image {image!r}: {what} have class ids from {class_ids.min()} to {class_ids.max()}, but there are "
                f"{len(self._names)} classes, 0 to {len(self._names) - 1}; do names and model belong together?"
            )
        if not all(np.isfinite(value).all() for value in values):
            raise DataError(f"image {image!r}: {what} hold values that are not finite numbers")

    @staticmethod
    def _check_frame(image: int | str, boxes_G4: Array, size_hw: tuple[int, int]) -> None:
        height, width = size_hw
        if height < 1 or width < 1:
            raise DataError(f"image {image!r}: its size must be at least 1 x 1 pixels, got {height} x {width}")
        if not len(boxes_G4):
            return
        low, high = boxes_G4.min(), boxes_G4.max(0)
        if low < -_FRAME_SLACK_PX or (high > np.array([width, height, width, height]) + _FRAME_SLACK_PX).any():
            raise DataError(
                f"image {image!r}: labels reach from {low:g} to x={high[2]:g}, y={high[3]:g}, outside its "
                f"{width} x {height} pixels; give labels in pixels of the original image"
            )

    def compute(self, *, speed: Mapping[str, float] | None = None) -> Metrics:
        """Judge all images so far; more may be added afterwards.

        Args:
            speed: Milliseconds an image by stage (preprocess, inference, postprocess), handed through.
        """
        columns = self.columns()
        tables, curves = evaluate_coco(columns, max_det=self._max_det), compute_curves(columns)
        best = curves.best_point()
        box = BoxMetrics(
            class_count=len(self._names),
            ap_class_index=tables.class_ids_C,
            ap=tables.ap_C,
            ap50=tables.ap50_C,
            ap75=tables.ap75_C,
            p=curves.precision.y_CX[:, best],
            r=curves.recall.y_CX[:, best],
            f1=curves.f1.y_CX[:, best],
            best_conf=float(curves.f1.x_X[best]),
        )
        matrix = count_confusions(columns, conf=self._matrix_conf, iou=self._matrix_iou)
        return Metrics(
            box=box,
            coco=tables.summary(),
            curves=curves,
            confusion_matrix=ConfusionMatrix(matrix, self._names, conf=self._matrix_conf, iou=self._matrix_iou),
            names=dict(enumerate(self._names)),
            speed=dict(speed or {}),
            image_count=len(self._images),
            images_per_class=columns.images_with(),
            instances_per_class=columns.instances(),
        )

    def columns(self) -> Columns:
        """Return all rows so far, ordered by image id, class and score."""
        keys = sorted(self._images, key=lambda key: (isinstance(key, str), key))
        images = [self._images[key] for key in keys]
        numbers = np.arange(len(images), dtype=np.int32)

        def column(name: str, empty: Array) -> Array:
            return np.concatenate([empty, *(getattr(image, name) for image in images)])

        ids, reals, corners = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32)
        return Columns(
            class_count=len(self._names),
            gt_image_G=np.repeat(numbers, [len(image.gt_class_G) for image in images]),
            gt_class_G=column("gt_class_G", ids),
            gt_boxes_xyxy_px_G4=column("gt_boxes_G4", corners),
            gt_area_px_G=column("gt_area_G", reals.astype(np.float64)),
            gt_crowd_G=column("gt_crowd_G", np.zeros(0, bool)),
            det_image_D=np.repeat(numbers, [len(image.det_class_D) for image in images]),
            det_class_D=column("det_class_D", ids),
            det_boxes_xyxy_px_D4=column("det_boxes_D4", corners),
            det_scores_D=column("det_scores_D", reals),
        )
