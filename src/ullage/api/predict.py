"""``predict``: find objects in images and videos."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from ullage.api.exported import ExportedModel, open_model
from ullage.api.folders import make_run_folder
from ullage.api.models import LoadedModel, named_model
from ullage.config import PredictConfig
from ullage.errors import ConfigError
from ullage.runtime.live import LiveResults
from ullage.runtime.predictor import Predictor, TorchPredictor, precision_for
from ullage.runtime.predictor import predict as run_predictor
from ullage.runtime.results import Results
from ullage.runtime.sinks import ResultSink, Sink
from ullage.runtime.sinks_json import CallbackSink, CocoSink, JsonLinesSink
from ullage.runtime.sources import LiveSource, open_source
from ullage.runtime.stream_hub import StreamSettings
from ullage.runtime.stream_stats import StreamStats
from ullage.train.precision import choose_device


class Prediction:
    """An iterator over results that knows where they are saved, and how the streams are doing.

    Attributes:
        save_dir: Folder of what is saved; None when nothing is.
        is_stream: Whether the source is a video or a stream, whose frames nobody should wait for.
    """

    def __init__(
        self, results: Iterator[Results], *, sinks: Sequence[Sink], save_dir: Path | None, is_stream: bool
    ) -> None:
        self.save_dir, self.is_stream = save_dir, is_stream
        self._live = results if isinstance(results, LiveResults) else None
        self._results = _saved(results, sinks)

    def __iter__(self) -> Iterator[Results]:
        return self._results

    def __next__(self) -> Results:
        return next(self._results)

    def stats(self) -> tuple[StreamStats, ...]:
        """Return frames, drops, rates and latencies of each stream so far; nothing when the source is none."""
        return () if self._live is None else self._live.stats()

    def run(self) -> int:
        """Go through all results, for what saving or a callback does with them; return how many there were."""
        return sum(1 for _ in self)

    def close(self) -> None:
        """Stop, and finish the files that are being written."""
        self._results.close()
        if self._live is not None:
            self._live.close()

    def __enter__(self) -> Prediction:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def predict(
    config: PredictConfig,
    *,
    source: Any = None,
    model: LoadedModel | ExportedModel | None = None,
    predictors: Sequence[Predictor] | None = None,
    callback: Callable[[Results], object] | None = None,
) -> Prediction:
    """Find objects in every frame of a source, in order and with bounded memory.

    Args:
        config: Model, thresholds, outputs.
        source: Overrides ``config.predict.source``: also arrays, tensors, PIL images and lists of those.
        model: An already loaded model; None loads ``config.model.model``.
        predictors: Already prepared ones, for repeated calls; None makes one for each device.
        callback: Called with every result before it is handed out.

    Raises:
        ConfigError: No source was named, or a setting is out of range.
        DataError: The source is missing or cannot be read.
    """
    settings = config.predict
    source = settings.source if source is None else source
    if source is None:
        raise ConfigError("predict needs source=: an image, video, folder, glob, URL, camera or stream")
    if predictors is None:
        predictors = make_predictors(
            config, open_model(named_model(config.model, verb="predict")) if model is None else model
        )
    opened = open_source(source, stride=settings.vid_stride)
    live = isinstance(opened, LiveSource)
    results = run_predictor(
        predictors,
        source=opened,
        imgsz=settings.imgsz,
        conf=settings.conf,
        iou=settings.iou,
        max_det=settings.max_det,
        classes=settings.classes,
        class_agnostic=settings.agnostic_nms,
        batch=settings.batch,
        streams=StreamSettings(
            policy=settings.policy,
            latency_ms=settings.latency,
            reconnect_s=settings.reconnect,
            stride=settings.vid_stride,
        ),
    )
    if not live:
        _refuse_for_files(config)
    sinks, folder = _sinks(config)
    if callback is not None:
        sinks.append(CallbackSink(callback))
    return Prediction(results, sinks=sinks, save_dir=folder, is_stream=live or opened.has_video)


def make_predictors(config: PredictConfig, model: LoadedModel | ExportedModel) -> tuple[Predictor, ...]:
    """Prepare a model for each of the devices, and for the precision, that were asked for."""
    named = config.device.device
    return tuple(_predictor(config, model, one) for one in (named.split(",") if named else [None]))


def _predictor(config: PredictConfig, model: LoadedModel | ExportedModel, device: str | None) -> Predictor:
    if isinstance(model, ExportedModel):
        return model.on(device, half=config.predict.half)
    chosen = choose_device(device)
    precision = precision_for(chosen, half=config.predict.half)
    return TorchPredictor(model.network, names=model.names, device=chosen, precision=precision)


def _refuse_for_files(config: PredictConfig) -> None:
    for key in ("policy", "latency", "reconnect"):
        if getattr(config.predict, key) is not None:
            raise ConfigError(
                f"{key}={getattr(config.predict, key)} is for cameras and streams; files are read as fast as they are "
                "used. To play video files side by side, name them in a .streams file"
            )


def _sinks(config: PredictConfig) -> tuple[list[Sink], Path | None]:
    settings, sinks = config.predict, list[Sink]()
    wanted = (settings.save, settings.save_txt, settings.save_frames, settings.save_jsonl, settings.save_coco)
    if not any(wanted):
        return sinks, None
    folder = make_run_folder(config.folder, verb="predict")
    if settings.save or settings.save_txt or settings.save_frames:
        sinks.append(ResultSink(folder, pictures=settings.save, frames=settings.save_frames, text=settings.save_txt))
    if settings.save_jsonl:
        sinks.append(JsonLinesSink(folder))
    if settings.save_coco:
        sinks.append(CocoSink(folder))
    return sinks, folder


def _saved(results: Iterator[Results], sinks: Sequence[Sink]) -> Generator[Results, None, None]:
    with ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(closing(sink))
        for result in results:
            for sink in sinks:
                sink.write(result)
            yield result
