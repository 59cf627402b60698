"""Whether a file computes what the network computes: both run the same real images.

Shape letters: B batch, A anchors, K classes, D found boxes, H W the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ullage.geometry.detections import Detections
from ullage.geometry.iou import iou_matrix
from ullage.geometry.letterbox import fit
from ullage.nn.outputs import decode_boxes, decode_scores
from ullage.runtime.file_info import FilePrecision
from ullage.runtime.file_predictor import FilePredictor
from ullage.runtime.outputs import SuppressedDetections, Suppression
from ullage.runtime.postprocess import detections_from_outputs
from ullage.runtime.predictor import TorchPredictor

SAME_BOX_IOU = 0.9
_COARSEST_CELL_PX = 32
_MATCHING = Suppression(conf=0.25, iou=0.7, max_det=300)


@dataclass(frozen=True)
class Tolerance:
    """How far a file may be from the network.

    Attributes:
        score: Largest difference of a class probability, over all anchors; None is not asked.
        box_px: Largest difference of a box's side in input pixels, over all anchors; None is not asked.
        agreement: Least part of the found boxes that both found, as ``Comparison.agreement``.
        map_loss: Largest loss of mAP50-95 on the data set, when one was given.
    """

    score: float | None
    box_px: float | None
    agreement: float
    map_loss: float


TOLERANCES: dict[FilePrecision, Tolerance] = {
    "fp32": Tolerance(score=1e-3, box_px=_COARSEST_CELL_PX * 1e-3, agreement=0.98, map_loss=0.001),
    "fp16": Tolerance(score=5e-2, box_px=None, agreement=0.9, map_loss=0.005),
    "int8": Tolerance(score=None, box_px=None, agreement=0.5, map_loss=0.015),
}


@dataclass(frozen=True)
class Comparison:
    """One batch through network and file.

    Attributes:
        size_hw: Size of the input.
        images: Number of images.
        score_diff: Largest difference of a class probability over all anchors; of a file that suppresses by itself,
            over the boxes that both found.
        box_diff_px: The same for the sides of boxes.
        found_network: Boxes that the network found, conf .25 or what is fixed in the file.
        found_file: Boxes that the file found.
        matched: Pairs of these of one class that overlap by more than .9.
    """

    size_hw: tuple[int, int]
    images: int
    score_diff: float
    box_diff_px: float
    found_network: int
    found_file: int
    matched: int

    @property
    def agreement(self) -> float:
        """Part of the boxes that both found; 1 when neither found any."""
        found = self.found_network + self.found_file
        return 2 * self.matched / found if found else 1.0


def letterboxed(images_HW3: Sequence[np.ndarray], size_hw: tuple[int, int]) -> torch.Tensor:
    """Fit uint8 RGB images into one batch (B, 3, H, W)."""
    fitted = [fit((image.shape[0], image.shape[1]), size_hw).apply(image) for image in images_HW3]
    return torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2)


def compare(network: TorchPredictor, file: FilePredictor, images_B3HW: torch.Tensor) -> Comparison:
    """Run uint8 images through both."""
    raw, outputs = network(images_B3HW), file(images_B3HW)
    limits = file.suppression or _MATCHING
    found, expected = (
        [
            one.to("cpu")
            for one in detections_from_outputs(some, conf=limits.conf, iou=limits.iou, max_det=limits.max_det)
        ]
        for some in (outputs, raw)
    )
    pairs = [_match(mine, theirs) for mine, theirs in zip(expected, found, strict=True)]
    if isinstance(outputs, SuppressedDetections):
        score_diff, box_diff = max(pair[1] for pair in pairs), max(pair[2] for pair in pairs)
    else:
        score_diff = _largest(outputs.scores_BAK - decode_scores(raw).cpu())
        box_diff = _largest(outputs.boxes_xyxy_px_BA4 - decode_boxes(raw).cpu())
    return Comparison(
        size_hw=(images_B3HW.shape[2], images_B3HW.shape[3]),
        images=len(images_B3HW),
        score_diff=score_diff,
        box_diff_px=box_diff,
        found_network=sum(len(one) for one in expected),
        found_file=sum(len(one) for one in found),
        matched=sum(pair[0] for pair in pairs),
    )


def failures(comparisons: Sequence[Comparison], precision: FilePrecision, *, map_loss: float | None) -> list[str]:
    """Say what is beyond the tolerance of a precision; nothing when the file is as it should be."""
    allowed, told = TOLERANCES[precision], []
    for one in comparisons:
        at = f"at {one.size_hw[0]}x{one.size_hw[1]}, batch {one.images}"
        if allowed.score is not None and not one.score_diff <= allowed.score:  # not <=: NaN is a failure, too
            told.append(f"scores differ by {one.score_diff:.2g} {at} (allowed {allowed.score:g})")
        if allowed.box_px is not None and not one.box_diff_px <= allowed.box_px:
            told.append(f"boxes differ by {one.box_diff_px:.2g} px {at} (allowed {allowed.box_px:g})")
    # Over all batches: of few boxes a single one would decide.
    found = sum(one.found_network + one.found_file for one in comparisons)
    agreement = 2 * sum(one.matched for one in comparisons) / found if found else 1.0
    if agreement < allowed.agreement:
        told.append(f"only {agreement:.1%} of the boxes are found by both (at least {allowed.agreement:.0%} must be)")
    if map_loss is not None and map_loss > allowed.map_loss:
        told.append(f"mAP50-95 falls by {map_loss:.4f} (allowed {allowed.map_loss:g})")
    return told


def _match(expected: Detections, found: Detections) -> tuple[int, float, float]:
    """Pair boxes one to one, best score first; return pairs, largest score difference, largest box difference."""
    if not len(expected) or not len(found):
        return 0, 0.0, 0.0
    iou_DD = iou_matrix(expected.boxes_xyxy_px_D4, found.boxes_xyxy_px_D4)
    iou_DD = torch.where(expected.class_ids_D[:, None] == found.class_ids_D, iou_DD, 0.0)
    pairs: list[tuple[int, int]] = []
    for row in range(len(expected)):
        column = int(iou_DD[row].argmax())
        if iou_DD[row, column] > SAME_BOX_IOU:
            pairs.append((row, column))
            iou_DD[:, column] = 0.0
    if not pairs:
        return 0, 0.0, 0.0
    rows, columns = torch.tensor(pairs).unbind(1)
    score_diff = _largest(expected.scores_D[rows] - found.scores_D[columns])
    return len(pairs), score_diff, _largest(expected.boxes_xyxy_px_D4[rows] - found.boxes_xyxy_px_D4[columns])


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max()) if difference.numel() else 0.0
