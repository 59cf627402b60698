"""The loss and its gradient against fixed numbers: three images with 7, 40 and 0 boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ullage.geometry.boxes import cxcywh_to_xyxy, scale_boxes
from ullage.geometry.targets import Targets
from ullage.losses.detection import DetectionLoss
from ullage.losses.sums import LossSum
from ullage.nn.outputs import RawDetections, anchor_grid

FIXTURE = Path(__file__).parent / "loss.npz"
BINS = 64
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def numbers() -> dict[str, torch.Tensor]:
    with np.load(FIXTURE) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def _loss(numbers: dict[str, torch.Tensor], raw: torch.Tensor) -> LossSum:
    height, width = numbers["image_size"].tolist()
    sizes_hw = [(height // stride, width // stride) for stride in (8, 16, 32)]
    centres_A2, strides_A = anchor_grid(sizes_hw, (8, 16, 32), raw.device)
    boxes = scale_boxes(cxcywh_to_xyxy(numbers["boxes_cxcywh_normalised"]), (height, width))
    targets = Targets(numbers["batch_index"], numbers["cls"], boxes, raw.shape[0])
    by_anchor = raw.transpose(1, 2)
    detections = RawDetections(by_anchor[..., :BINS], by_anchor[..., BINS:], centres_A2, strides_A)
    return DetectionLoss(num_classes=by_anchor.shape[-1] - BINS)(detections, targets)


def test_loss_items(numbers: dict[str, torch.Tensor]) -> None:
    loss = _loss(numbers, numbers["raw"])
    torch.testing.assert_close(loss.mean_parts(), numbers["loss_items"], rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(loss.mean(), numbers["loss_items"].sum(), rtol=TOLERANCE, atol=0)


def test_gradient(numbers: dict[str, torch.Tensor]) -> None:
    raw = numbers["raw"].clone().requires_grad_()
    (found,) = torch.autograd.grad(_loss(numbers, raw).mean(), raw)
    expected = numbers["grad_raw"]
    for channels in (slice(0, BINS), slice(BINS, None)):
        largest = float(expected[:, channels].abs().max())
        torch.testing.assert_close(found[:, channels], expected[:, channels], rtol=TOLERANCE, atol=TOLERANCE * largest)
