"""Judging that takes fewer images at a time when memory runs out, wherever in judging that is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ullage.api.evaluate import Evaluation, evaluate
from ullage.api.models import load_model
from ullage.api.patient import Patience
from ullage.config import EvalSettings
from ullage.data.loader import EvalLoader
from ullage.data.source import open_dataset
from ullage.errors import MemoryBudgetError
from ullage.losses.detection import DetectionLoss
from ullage.runtime import postprocess
from ullage.runtime.predictor import TorchPredictor

DATA = open_dataset("demo", split="val", fraction=0.12)
NETWORK = load_model("yolo11n", seed=0).with_classes(DATA.names)[0].network


class Scarce:
    """Runs out of memory with more than so many images; everything else goes through."""

    def __init__(self, images: int, what: Any) -> None:
        self.images, self.what = images, what
        self.seen: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.what, name)

    def __call__(self, first: Any, *rest: Any) -> Any:
        count = first.logits_BAK.shape[0] if hasattr(first, "logits_BAK") else first.shape[0]
        self.seen.append(count)
        if count > self.images:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return self.what(first, *rest)


def judged(predictor: Any, loss: Any, patience: Patience | None = None) -> Evaluation:
    batches = EvalLoader(DATA, imgsz=96, batch=4, workers=0)
    try:
        return evaluate(
            predictor, batches=batches, dataset=DATA, settings=EvalSettings(conf=1e-5), loss=loss, patience=patience
        )
    finally:
        batches.close()


@pytest.fixture(scope="module")
def predictor() -> TorchPredictor:
    return TorchPredictor(NETWORK, names=DATA.names)


@pytest.fixture(scope="module")
def loss() -> DetectionLoss:
    return DetectionLoss(num_classes=len(DATA.names))


@pytest.mark.parametrize("place", ["network", "loss"])
@pytest.mark.parametrize("images", [1, 3])
def test_fewer_images_judge_the_same(place: str, images: int, predictor: TorchPredictor, loss: DetectionLoss) -> None:
    assert len(DATA) % 4, "the last batch is a short one"
    whole = judged(predictor, loss)
    told: list[Any] = []
    patience = Patience(tell=told.append)
    scarce = Scarce(images, predictor if place == "network" else loss)
    found = judged(*((scarce, loss) if place == "network" else (predictor, scarce)), patience)
    left = 1 if images == 1 else 2
    assert patience.limit == left
    assert [event.plan for event in told] == [f"validation takes {n} images at a time" for n in (2, 1)][: 3 - left]
    assert scarce.seen[: 4 - left] == [4, 2, 1][: 4 - left]
    assert found.losses == pytest.approx(whole.losses, rel=1e-5)
    assert found.metrics.results_dict == pytest.approx(whole.metrics.results_dict, rel=1e-5)
    assert whole.metrics.box.map50 > 0 or whole.losses["cls"] > 0


def test_suppression_is_under_the_same_care(
    predictor: TorchPredictor, loss: DetectionLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = judged(predictor, loss), []
    real = postprocess.detections_from_outputs

    def scarce(raw: Any, **settings: Any) -> Any:
        calls.append(raw.logits_BAK.shape[0])
        if raw.logits_BAK.shape[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(raw, **settings)

    monkeypatch.setattr("ullage.api.evaluate.detections_from_outputs", scarce)
    found = judged(predictor, loss)
    assert calls[:3] == [4, 2, 2]
    assert found.metrics.results_dict == pytest.approx(whole.metrics.results_dict, rel=1e-5)


def test_one_image_that_does_not_fit_is_one_clear_error(predictor: TorchPredictor, loss: DetectionLoss) -> None:
    with pytest.raises(
        MemoryBudgetError, match=r"one image at a time: .*can't allocate.*; use a smaller imgsz"
    ) as caught:
        judged(Scarce(0, predictor), loss)
    assert "\n" not in str(caught.value)


def test_on_oom_raise_stops_at_once(predictor: TorchPredictor, loss: DetectionLoss) -> None:
    scarce = Scarce(2, predictor)
    with pytest.raises(MemoryBudgetError, match=r"4 images at a time: .*on_oom=replan takes fewer"):
        judged(scarce, loss, Patience(on_oom="raise"))
    assert scarce.seen == [4]


def test_other_errors_pass_through(predictor: TorchPredictor) -> None:
    class Broken:
        names, stride = predictor.names, predictor.stride

        def __call__(self, images_BCHW: torch.Tensor) -> Any:
            raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        judged(Broken(), None)
