"""The detection loss: box overlap, classes, distance distributions, as sums over a batch.

Shape letters: B images, A anchors an image, K classes, R box bins, P positives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from ullage.config.loss import LossSettings
from ullage.errors import ConfigError, DataError
from ullage.geometry.iou import complete_iou
from ullage.geometry.targets import Targets
from ullage.losses.assigner import Assignment, assign
from ullage.losses.sums import LossSum
from ullage.nn.outputs import RawDetections, decode_boxes

CHUNK_LOGITS = 2**19  # logits handled at a time in float32: temporaries that stay in the processor's cache


@dataclass(frozen=True, kw_only=True)
class DetectionLoss:
    """CIoU, binary cross-entropy and distribution focal loss of task-aligned positives (arXiv:2108.07755, 2006.04388).

    With t the target score of a positive: box = Σ (1 - CIoU) t, dfl = Σ DFL t, cls = Σ BCE over anchors and classes.
    Everything is computed in float32, whatever the type of the outputs and whether autocast is on; gradients come back
    in the type of the outputs.

    Label smoothing spreads the part ``label_smoothing`` of a positive's target score evenly over all classes:
    t ((1 - eps) onehot + eps / K). Its sum stays t; anchors without a box keep target 0 for every class, for they bear
    no label that could be wrong.

    Attributes:
        num_classes: Classes of the network.
        box: Gain of the overlap loss.
        cls: Gain of the class loss.
        dfl: Gain of the distribution loss.
        label_smoothing: Part of the class target that is spread over all classes, in [0, 1).
    """

    num_classes: int
    box: float = 7.5
    cls: float = 0.5
    dfl: float = 1.5
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ConfigError(f"a detection loss needs at least 1 class, got num_classes={self.num_classes}")
        for name in ("box", "cls", "dfl"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"the gain {name} must be 0 or above, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names of the parts, in the order of ``LossSum.parts``."""
        return ("box", "cls", "dfl")

    @classmethod
    def from_settings(cls, settings: LossSettings, *, num_classes: int) -> DetectionLoss:
        """Build the loss that the configuration describes."""
        return cls(
            num_classes=num_classes,
            box=settings.box,
            cls=settings.cls,
            dfl=settings.dfl,
            label_smoothing=settings.label_smoothing,
        )

    def __call__(self, raw: RawDetections, targets: Targets) -> LossSum:
        """Compute the loss of a batch.

        Args:
            raw: Outputs of the detection head, on the device of the targets.
            targets: Ground truth in pixels of the network's input.

        Returns:
            Sums with gains, and the sum of target scores that divides them.

        Raises:
            DataError: Outputs, targets and ``num_classes`` do not fit together.
        """
        if raw.logits_BAK.shape[-1] != self.num_classes:
            raise DataError(
                f"the network predicts {raw.logits_BAK.shape[-1]} classes, the loss was built for {self.num_classes}"
            )
        return self.of_assignment(raw, targets, assign(raw, targets=targets))

    def of_assignment(self, raw: RawDetections, targets: Targets, found: Assignment) -> LossSum:
        """Compute the loss of a batch whose positives are known."""
        with torch.autocast(raw.logits_BAK.device.type, enabled=False):
            class_P = targets.class_ids_G[found.target_row_P]
            classes = _ClassSum.apply(
                raw.logits_BAK, found.image_P, found.anchor_P, class_P, found.score_P, self.label_smoothing
            )
            overlap, distribution = _box_sums(raw, targets, found)
            parts = torch.stack((self.box * overlap, self.cls * classes, self.dfl * distribution))
            return LossSum(parts.sum(), found.score_P.sum(), parts.detach(), len(found))


def _box_sums(raw: RawDetections, targets: Targets, found: Assignment) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the un-normalised overlap and distribution losses, without gains."""
    bins_PR = _TakeRows.apply(raw.bins_BAR, found.image_P, found.anchor_P).float()
    centres_P2, strides_P = raw.centres_A2[found.anchor_P], raw.strides_A[found.anchor_P]
    boxes_P4 = targets.boxes_xyxy_px_G4[found.target_row_P].float()
    decoded_P4 = decode_boxes(RawDetections(bins_PR[None], bins_PR[None], centres_P2, strides_P))[0]
    overlap = ((1 - complete_iou(decoded_P4, boxes_P4)) * found.score_P).sum()
    left_top_P2, right_bottom_P2 = (boxes_P4 / strides_P[:, None]).split(2, -1)
    distances_P4 = torch.cat((centres_P2 - left_top_P2, right_bottom_P2 - centres_P2), -1)
    distribution = (distribution_focal(bins_PR, distances_P4) * found.score_P).sum()
    return overlap, distribution


def distribution_focal(bins_PR: torch.Tensor, distances_P4: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the two bins around each distance, weighted by closeness (arXiv:2006.04388, section 3.2).

    Args:
        bins_PR: Logits, four sides times the bins of a side.
        distances_P4: Distances in cells; clamped to [0, bins - 1.01].

    Returns:
        The mean over the four sides, shape (P,).
    """
    log_probs = bins_PR.unflatten(-1, (4, -1)).log_softmax(-1)
    distances_P4 = distances_P4.clamp(0, log_probs.shape[-1] - 1.01)
    lower_P4 = distances_P4.long()
    upper_weight_P4 = distances_P4 - lower_P4
    neighbours = log_probs.gather(-1, torch.stack((lower_P4, lower_P4 + 1), -1))
    return -torch.lerp(neighbours[..., 0], neighbours[..., 1], upper_weight_P4).mean(-1)


class _TakeRows(torch.autograd.Function):
    """``values_BAR[image_P, anchor_P]`` for distinct rows: backward writes into zeros, it need not sort to add."""

    @staticmethod
    def forward(ctx: Any, values_BAR: torch.Tensor, image_P: torch.Tensor, anchor_P: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(image_P, anchor_P)
        ctx.shape = values_BAR.shape
        return values_BAR[image_P, anchor_P]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_PR: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        image_P, anchor_P = ctx.saved_tensors
        grad_BAR = grad_PR.new_zeros(ctx.shape)
        grad_BAR[image_P, anchor_P] = grad_PR
        return grad_BAR, None, None


class _ClassSum(torch.autograd.Function):
    """Binary cross-entropy summed over all anchors and classes, without a dense target.

    Σ BCE(x, t) = Σ softplus(x) - Σ t x, and t is 0 except in the rows of the positives. Forward keeps the logits, which
    are alive anyway, and the gradient of the positives' rows; backward makes one tensor, in the type of the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_BAK: torch.Tensor,
        image_P: torch.Tensor,
        anchor_P: torch.Tensor,
        class_P: torch.Tensor,
        score_P: torch.Tensor,
        smoothing: float,
    ) -> torch.Tensor:
        rows_PK = logits_BAK[image_P, anchor_P].float()
        targets_PK = (score_P * (smoothing / rows_PK.shape[1]))[:, None].expand_as(rows_PK).contiguous()
        targets_PK.scatter_add_(1, class_P[:, None], (score_P * (1 - smoothing))[:, None])
        total = -(rows_PK * targets_PK).sum()
        for part in _chunks_of(logits_BAK):
            total = total + F.softplus(part.float()).sum()
        ctx.save_for_backward(logits_BAK, image_P, anchor_P, rows_PK.sigmoid_().sub_(targets_PK))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits_BAK, image_P, anchor_P, rows_PK = ctx.saved_tensors
        grad_BAK = torch.empty_like(logits_BAK)
        for part, into in zip(_chunks_of(logits_BAK), _chunks_of(grad_BAK), strict=True):
            into.copy_(part.float().sigmoid().mul_(grad))
        grad_BAK[image_P, anchor_P] = (rows_PK * grad).to(grad_BAK.dtype)
        return grad_BAK, None, None, None, None, None


def _chunks_of(values_BAK: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cut along the images, about ``CHUNK_LOGITS`` values each."""
    return values_BAK.split(max(CHUNK_LOGITS // max(values_BAK[0].numel(), 1), 1))
