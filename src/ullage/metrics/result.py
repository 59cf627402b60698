"""What an evaluation says. Shape letters: K classes, C classes with ground truth (crowd regions do not count)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from ullage.metrics.coco import CocoSummary
from ullage.metrics.columns import Array
from ullage.metrics.curves import Curves

_COLUMNS = ("Class", "Images", "Instances", "P", "R", "mAP50", "mAP50-95")


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else 0.0


@dataclass(frozen=True, eq=False)
class BoxMetrics:
    """Figures about boxes. Means are over the classes that have ground truth, and 0 when there is none.

    Attributes:
        class_count: Number of classes K.
        ap_class_index: (C,) ids of the classes with ground truth; the arrays below go along with it.
        ap: (C,) AP, mean over IoU .50 to .95.
        ap50: (C,) AP at IoU .50.
        ap75: (C,) AP at IoU .75.
        p: (C,) precision at ``best_conf``, IoU .50.
        r: (C,) recall at ``best_conf``, IoU .50.
        f1: (C,) F1 at ``best_conf``, IoU .50.
        best_conf: The confidence that maximises the mean F1 over classes, on a smoothed curve.
    """

    class_count: int
    ap_class_index: Array
    ap: Array
    ap50: Array
    ap75: Array
    p: Array
    r: Array
    f1: Array
    best_conf: float

    @property
    def map(self) -> float:
        """Mean AP over IoU .50 to .95."""
        return _mean(self.ap)

    @property
    def map50(self) -> float:
        """Mean AP at IoU .50."""
        return _mean(self.ap50)

    @property
    def map75(self) -> float:
        """Mean AP at IoU .75."""
        return _mean(self.ap75)

    @property
    def mp(self) -> float:
        """Mean precision."""
        return _mean(self.p)

    @property
    def mr(self) -> float:
        """Mean recall."""
        return _mean(self.r)

    @property
    def maps(self) -> Array:
        """(K,) AP of every class; a class without ground truth gets the mean, as scripts that weigh classes expect."""
        values = np.full(self.class_count, self.map)
        values[self.ap_class_index] = self.ap
        return values

    def mean_results(self) -> list[float]:
        """Return ``[mp, mr, map50, map]``."""
        return [self.mp, self.mr, self.map50, self.map]

    def class_result(self, index: int) -> tuple[float, float, float, float]:
        """Return precision, recall, AP50 and AP of entry ``index`` of ``ap_class_index``."""
        return float(self.p[index]), float(self.r[index]), float(self.ap50[index]), float(self.ap[index])


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """What was taken for what; ``np.asarray`` gives the counts.

    Attributes:
        matrix: (K + 1, K + 1) int64; row: predicted class, column: true class. Last row: boxes that nothing found
            (missed). Last column: detections where nothing is (false alarms).
        class_names: Names of the K classes.
        conf: Least score of the detections that were counted.
        iou: Least overlap of a match.
    """

    matrix: Array
    class_names: tuple[str, ...]
    conf: float
    iou: float

    @property
    def names(self) -> tuple[str, ...]:
        """Names of rows and columns."""
        return (*self.class_names, "background")

    def normalised(self) -> Array:
        """Share of each true class: every column sums to 1, or to 0 where there was nothing to find."""
        totals = self.matrix.sum(0, keepdims=True)
        return np.divide(self.matrix, totals, out=np.zeros(self.matrix.shape), where=totals > 0)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        # a fresh array unless the caller insists on none: the counts stay as they were
        return self.matrix.astype(dtype or self.matrix.dtype, copy=copy is not False)


@dataclass(frozen=True, eq=False, repr=False)
class Metrics:
    """The result of judging a detector on a data set.

    Attributes:
        box: AP, precision, recall and F1.
        coco: COCO's twelve figures.
        curves: Precision, recall and F1 over confidence, precision over recall, per class at IoU .50.
        confusion_matrix: What was taken for what.
        names: Class names by id.
        speed: Milliseconds an image by stage, as far as known.
        image_count: Images judged, those without boxes included.
        images_per_class: (K,) images that show the class.
        instances_per_class: (K,) boxes to find, without crowd regions.
    """

    box: BoxMetrics
    coco: CocoSummary
    curves: Curves
    confusion_matrix: ConfusionMatrix
    names: dict[int, str]
    speed: dict[str, float]
    image_count: int
    images_per_class: Array
    instances_per_class: Array

    def __repr__(self) -> str:
        figures = ", ".join(f"{key.removeprefix('metrics/')}={value:.4g}" for key, value in self.results_dict.items())
        return f"Metrics({figures}; {self.image_count} images)"

    @property
    def fitness(self) -> float:
        """The figure that picks the best epoch: 0.1 mAP50 + 0.9 mAP50-95."""
        return 0.1 * self.box.map50 + 0.9 * self.box.map

    @property
    def maps(self) -> Array:
        """Same as ``box.maps``."""
        return self.box.maps

    @property
    def results_dict(self) -> dict[str, float]:
        """The headline figures under the names that loggers know."""
        return {
            "metrics/precision(B)": self.box.mp,
            "metrics/recall(B)": self.box.mr,
            "metrics/mAP50(B)": self.box.map50,
            "metrics/mAP50-95(B)": self.box.map,
            "fitness": self.fitness,
        }

    def _rows(self) -> list[tuple[str, int, int, float, float, float, float]]:
        total = int(self.instances_per_class.sum())
        rows = [("all", self.image_count, total, self.box.mp, self.box.mr, self.box.map50, self.box.map)]
        if len(self.names) == 1:
            return rows
        for place, class_id in enumerate(self.box.ap_class_index.tolist()):
            images, instances = int(self.images_per_class[class_id]), int(self.instances_per_class[class_id])
            rows.append((self.names[class_id], images, instances, *self.box.class_result(place)))
        return rows

    def summary_table(self) -> Table:
        """Return the table of classes for a terminal; classes without ground truth have no line."""
        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in _COLUMNS:
            table.add_column(title, justify="left" if title == "Class" else "right", no_wrap=title != "Class")
        for place, (name, images, instances, *figures) in enumerate(self._rows()):
            cells = (name.replace("[", r"\["), f"{images:,}", f"{instances:,}", *(f"{value:.3f}" for value in figures))
            table.add_row(*cells, style="bold" if place == 0 else None)
        return table

    def __str__(self) -> str:
        """Return the table of classes as plain text."""
        rows = self._rows()
        width = max(len(row[0]) for row in (_COLUMNS, *rows))
        lines = [f"{_COLUMNS[0]:<{width}}" + "".join(f"{title:>11}" for title in _COLUMNS[1:])]
        for name, images, instances, *figures in rows:
            lines.append(f"{name:<{width}}{images:>11,}{instances:>11,}" + "".join(f"{v:>11.3f}" for v in figures))
        return "\n".join(lines)

    def to_json(self, *, curves: bool = False, indent: int | None = 2) -> str:
        """Return everything as JSON; what has no value (nan) becomes null.

        Args:
            curves: Include the points of the curves: 4 x 1000 numbers a class.
            indent: Spaces a level; None for one line.
        """
        content: dict[str, Any] = {
            "results": self.results_dict,
            "box": {"map75": self.box.map75, "f1": _mean(self.box.f1), "best_conf": self.box.best_conf},
            "coco": self.coco.as_dict(),
            "images": self.image_count,
            "instances": int(self.instances_per_class.sum()),
            "classes": [self._class_entry(*entry) for entry in enumerate(self.box.ap_class_index.tolist())],
            "names": list(self.names.values()),
            "confusion_matrix": {
                "matrix": self.confusion_matrix.matrix.tolist(),
                "conf": self.confusion_matrix.conf,
                "iou": self.confusion_matrix.iou,
            },
            "speed": self.speed,
        }
        if curves:
            content["curves"] = [
                {
                    "name": curve.name,
                    "x_label": curve.x_label,
                    "y_label": curve.y_label,
                    "x": curve.x_X.round(6).tolist(),
                    "y": curve.y_CX.round(6).tolist(),
                    "class_ids": curve.class_ids_C.tolist(),
                }
                for curve in self.curves
            ]
        return json.dumps(_without_nan(content), indent=indent, allow_nan=False)

    def _class_entry(self, place: int, class_id: int) -> dict[str, Any]:
        box = self.box
        return {
            "id": class_id,
            "name": self.names[class_id],
            "images": int(self.images_per_class[class_id]),
            "instances": int(self.instances_per_class[class_id]),
            "precision": float(box.p[place]),
            "recall": float(box.r[place]),
            "f1": float(box.f1[place]),
            "ap50": float(box.ap50[place]),
            "ap75": float(box.ap75[place]),
            "ap": float(box.ap[place]),
        }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
