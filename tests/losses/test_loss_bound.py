"""The stated worst case covers what the loss really holds, and is not far from what the worst batch needs."""

from __future__ import annotations

import pytest
import torch
from loss_inputs import Allocations, gradients, random_raw

from ullage.geometry.targets import Targets
from ullage.losses.bound import LossBytes, worst_case_bytes
from ullage.losses.detection import DetectionLoss


def _boxes(kind: str, count: int, size: int) -> torch.Tensor:
    if kind == "whole image":
        return torch.tensor([[0.0, 0.0, size, size]]).repeat(count, 1)
    generator = torch.Generator().manual_seed(0)
    centres, sizes = (torch.rand(count, 2, generator=generator) * size for _ in range(2))
    sizes = sizes * 0.15 + 9 if kind == "scattered" else torch.full_like(sizes, 9.0)
    return torch.cat((centres - sizes / 2, centres + sizes / 2), 1)


def _measure(
    kind: str, *, boxes: int, batch: int, size: int, classes: int, dtype: torch.dtype = torch.float32
) -> tuple[LossBytes, LossBytes]:
    generator = torch.Generator().manual_seed(1)
    raw = random_raw(generator, batch=batch, size_hw=(size, size), classes=classes, dtype=dtype)
    image_index = (torch.arange(boxes) % batch).sort().values
    targets = Targets(image_index, torch.zeros_like(image_index), _boxes(kind, boxes, size), batch)
    with Allocations(*raw) as forward:
        loss = DetectionLoss(num_classes=classes, label_smoothing=0.1)(raw, targets)
    kept = forward.alive_bytes
    with Allocations(*raw) as backward:
        gradients(loss.total, raw)
    bound = worst_case_bytes(
        batch=batch, boxes=boxes, anchors=raw.strides_A.shape[0], classes=classes, element_bytes=dtype.itemsize
    )
    return LossBytes(forward.peak_bytes, kept, kept + backward.peak_bytes), bound


@pytest.mark.parametrize("kind", ["whole image", "scattered", "small"])
@pytest.mark.parametrize("boxes", [0, 1, 20, 600])
@pytest.mark.parametrize(("classes", "dtype"), [(1, torch.float32), (80, torch.bfloat16), (600, torch.float32)])
def test_never_below_what_is_used(kind: str, boxes: int, classes: int, dtype: torch.dtype) -> None:
    used, bound = _measure(kind, boxes=boxes, batch=3, size=192, classes=classes, dtype=dtype)
    assert used.forward_peak_bytes <= bound.forward_peak_bytes
    assert used.kept_bytes <= bound.kept_bytes
    assert used.backward_peak_bytes <= bound.backward_peak_bytes


def test_assignment_comes_near_it_when_every_box_covers_the_image() -> None:
    used, bound = _measure("whole image", boxes=500, batch=2, size=320, classes=80)
    assert bound.forward_peak_bytes < 1.5 * used.forward_peak_bytes


def test_backward_comes_near_it_when_most_anchors_are_positive() -> None:
    used, bound = _measure("scattered", boxes=3000, batch=2, size=320, classes=600)
    assert bound.kept_bytes < 1.5 * used.kept_bytes
    assert bound.backward_peak_bytes < 2 * used.backward_peak_bytes
