"""From the outputs of a network or of an exported file to detections, decoding only what can survive.

Shape letters: B batch, A anchors, N candidates, K classes, D rows of a file that suppresses by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ullage.geometry.detections import Detections
from ullage.geometry.nms import select_detections
from ullage.nn.outputs import RawDetections, decode_boxes, decode_scores
from ullage.runtime.outputs import DecodedDetections, SuppressedDetections

Outputs = RawDetections | DecodedDetections | SuppressedDetections

_ROUNDING = 1e-6  # in probability; the exact comparison follows on the candidates


def detections_from_outputs(
    outputs: Outputs,
    *,
    conf: float,
    iou: float,
    max_det: int,
    classes: torch.Tensor | None = None,
    class_agnostic: bool = False,
    one_class_per_box: bool = True,
) -> list[Detections]:
    """Filter and suppress whatever a predictor returned: ``select_detections`` on what can survive, nothing else.

    Args:
        outputs: Of B images. What a file has suppressed by itself is only filtered further.
        conf: Boxes whose score is not above this are dropped.
        iou: Of two boxes of one class that overlap more than this, the better stays.
        max_det: At most this many boxes an image.
        classes: int64 ids to keep; None keeps all.
        class_agnostic: Suppress across classes too.
        one_class_per_box: True keeps the best class of a box, False every class above ``conf``.

    Returns:
        One ``Detections`` an image, best score first, in pixels of the network's input, on the device of the outputs.
    """
    if isinstance(outputs, SuppressedDetections):
        return [_kept(rows_D6, conf=conf, max_det=max_det, classes=classes) for rows_D6 in outputs.rows_BD6]
    found: list[Detections] = []
    for boxes_N4, scores_NK in _candidates(outputs, conf):
        found += select_detections(
            boxes_N4[None],
            scores_NK[None],
            conf=conf,
            iou=iou,
            max_det=max_det,
            classes=classes,
            class_agnostic=class_agnostic,
            one_class_per_box=one_class_per_box,
        )
    return found


def _candidates(outputs: RawDetections | DecodedDetections, conf: float) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the decoded boxes and scores of each image that may score above ``conf``.

    Of 8,400 anchors few do. Since the sigmoid is monotone, the class logits tell which, before any box is decoded.
    """
    if isinstance(outputs, DecodedDetections):
        candidate_BA = outputs.scores_BAK.amax(-1) > conf
        for boxes_A4, scores_AK, candidate_A in zip(*outputs, candidate_BA, strict=True):
            yield boxes_A4[candidate_A], scores_AK[candidate_A]
        return
    candidate_BA = outputs.logits_BAK.amax(-1).float() > _logit(conf - _ROUNDING)
    for bins_AR, logits_AK, candidate_A in zip(outputs.bins_BAR, outputs.logits_BAK, candidate_BA, strict=True):
        rows_N = candidate_A.nonzero()[:, 0]
        few = RawDetections(
            bins_AR[rows_N][None], logits_AK[rows_N][None], outputs.centres_A2[rows_N], outputs.strides_A[rows_N]
        )
        yield decode_boxes(few)[0], decode_scores(few)[0]


def _kept(rows_D6: torch.Tensor, *, conf: float, max_det: int, classes: torch.Tensor | None) -> Detections:
    boxes_D4, scores_D, ids_D = rows_D6[:, :4], rows_D6[:, 4], rows_D6[:, 5].long()
    keep_D = (scores_D > conf) & (scores_D > 0)
    if classes is not None:
        keep_D &= torch.isin(ids_D, classes.to(ids_D.device))
    rows_N = keep_D.nonzero()[:max_det, 0]
    return Detections(boxes_D4[rows_N], scores_D[rows_N], ids_D[rows_N])


def _logit(probability: float) -> float:
    if probability <= 0:
        return -math.inf
    return math.log(probability / (1 - probability)) if probability < 1 else math.inf
