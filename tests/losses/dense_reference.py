"""The loss in its plain dense formulation, to read and to compare with: a matrix of boxes times anchors per image.

Shape letters: B images, G boxes of one image, A anchors, K classes, P positives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ullage.geometry.iou import complete_iou
from ullage.geometry.targets import Targets
from ullage.nn.outputs import RawDetections, decode_boxes, decode_scores


class DenseLoss(NamedTuple):
    total: torch.Tensor
    normaliser: torch.Tensor
    parts: torch.Tensor
    positives: int


def assign_image(
    boxes_A4: torch.Tensor,
    scores_AK: torch.Tensor,
    centres_px_A2: torch.Tensor,
    gt_G4: torch.Tensor,
    ids_G: torch.Tensor,
    top: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return anchors, boxes (of this image) and target scores of the positives."""
    to_left_top_GA2 = centres_px_A2[None] - gt_G4[:, None, :2]
    to_right_bottom_GA2 = gt_G4[:, None, 2:] - centres_px_A2[None]
    inside_GA = torch.cat((to_left_top_GA2, to_right_bottom_GA2), -1).amin(-1) > 1e-9
    ciou_GA = complete_iou(boxes_A4[None], gt_G4[:, None]).clamp(min=0)
    metric_GA = scores_AK[:, ids_G].T.sqrt() * ciou_GA**6 * inside_GA

    # A stable sort: among equal metrics the lower anchor comes first.
    first_GT = metric_GA.sort(dim=1, descending=True, stable=True).indices[:, :top]
    claimed_GA = torch.zeros_like(inside_GA).scatter(1, first_GT, True) & (metric_GA > 0)

    owned_GA = claimed_GA.clone()
    for anchor in (claimed_GA.sum(0) > 1).nonzero()[:, 0].tolist():
        ciou_G = torch.where(inside_GA[:, anchor], ciou_GA[:, anchor], -1.0)
        owned_GA[:, anchor] = False
        owned_GA[(ciou_G == ciou_G.max()).nonzero()[0, 0], anchor] = True  # equal boxes: the first

    best_metric_G1 = (metric_GA * owned_GA).amax(1, keepdim=True)
    best_ciou_G1 = (ciou_GA * owned_GA).amax(1, keepdim=True)
    score_GA = metric_GA / (best_metric_G1 + 1e-9) * best_ciou_G1
    anchor_P, box_P = owned_GA.T.nonzero(as_tuple=True)
    return anchor_P, box_P, score_GA[box_P, anchor_P]


@torch.no_grad()
def dense_assign(
    raw: RawDetections, targets: Targets, *, top: int = 10
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return image, anchor, row of the targets and target score of every positive."""
    boxes_BA4, scores_BAK = decode_boxes(raw), decode_scores(raw)
    found = []
    for image in range(targets.batch_size):
        rows_G = (targets.image_index_G == image).nonzero()[:, 0]
        if len(rows_G) == 0:
            continue
        anchor_P, box_P, score_P = assign_image(
            boxes_BA4[image],
            scores_BAK[image],
            raw.centres_A2 * raw.strides_A[:, None],
            targets.boxes_xyxy_px_G4[rows_G],
            targets.class_ids_G[rows_G],
            top,
        )
        found.append((torch.full_like(anchor_P, image), anchor_P, rows_G[box_P], score_P))
    if not found:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none, none, torch.zeros(0)
    image_P, anchor_P, row_P, score_P = (torch.cat(column) for column in zip(*found, strict=True))
    return image_P, anchor_P, row_P, score_P


def dense_loss(
    raw: RawDetections,
    targets: Targets,
    *,
    box: float = 7.5,
    cls: float = 0.5,
    dfl: float = 1.5,
    label_smoothing: float = 0.0,
) -> DenseLoss:
    """Compute the loss of a batch with dense class targets and autograd alone."""
    image_P, anchor_P, row_P, score_P = dense_assign(raw, targets)
    boxes_P4 = targets.boxes_xyxy_px_G4[row_P]
    overlap = ((1 - complete_iou(decode_boxes(raw)[image_P, anchor_P], boxes_P4)) * score_P).sum()

    goal_BAK = torch.zeros_like(raw.logits_BAK, dtype=torch.float32)
    classes = goal_BAK.shape[-1]
    goal_BAK[image_P, anchor_P] = (score_P * label_smoothing / classes)[:, None].repeat(1, classes)
    goal_BAK[image_P, anchor_P, targets.class_ids_G[row_P]] += score_P * (1 - label_smoothing)
    classification = F.binary_cross_entropy_with_logits(raw.logits_BAK.float(), goal_BAK, reduction="sum")

    cells_P4 = boxes_P4 / raw.strides_A[anchor_P][:, None]
    centres_P2 = raw.centres_A2[anchor_P]
    distances_P4 = torch.cat((centres_P2 - cells_P4[:, :2], cells_P4[:, 2:] - centres_P2), 1)
    bins_P4N = raw.bins_BAR.float()[image_P, anchor_P].unflatten(-1, (4, -1))
    distances_P4 = distances_P4.clamp(0, bins_P4N.shape[-1] - 1 - 0.01)
    lower_P4 = distances_P4.floor()
    goal_P4N = torch.zeros_like(bins_P4N)
    goal_P4N.scatter_(-1, lower_P4.long()[..., None], (lower_P4 + 1 - distances_P4)[..., None])
    goal_P4N.scatter_(-1, lower_P4.long()[..., None] + 1, (distances_P4 - lower_P4)[..., None])
    focal_P = -(goal_P4N * bins_P4N.log_softmax(-1)).sum(-1).mean(-1)
    distribution = (focal_P * score_P).sum()

    parts = torch.stack((box * overlap, cls * classification, dfl * distribution))
    return DenseLoss(parts.sum(), score_P.sum(), parts.detach(), len(score_P))
