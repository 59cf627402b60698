"""Decoding only candidates gives what decoding everything gives."""

from __future__ import annotations

import pytest
import torch

from ullage.geometry.nms import select_detections
from ullage.nn.outputs import RawDetections, anchor_grid, decode_boxes, decode_scores
from ullage.runtime.postprocess import detections_from_outputs


def raw_outputs(*, shift: float, dtype: torch.dtype = torch.float32, classes: int = 7) -> RawDetections:
    generator = torch.Generator().manual_seed(3)
    centres, strides = anchor_grid([(20, 24), (10, 12), (5, 6)], (8, 16, 32), torch.device("cpu"))
    anchors = len(strides)
    bins = torch.randn(3, anchors, 64, generator=generator) * 2
    logits = torch.randn(3, anchors, classes, generator=generator) * 2 + shift
    logits[2] -= 50  # an image where nothing is found
    return RawDetections(bins.to(dtype), logits.to(dtype), centres, strides)


@pytest.mark.parametrize("conf", [0.0, 0.001, 0.25, 0.6, 0.999])
@pytest.mark.parametrize("one_class_per_box", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_plain_path(conf: float, one_class_per_box: bool, dtype: torch.dtype) -> None:
    raw = raw_outputs(shift=0.0 if conf > 0.5 else -4.0, dtype=dtype)
    for classes in (None, torch.tensor([1, 4])):
        for agnostic in (False, True):
            options = {
                "conf": conf, "iou": 0.5, "max_det": 60, "classes": classes, "class_agnostic": agnostic,
                "one_class_per_box": one_class_per_box,
            }  # fmt: skip
            quick = detections_from_outputs(raw, **options)
            plain = select_detections(decode_boxes(raw), decode_scores(raw), **options)
            assert [len(one) for one in quick] == [len(one) for one in plain]
            assert conf > 0.99 or len(plain[0]) > 0
            assert len(plain[2]) == 0 or conf == 0.0
            for a, b in zip(quick, plain, strict=True):
                assert torch.equal(a.class_ids_D, b.class_ids_D)
                torch.testing.assert_close(a.scores_D, b.scores_D, rtol=0, atol=0)
                torch.testing.assert_close(a.boxes_xyxy_px_D4, b.boxes_xyxy_px_D4, rtol=1e-5, atol=1e-3)


def test_scores_at_the_threshold() -> None:
    """A score equal to ``conf`` is dropped, the next float above is kept, as in the plain path."""
    centres, strides = anchor_grid([(2, 2)], (8,), torch.device("cpu"))
    logits = torch.tensor([-1.0, -0.5, 0.3, 2.0]).view(1, 4, 1)
    raw = RawDetections(torch.zeros(1, 4, 64), logits, centres, strides)
    for anchor in range(4):
        conf = float(logits[0, anchor, 0].sigmoid())
        (found,) = detections_from_outputs(raw, conf=conf, iou=1.0, max_det=10)
        assert len(found) == 3 - anchor
        (found,) = detections_from_outputs(
            raw, conf=float(torch.nextafter(torch.tensor(conf), torch.tensor(0.0))), iou=1.0, max_det=10
        )
        assert len(found) == 4 - anchor


def test_not_a_number_is_never_a_detection() -> None:
    raw = raw_outputs(shift=-4.0)
    raw.logits_BAK[0] = torch.nan
    assert len(detections_from_outputs(raw, conf=0.25, iou=0.7, max_det=300)[0]) == 0


def test_no_box_is_decoded_without_a_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    from ullage.runtime import postprocess

    decoded: list[int] = []
    monkeypatch.setattr(
        postprocess, "decode_boxes", lambda raw: decoded.append(raw.bins_BAR.shape[1]) or decode_boxes(raw)
    )
    raw = raw_outputs(shift=-4.0)
    detections_from_outputs(raw, conf=0.5, iou=0.7, max_det=300)
    assert sum(decoded) < raw.bins_BAR.shape[1] / 2
    assert decoded[2] == 0
