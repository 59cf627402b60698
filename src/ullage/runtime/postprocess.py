"""From a network's raw outputs to detections, decoding only what can survive.

Shape letters: B batch, A anchors, N candidates, K classes.
"""

from __future__ import annotations

import math

import torch

from ullage.geometry.detections import Detections
from ullage.geometry.nms import select_detections
from ullage.nn.outputs import RawDetections, decode_boxes, decode_scores

_ROUNDING = 1e-6  # in probability; the exact comparison follows on the candidates


def detections_from_raw(
    raw: RawDetections,
    *,
    conf: float,
    iou: float,
    max_det: int,
    classes: torch.Tensor | None = None,
    class_agnostic: bool = False,
    one_class_per_box: bool = True,
) -> list[Detections]:
    """Decode, filter and suppress: the same as ``select_detections`` on all decoded anchors, in a fraction of the time.

    Of 8,400 anchors few score above ``conf``. Since the sigmoid is monotone, the class logits tell which, before
    any box is decoded.

    Args:
        raw: What the network returned for B images.
        conf: Boxes whose score is not above this are dropped.
        iou: Of two boxes of one class that overlap more than this, the better stays.
        max_det: At most this many boxes an image.
        classes: int64 ids to keep; None keeps all.
        class_agnostic: Suppress across classes too.
        one_class_per_box: True keeps the best class of a box, False every class above ``conf``.

    Returns:
        One ``Detections`` an image, best score first, in pixels of the network's input, on its device.
    """
    candidate_BA = raw.logits_BAK.amax(-1).float() > _logit(conf - _ROUNDING)
    found: list[Detections] = []
    for bins_AR, logits_AK, candidate_A in zip(raw.bins_BAR, raw.logits_BAK, candidate_BA, strict=True):
        rows_N = candidate_A.nonzero()[:, 0]
        candidates = RawDetections(
            bins_AR[rows_N][None], logits_AK[rows_N][None], raw.centres_A2[rows_N], raw.strides_A[rows_N]
        )
        found += select_detections(
            decode_boxes(candidates),
            decode_scores(candidates),
            conf=conf,
            iou=iou,
            max_det=max_det,
            classes=classes,
            class_agnostic=class_agnostic,
            one_class_per_box=one_class_per_box,
        )
    return found


def _logit(probability: float) -> float:
    if probability <= 0:
        return -math.inf
    return math.log(probability / (1 - probability)) if probability < 1 else math.inf
