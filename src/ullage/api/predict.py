"""``predict``: find objects in images and videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ullage.api.exported import ExportedModel, open_model
from ullage.api.folders import make_run_folder
from ullage.api.models import LoadedModel, named_model
from ullage.config import PredictConfig
from ullage.errors import ConfigError
from ullage.runtime.predictor import Predictor, TorchPredictor, precision_for
from ullage.runtime.predictor import predict as run_predictor
from ullage.runtime.results import Results
from ullage.runtime.sinks import ResultSink
from ullage.runtime.sources import Source, open_source
from ullage.train.precision import choose_device


class Prediction:
    """An iterator over results that knows where pictures are saved and whether the source is a stream of frames.

    Attributes:
        save_dir: Folder of the saved pictures; None when nothing is saved.
        is_stream: Whether the source is a video.
    """

    def __init__(self, results: Iterator[Results], *, save_dir: Path | None, is_stream: bool) -> None:
        self._results, self.save_dir, self.is_stream = results, save_dir, is_stream

    def __iter__(self) -> Iterator[Results]:
        return self._results

    def __next__(self) -> Results:
        return next(self._results)


def predict(
    config: PredictConfig,
    *,
    source: Any = None,
    model: LoadedModel | ExportedModel | None = None,
    predictor: Predictor | None = None,
) -> Prediction:
    """Find objects in every frame of a source, in order and with bounded memory.

    Args:
        config: Model, thresholds, outputs.
        source: Overrides ``config.predict.source``: also arrays, tensors, PIL images and lists of those.
        model: An already loaded model; None loads ``config.model.model``.
        predictor: An already prepared predictor, for repeated calls; None makes one.

    Raises:
        ConfigError: No source was named, or a setting is out of range.
        DataError: The source is missing or cannot be read.
    """
    source = config.predict.source if source is None else source
    if source is None:
        raise ConfigError("predict needs source=: an image, video, folder, glob or URL")
    if predictor is None:
        predictor = make_predictor(
            config, open_model(named_model(config.model, verb="predict")) if model is None else model
        )
    opened: Source = open_source(source)
    settings = config.predict
    results = run_predictor(
        predictor,
        source=opened,
        imgsz=settings.imgsz,
        conf=settings.conf,
        iou=settings.iou,
        max_det=settings.max_det,
        classes=settings.classes,
        class_agnostic=settings.agnostic_nms,
        batch=settings.batch,
    )
    if not (settings.save or settings.save_txt):
        return Prediction(results, save_dir=None, is_stream=opened.has_video)
    folder = make_run_folder(config.folder, verb="predict")
    sink = ResultSink(folder, pictures=settings.save, text=settings.save_txt)
    return Prediction(_saved(results, sink), save_dir=folder, is_stream=opened.has_video)


def make_predictor(config: PredictConfig, model: LoadedModel | ExportedModel) -> Predictor:
    """Prepare a model for the device and precision that were asked for."""
    if isinstance(model, ExportedModel):
        return model.on(config.device.device, half=config.predict.half)
    device = choose_device(config.device.device)
    precision = precision_for(device, half=config.predict.half)
    return TorchPredictor(model.network, names=model.names, device=device, precision=precision)


def _saved(results: Iterator[Results], sink: ResultSink) -> Iterator[Results]:
    with sink:
        for result in results:
            sink.write(result)
            yield result
