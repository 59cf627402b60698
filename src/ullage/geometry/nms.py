"""From scored boxes to detections: confidence, class filter, non-maximum suppression, limit."""

from __future__ import annotations

import torch

from ullage.geometry.detections import Detections

MAX_CANDIDATES = 100_000
_BLOCK, _LARGEST_BLOCK = 2_000, 16_000


def select_detections(
    boxes_xyxy_px_BA4: torch.Tensor,
    scores_BAK: torch.Tensor,
    *,
    conf: float,
    iou: float,
    max_det: int,
    classes: torch.Tensor | None = None,
    class_agnostic: bool = False,
    one_class_per_box: bool = True,
) -> list[Detections]:
    """Keep the best boxes of every image.

    Args:
        boxes_xyxy_px_BA4: Decoded boxes, B images, A anchors.
        scores_BAK: Class probabilities in [0, 1].
        conf: Boxes whose score is not above this are dropped.
        iou: Of two boxes of one class that overlap more than this, the better stays.
        max_det: At most this many boxes an image.
        classes: int64 ids to keep; None keeps all.
        class_agnostic: Suppress across classes too.
        one_class_per_box: True keeps the best class of a box; False lets a box count once for every class above
            ``conf``, as COCO evaluation gains from.

    Returns:
        One ``Detections`` an image, best score first, in the frame of the given boxes, on their device.
    """
    found: list[Detections] = []
    for boxes_A4, scores_AK in zip(boxes_xyxy_px_BA4.float(), scores_BAK.float(), strict=True):
        if one_class_per_box:
            scores_N, ids_N = scores_AK.max(-1)
            keep_N = (scores_N > conf).nonzero()[:, 0]
            boxes_N4, scores_N, ids_N = boxes_A4[keep_N], scores_N[keep_N], ids_N[keep_N]
        else:
            anchor_N, ids_N = (scores_AK > conf).nonzero(as_tuple=True)
            boxes_N4, scores_N = boxes_A4[anchor_N], scores_AK[anchor_N, ids_N]
        if classes is not None:
            keep_N = torch.isin(ids_N, classes.to(ids_N.device)).nonzero()[:, 0]
            boxes_N4, scores_N, ids_N = boxes_N4[keep_N], scores_N[keep_N], ids_N[keep_N]
        if scores_N.shape[0] > MAX_CANDIDATES:
            scores_N, top_N = scores_N.topk(MAX_CANDIDATES)
            boxes_N4, ids_N = boxes_N4[top_N], ids_N[top_N]
        groups_N = torch.zeros_like(ids_N) if class_agnostic else ids_N
        kept = _suppress(boxes_N4, scores_N, groups_N, iou=iou, max_det=max_det)
        found.append(Detections(boxes_N4[kept], scores_N[kept], ids_N[kept]))
    return found


def _suppress(
    boxes_N4: torch.Tensor, scores_N: torch.Tensor, groups_N: torch.Tensor, *, iou: float, max_det: int
) -> torch.Tensor:
    """Return the rows of the ``max_det`` best boxes that greedy suppression keeps, best first.

    What is kept does not depend on worse boxes, so the candidates are taken in blocks, best first, until enough are
    kept. Each block meets what was kept before: the time grows with N, where that of a single pass grows with its
    square. Blocks grow up to a limit, since each costs a loop over the classes.
    """
    # As late as this: it takes as long to import as torch itself. It ships no type stubs.
    from torchvision.ops import batched_nms  # pyright: ignore[reportMissingTypeStubs]

    order_N = scores_N.argsort(descending=True, stable=True)
    kept, start, size = order_N[:0], 0, max(_BLOCK, 2 * max_det)
    while start < len(order_N) and len(kept) < max_det:
        rows = torch.cat((kept, order_N[start : start + size]))
        kept = rows[batched_nms(boxes_N4[rows], scores_N[rows], groups_N[rows], iou)[:max_det]]
        start, size = start + size, max(size, min(2 * size, _LARGEST_BLOCK))
    return kept
