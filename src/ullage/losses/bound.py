"""How much memory the loss can need, known before any label is seen.

The number of positives and candidates depends on the data, so a trace with fake tensors cannot count them; their upper
limits do not. The factors below count the tensors that are alive together, per anchor, box, candidate pair and
positive, rounded up; a test holds them to measurements, from both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ullage.losses.assigner import DECODE_ROWS, MAX_PAIRS, TOP
from ullage.losses.detection import CHUNK_LOGITS
from ullage.nn.outputs import RawDetections


@dataclass(frozen=True)
class LossBytes:
    """Live tensor storage, raw outputs and targets not included, nor scratch memory inside operators.

    Attributes:
        forward_peak_bytes: Most that is alive during assignment and loss.
        kept_bytes: What waits for backward.
        backward_peak_bytes: Most that is alive during backward, ``kept_bytes`` and the raw outputs' gradient included.
    """

    forward_peak_bytes: int
    kept_bytes: int
    backward_peak_bytes: int


def worst_case_bytes(
    *, batch: int, boxes: int, anchors: int, classes: int, bins: int = 64, element_bytes: int = 4
) -> LossBytes:
    """Bound the memory of ``DetectionLoss`` for one batch, wherever its boxes lie and whatever the network predicts.

    Args:
        batch: Images.
        boxes: Boxes in all images together.
        anchors: Anchors an image.
        classes: Classes of the network.
        bins: Box logits an anchor.
        element_bytes: Bytes of one raw output: 4, or 2 in half precision.

    Returns:
        Upper limits; typical batches need less, because not every box claims ten anchors of its own.
    """
    everywhere = batch * anchors
    positives = min(TOP * boxes, everywhere)
    pairs = min(max(MAX_PAIRS, anchors), boxes * anchors)
    decoded = min(DECODE_ROWS, everywhere) if boxes else 0
    part = 4 * min(max(CHUNK_LOGITS, anchors * classes), everywhere * classes)
    assigning = 72 * everywhere + (512 + 96 * TOP) * boxes + 160 * pairs + 4 * (3 * bins + 32) * decoded
    kept = positives * 4 * (3 * bins + classes + 80) + 4096
    losing = kept + positives * 4 * (max(2 * bins, 2 * classes) + 64) + 2 * part
    gradients = everywhere * (bins + classes) * element_bytes
    backward = kept + gradients + positives * 4 * max(4 * bins, 2 * classes) + 2 * part
    return LossBytes(max(assigning, losing), kept, backward)


class WorstCaseLoss:
    """Stands in for ``DetectionLoss`` where a step is traced without data: it takes the memory of the worst batch.

    Args:
        boxes: Boxes in all images of the batch together, at most.
    """

    def __init__(self, *, boxes: int) -> None:
        self.boxes = boxes

    def __call__(self, raw: RawDetections) -> torch.Tensor:
        """Return a scalar of no meaning that depends on the raw outputs; backward makes their gradients."""
        total: torch.Tensor = _Take.apply(raw.bins_BAR, raw.logits_BAK, self.boxes)
        return total


class _Take(torch.autograd.Function):
    """Allocates and frees what the loss would."""

    @staticmethod
    def forward(ctx: Any, bins_BAR: torch.Tensor, logits_BAK: torch.Tensor, boxes: int) -> torch.Tensor:
        batch, anchors, classes = logits_BAK.shape
        limits = worst_case_bytes(
            batch=batch, boxes=boxes, anchors=anchors, classes=classes, bins=bins_BAR.shape[2],
            element_bytes=logits_BAK.element_size(),
        )  # fmt: skip
        ctx.bins_shape, ctx.bins_dtype = bins_BAR.shape, bins_BAR.dtype
        gradients = (bins_BAR.numel() + logits_BAK.numel()) * logits_BAK.element_size()
        ctx.scratch = max(limits.backward_peak_bytes - limits.kept_bytes - gradients, 0)
        _bytes(logits_BAK, limits.forward_peak_bytes)
        ctx.save_for_backward(logits_BAK, _bytes(logits_BAK, limits.kept_bytes))
        return logits_BAK.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        logits_BAK, kept = ctx.saved_tensors
        gradients = logits_BAK.new_empty(ctx.bins_shape, dtype=ctx.bins_dtype), torch.empty_like(logits_BAK)
        _bytes(kept, ctx.scratch)
        return *gradients, None


def _bytes(like: torch.Tensor, count: int) -> torch.Tensor:
    return like.new_empty(count, dtype=torch.uint8)
