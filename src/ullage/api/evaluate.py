"""A network against a data set: the one loop that training and ``val`` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from ullage.api.patient import Patience
from ullage.config import EvalSettings
from ullage.data.batch import Batch
from ullage.data.index import DetectionSet
from ullage.errors import DataError
from ullage.geometry.detections import Detections
from ullage.losses.detection import DetectionLoss
from ullage.losses.sums import LossSum
from ullage.metrics.evaluator import DetectionEvaluator
from ullage.metrics.predictions import PredictionsWriter
from ullage.metrics.result import Metrics
from ullage.nn.outputs import RawDetections
from ullage.runtime.postprocess import detections_from_outputs
from ullage.runtime.predictor import Predictor
from ullage.train.ranks import Ranks

OnBatch = Callable[[int, Batch, list[Detections]], None]


@dataclass
class _Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


@dataclass(frozen=True)
class Evaluation:
    """Metrics, and the mean losses when a loss was given."""

    metrics: Metrics
    losses: dict[str, float]


@dataclass
class Judgement:
    """Images that were judged, perhaps a process's share of them.

    Attributes:
        evaluator: What was found in them.
        part_names: Of the loss that was summed up; empty without one.
        sums: The loss.
        speed: Milliseconds an image by stage.
    """

    evaluator: DetectionEvaluator
    part_names: tuple[str, ...]
    sums: LossSum | None
    speed: dict[str, float]

    def gathered(self, ranks: Ranks) -> Judgement | None:
        """Return the judgement of all processes' images in the main process, None in the others."""
        if ranks.size == 1:
            return self
        self.sums = self.sums.to("cpu") if self.sums is not None else None
        parts = ranks.gather((self.evaluator.images(), self.sums))
        if parts is None:
            return None
        for images, sums in parts[1:]:
            self.evaluator.take(images)
            self.sums = sums if self.sums is None else self.sums if sums is None else self.sums + sums
        return self

    def evaluation(self) -> Evaluation:
        """Compute the metrics and the mean losses."""
        means = self.sums.mean_parts().tolist() if self.sums is not None else ()
        return Evaluation(self.evaluator.compute(speed=self.speed), dict(zip(self.part_names, means, strict=False)))


def evaluate(
    predictor: Predictor,
    *,
    batches: Iterable[Batch],
    dataset: DetectionSet,
    settings: EvalSettings,
    loss: DetectionLoss | None = None,
    predictions_file: Path | None = None,
    on_batch: OnBatch | None = None,
    patience: Patience | None = None,
) -> Evaluation:
    """Run every image, judge what was found. Arguments and errors are those of ``judge_all``."""
    return judge_all(
        predictor, batches=batches, dataset=dataset, settings=settings, loss=loss, predictions_file=predictions_file,
        on_batch=on_batch, patience=patience,
    ).evaluation()  # fmt: skip


def judge_all(
    predictor: Predictor,
    *,
    batches: Iterable[Batch],
    dataset: DetectionSet,
    settings: EvalSettings,
    loss: DetectionLoss | None = None,
    predictions_file: Path | None = None,
    on_batch: OnBatch | None = None,
    patience: Patience | None = None,
) -> Judgement:
    """Run every image, and gather what metrics and losses are made of.

    Args:
        predictor: A network or an exported file.
        batches: The images, each once, with their letterboxes.
        dataset: Their ground truth.
        settings: Thresholds.
        loss: Also sum up this loss.
        predictions_file: Also write COCO results there.
        patience: Takes fewer images at a time when memory runs out; what it learned outlasts the call.
        on_batch: Called with the number of the batch, the batch, and what was found in pixels of the network's input.

    Raises:
        DataError: The network knows other classes than the data set.
    """
    check_classes(len(predictor.names), dataset)
    patience = patience if patience is not None else Patience()
    evaluator = DetectionEvaluator(names=dataset.names, max_det=settings.max_det)
    clock, sums = _Clock(), None
    with ExitStack() as stack:
        writer = None
        if predictions_file is not None:
            writer = stack.enter_context(PredictionsWriter(predictions_file, category_ids=dataset.category_ids))
        for number, batch in enumerate(batches):
            clock.mark("preprocess")
            parts = patience(partial(judge, predictor, batch, loss, settings, clock.mark), len(batch.indices))
            found = [one for part in parts for one in part.found]
            for part in parts:
                if part.loss is not None:
                    sums = part.loss if sums is None else sums + part.loss
            for index, letterbox, one in zip(batch.indices, batch.letterboxes, found, strict=True):
                original = Detections(letterbox.backward(one.boxes_xyxy_px_D4), one.scores_D, one.class_ids_D)
                evaluator.add(index, dataset.labels(index), original, dataset.size_hw(index),
                              areas_px_G=dataset.areas_px2(index))  # fmt: skip
                if writer is not None:
                    writer.add(dataset.image_ids[index], original)
            clock.mark("postprocess")
            if on_batch is not None:
                on_batch(number, batch, found)
                clock.mark("pictures")
    images = max(len(evaluator), 1)
    speed = {
        stage: clock.seconds.get(stage, 0.0) * 1000 / images for stage in ("preprocess", "inference", "postprocess")
    }
    return Judgement(evaluator, loss.part_names if loss is not None else (), sums, speed)


@dataclass(frozen=True)
class Judged:
    """Some images of a batch: what was found in them, on the host, and the sums of the loss."""

    found: list[Detections]
    loss: LossSum | None


def judge(
    predictor: Predictor,
    batch: Batch,
    loss: DetectionLoss | None,
    settings: EvalSettings,
    mark: Callable[[str], None],
    start: int,
    stop: int,
) -> Judged:
    """Run images ``start`` to ``stop`` of a batch through network, loss and suppression.

    Args:
        predictor: As in ``evaluate``.
        batch: As in ``evaluate``.
        loss: As in ``evaluate``.
        settings: As in ``evaluate``.
        mark: Called with the name of each stage when it is done.
        start: First image.
        stop: The one after the last image.
    """
    outputs = predictor(batch.images_BCHW[start:stop])
    mark("inference")
    sums = None
    if loss is not None:
        assert isinstance(outputs, RawDetections)  # training judges networks, not files
        whole = stop - start == batch.targets.batch_size
        targets = batch.targets if whole else batch.targets.images(start, stop)
        with torch.inference_mode():
            sums = loss(outputs, targets.to(outputs.logits_BAK.device))
        mark("loss")
    found = detections_from_outputs(
        outputs, conf=settings.conf, iou=settings.iou, max_det=settings.max_det, one_class_per_box=False
    )
    found = [one.to("cpu") for one in found]
    mark("postprocess")
    return Judged(found, sums)


def check_classes(count: int, dataset: DetectionSet) -> None:
    """Refuse a model that tells another number of classes apart than the data set has."""
    if count != len(dataset.names):
        raise DataError(
            f"the model tells {count} classes apart, the data set has {len(dataset.names)} "
            f"({', '.join(dataset.names[:5])}{' ...' if len(dataset.names) > 5 else ''}); train on it first"
        )
