"""How much memory the loss can need, known before any label is seen.

The number of candidates and positives depends on the data, so a trace with fake tensors cannot count them; their upper
limits do not. The stand-in runs the very code of assignment and loss, on as many candidates and positives as there may
be: nothing has to be kept in step with it but the few tensors that the assignment holds between its parts.

Shape letters: B images, G boxes, A anchors an image, N = B * A, U anchors in any box, Q pairs of a chunk, P positives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ullage.geometry.targets import Targets
from ullage.losses.assigner import MAX_PAIRS, NARROWEST, PADDING, TOP, Assignment, Quality, crowding_of
from ullage.losses.detection import DetectionLoss
from ullage.nn.outputs import RawDetections

LEVELS = 3  # feature maps of our networks


@dataclass(frozen=True)
class Crowding:
    """What the memory of assignment and loss depends on, besides the size of the outputs.

    Attributes:
        boxes: Boxes in all images together.
        covered: Anchors that lie in any box.
        pairs: Pairs of a box and an anchor in it that are held at a time.
        positives: Anchors that are assigned a box, at most.
    """

    boxes: int
    covered: int
    pairs: int
    positives: int

    @classmethod
    def worst(cls, *, boxes: int, images: int, anchors: int) -> Crowding:
        """Return the worst case of so many boxes, wherever they lie and whatever the network predicts.

        Args:
            boxes: Boxes in all images together.
            images: Images of the batch.
            anchors: Anchors an image.
        """
        everywhere = images * anchors
        pairs = min(max(MAX_PAIRS, anchors), boxes * anchors)
        return cls(boxes, min(everywhere, boxes * anchors), pairs, min(TOP * boxes, everywhere))

    @classmethod
    def of(cls, targets: Targets, raw: RawDetections) -> Crowding:
        """Return the case of boxes that are known, whatever the network predicts.

        Args:
            targets: The boxes.
            raw: Outputs for images of that size; only their anchors matter.
        """
        return cls(len(targets), *crowding_of(raw, targets))


class WorstCaseLoss:
    """Stands in for ``DetectionLoss`` where a step is traced without data: it takes the memory of the worst batch.

    Args:
        boxes: Boxes in all images of the batch together, at most.
        crowding: What is known of them besides; None assumes the worst.
    """

    def __init__(self, *, boxes: int, crowding: Crowding | None = None) -> None:
        self.boxes, self.crowding = boxes, crowding

    def __call__(self, raw: RawDetections) -> torch.Tensor:
        """Return a scalar of no meaning that depends on the raw outputs; backward makes their gradients."""
        images, anchors, classes = raw.logits_BAK.shape
        crowding = self.crowding or Crowding.worst(boxes=self.boxes, images=images, anchors=anchors)
        targets = Targets(
            _indices(raw, crowding.boxes), _indices(raw, crowding.boxes),
            raw.centres_A2.new_zeros((crowding.boxes, 4)), images,
        )  # fmt: skip
        found = _assign(raw, targets, crowding)
        return DetectionLoss(num_classes=classes).of_assignment(raw, targets, found).total


@torch.no_grad()
def _assign(raw: RawDetections, targets: Targets, crowding: Crowding) -> Assignment:
    """Take the memory of ``assign``, part by part."""
    positives = crowding.positives
    if len(targets):
        with torch.autocast(raw.logits_BAK.device.type, enabled=False):
            # The boxes' cells on every level, their order and number of candidates, and their claims.
            _of_boxes = _indices(raw, (4 * LEVELS + 2 + TOP) * len(targets))
            quality = Quality(raw, targets, _indices(raw, crowding.covered))
            best_N = _indices(raw, quality.boxes_4N.shape[1])
            _consider(raw, quality, crowding)
            _settle(raw, best_N, min(TOP * len(targets), crowding.pairs))
            del best_N
            quality(_indices(raw, positives), _indices(raw, positives))
    key_P = _indices(raw, positives)
    return Assignment(key_P // raw.logits_BAK.shape[1], key_P % raw.logits_BAK.shape[1], _indices(raw, positives),
                      raw.centres_A2.new_zeros(positives))  # fmt: skip


def _consider(raw: RawDetections, quality: Quality, crowding: Crowding) -> None:
    """Take what a chunk of pairs needs: box, anchor, row and key of each, their quality, the claims of the boxes."""
    pairs = crowding.pairs
    _box_Q, _anchor_Q, row_Q, key_Q = (_indices(raw, pairs) for _ in range(4))
    _quality = quality(key_Q, row_Q)
    claiming = min(crowding.boxes, pairs)
    _rank_column_cell_Q = [_indices(raw, pairs) for _ in range(4)]
    _ranks = _indices(raw, max(PADDING * pairs, NARROWEST * claiming))
    _best = _indices(raw, TOP * claiming), _indices(raw, TOP * claiming)


def _settle(raw: RawDetections, best_N: torch.Tensor, claims: int) -> None:
    """Take what is needed to give every claimed anchor to one box."""
    _claims_N, _claimant_N = torch.zeros_like(best_N), torch.zeros_like(best_N)
    _box_slot_row_key_one = [_indices(raw, claims) for _ in range(6)]


def _indices(raw: RawDetections, count: int) -> torch.Tensor:
    return raw.logits_BAK.new_zeros(count, dtype=torch.int64)
