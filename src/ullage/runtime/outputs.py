"""What files of other runtimes return: boxes that are decoded already, with or without suppression.

Shape letters: B batch, A anchors (all levels, P3 first, row-major), K classes, D boxes that are kept of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class DecodedDetections(NamedTuple):
    """Every anchor's box and class probabilities.

    Attributes:
        boxes_xyxy_px_BA4: float32, corners in pixels of the network's input.
        scores_BAK: float32 in [0, 1].
    """

    boxes_xyxy_px_BA4: torch.Tensor
    scores_BAK: torch.Tensor


class SuppressedDetections(NamedTuple):
    """What is left after suppression inside the file.

    Attributes:
        rows_BD6: float32; x1, y1, x2, y2 in pixels of the network's input, score, class id; best score first, and rows
            of zeros after the last box.
    """

    rows_BD6: torch.Tensor


@dataclass(frozen=True)
class Suppression:
    """Thresholds that are fixed in a file which suppresses by itself.

    Attributes:
        conf: Boxes whose score is not above this are dropped.
        iou: Of two boxes of one class that overlap more than this, the better stays.
        max_det: At most this many boxes an image.
    """

    conf: float
    iou: float
    max_det: int
