"""What the stand-in of the loss takes covers what the loss really holds, and is near it when the boxes are known."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from loss_inputs import Allocations, gradients, random_raw
from torch._subclasses.fake_tensor import FakeTensorMode

from ullage.geometry.targets import Targets
from ullage.losses.bound import Crowding, WorstCaseLoss
from ullage.losses.detection import DetectionLoss
from ullage.nn.outputs import RawDetections


@dataclass(frozen=True)
class Taken:
    """Bytes at the worst instant of forward, kept for backward, at the worst instant of backward."""

    forward: int
    kept: int
    backward: int


def _taken(raw: RawDetections, loss: DetectionLoss | WorstCaseLoss, *targets: Targets) -> Taken:
    with Allocations(*raw) as forward:
        out = loss(raw, *targets)
    total = out if isinstance(out, torch.Tensor) else out.total
    kept = forward.alive_bytes
    with Allocations(*raw) as backward:
        gradients(total, raw)
    return Taken(forward.peak_bytes, kept, kept + backward.peak_bytes)


def _stand_in(raw: RawDetections, *, boxes: int, crowding: Crowding | None = None) -> Taken:
    with FakeTensorMode():
        fake = RawDetections(*(torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in raw))
        for tensor in fake[:2]:
            tensor.requires_grad_()
        return _taken(fake, WorstCaseLoss(boxes=boxes, crowding=crowding))


def _boxes(kind: str, count: int, size: int) -> torch.Tensor:
    if kind == "whole image":
        return torch.tensor([[0.0, 0.0, size, size]]).repeat(count, 1)
    generator = torch.Generator().manual_seed(0)
    centres, sizes = (torch.rand(count, 2, generator=generator) * size for _ in range(2))
    sizes = sizes * 0.15 + 9 if kind == "scattered" else torch.full_like(sizes, 9.0)
    return torch.cat((centres - sizes / 2, centres + sizes / 2), 1)


def _case(
    kind: str, *, boxes: int, batch: int, size: int, classes: int, dtype: torch.dtype = torch.float32
) -> tuple[RawDetections, Targets, Taken]:
    generator = torch.Generator().manual_seed(1)
    raw = random_raw(generator, batch=batch, size_hw=(size, size), classes=classes, dtype=dtype)
    image_index = (torch.arange(boxes) % batch).sort().values
    targets = Targets(image_index, torch.zeros_like(image_index), _boxes(kind, boxes, size), batch)
    return raw, targets, _taken(raw, DetectionLoss(num_classes=classes, label_smoothing=0.1), targets)


@pytest.mark.parametrize("kind", ["whole image", "scattered", "small"])
@pytest.mark.parametrize("boxes", [0, 1, 20, 600])
@pytest.mark.parametrize(("classes", "dtype"), [(1, torch.float32), (80, torch.bfloat16), (600, torch.float32)])
def test_never_below_what_is_used(kind: str, boxes: int, classes: int, dtype: torch.dtype) -> None:
    raw, targets, used = _case(kind, boxes=boxes, batch=3, size=192, classes=classes, dtype=dtype)
    unknown = _stand_in(raw, boxes=boxes)
    known = _stand_in(raw, boxes=boxes, crowding=Crowding.of(targets, raw))
    for part in ("forward", "kept", "backward"):
        slack = 4096  # counters
        assert getattr(used, part) <= getattr(known, part) + slack
        assert getattr(known, part) <= getattr(unknown, part)


@pytest.mark.parametrize("boxes", [40, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_what_is_used_when_the_boxes_are_known(boxes: int, dtype: torch.dtype) -> None:
    raw, targets, used = _case("scattered", boxes=boxes, batch=4, size=320, classes=80, dtype=dtype)
    known = _stand_in(raw, boxes=boxes, crowding=Crowding.of(targets, raw))
    assert known.forward < 1.5 * used.forward
    assert known.kept < 1.6 * used.kept  # several boxes claim the same anchors
    assert known.backward < 1.15 * used.backward


def test_assignment_comes_near_the_worst_case_when_every_box_covers_the_image() -> None:
    raw, _, used = _case("whole image", boxes=500, batch=2, size=320, classes=80)
    assert _stand_in(raw, boxes=500).forward < 1.2 * used.forward


def test_backward_comes_near_the_worst_case_when_most_anchors_are_positive() -> None:
    raw, _, used = _case("scattered", boxes=3000, batch=2, size=320, classes=600)
    worst = _stand_in(raw, boxes=3000)
    assert worst.kept < 1.2 * used.kept
    assert worst.backward < 1.2 * used.backward


@pytest.mark.parametrize("boxes", [0, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_stand_in_takes_the_same_of_fake_tensors_and_of_real_ones(boxes: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    raw = random_raw(generator, batch=3, size_hw=(96, 160), classes=12, dtype=dtype)
    assert _taken(raw, WorstCaseLoss(boxes=boxes)) == _stand_in(raw, boxes=boxes)
