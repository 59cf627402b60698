"""``YOLO``: the calls that users of this field type, over ``ullage.api``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ullage.api.bench import BenchResult, bench
from ullage.api.detached import refuse_detached
from ullage.api.export import export
from ullage.api.exported import ExportedModel, open_model
from ullage.api.models import LoadedModel, ModelInfo, load_model
from ullage.api.predict import Prediction, make_predictors, predict
from ullage.api.train import TrainResult, train
from ullage.api.val import val
from ullage.config import ExportConfig, PredictConfig, TrainConfig, ValConfig
from ullage.config.bench import BenchConfig
from ullage.errors import ConfigError
from ullage.metrics.result import Metrics
from ullage.runtime.predictor import Predictor
from ullage.runtime.results import Results


class YOLO:
    """A detector: a network with weights and class names.

    Args:
        model: A name (``"yolov12n"``, ``"yolov12n.yaml"``: new weights), a weights file (``.pt``, ``.safetensors``),
            the name of an official file (``"yolov12n.pt"``), which is downloaded when it is not in the current folder,
            or an exported file (``.onnx``), which predicts and can be judged, but not trained.
        task: Only ``"detect"``.

    Raises:
        ConfigError: No such network.
        WeightsError: The file is missing, damaged, or does not fit.
    """

    def __init__(self, model: str | Path = "yolov12n", *, task: str = "detect") -> None:
        if task != "detect":
            raise ConfigError(f"task={task!r} is not supported; Ullage detects (task='detect')")
        self._requested = str(model)
        self._model: LoadedModel | ExportedModel = open_model(model)
        self._predictors: tuple[tuple[object, ...], Sequence[Predictor]] | None = None

    @property
    def names(self) -> dict[int, str]:
        """Class names by id."""
        return dict(enumerate(self._model.names))

    @property
    def model(self) -> Any:
        """The network, a ``torch.nn.Module``."""
        return self.loaded.network

    @property
    def loaded(self) -> LoadedModel:
        """The network with its name, classes and origin.

        Raises:
            ConfigError: This is an exported file.
        """
        if isinstance(self._model, ExportedModel):
            raise ConfigError(
                f"'{self._requested}' is an exported file, which predicts and can be judged (predict, val); for "
                "anything else name the weights that it was made from"
            )
        return self._model

    def info(self, imgsz: int = 640) -> ModelInfo:
        """Count parameters, FLOPs and layers."""
        return self.loaded.info(imgsz)

    def train(self, **settings: Any) -> TrainResult:
        """Train on a data set; afterwards this object holds the best weights.

        Args:
            **settings: Every key of ``ullage train --help``.
        """
        file = settings.pop("cfg", None)
        config = TrainConfig.load({"model": self._requested, **settings}, file=file)
        refuse_detached(config)
        start = self._start_of(config, named="model" in settings)
        result = train(config, model=start)
        best = result.best if result.best.exists() else result.last
        self._model, self._requested, self._predictors = load_model(best), str(best), None
        return result

    def _start_of(self, config: TrainConfig, *, named: bool) -> LoadedModel | None:
        """Return the weights in hand; None when training starts from new ones or another file's."""
        if config.run.resume or named or config.model.pretrained is not True:
            return None
        return self.loaded if self.loaded.source is not None or config.run.seed == 0 else None

    def val(self, **settings: Any) -> Metrics:
        """Judge on a data set.

        Args:
            **settings: Every key of ``ullage val --help``; ``data`` defaults to the set that the weights come from.
        """
        values = {"model": self._requested, **settings}
        if "data" not in values and (known := self._trained_on()):
            values["data"] = known
        return val(ValConfig.load(values), model=self._model)

    def predict(
        self, source: Any = None, *, callback: Callable[[Results], object] | None = None, **settings: Any
    ) -> list[Results] | Prediction:
        """Find objects in images, videos, or what cameras and streams show.

        Args:
            source: Image, video, folder, glob, URL, number of a camera, stream, RGB array, PIL image, tensor, or a list
                of those.
            callback: Called with every result as soon as it is there.
            **settings: Every key of ``ullage predict --help``.

        Returns:
            A list; for videos, for streams and with ``stream=True`` an iterator, whose ``stats()`` tell of the streams.
        """
        text = str(source) if isinstance(source, str | Path) else None
        config = PredictConfig.load({"model": self._requested, **settings, "source": text})
        key = (config.device, config.predict.half)
        if self._predictors is None or self._predictors[0] != key:
            self._predictors = (key, make_predictors(config, self._model))
        prediction = predict(
            config, source=source, model=self._model, predictors=self._predictors[1], callback=callback
        )
        streams = prediction.is_stream if config.predict.stream is None else config.predict.stream
        return prediction if streams else list(prediction)

    __call__ = predict

    def save(self, path: str | Path) -> Path:
        """Write the weights to share: ``.safetensors``, or a ``.pt`` of plain tensors."""
        return self.loaded.save(path)

    def export(self, **settings: Any) -> Path:
        """Write the network for another runtime, and prove that the file computes the same.

        Args:
            **settings: Every key of ``ullage export --help``.

        Returns:
            The file; for OpenVINO its folder.

        Raises:
            ExportParityError: The file does not compute what the network computes; it is not kept.
        """
        config = ExportConfig.load({"model": self._requested, **settings})
        return export(config, model=self.loaded).path

    def benchmark(self, **settings: Any) -> BenchResult:
        """Measure this network in several runtimes on this machine: latency, throughput, memory, size, mAP.

        Args:
            **settings: Every key of ``ullage bench --help``.
        """
        return bench(BenchConfig.load({"model": self._requested, **settings}), model=self._model)

    def _trained_on(self) -> str | None:
        if isinstance(self._model, ExportedModel):
            return None
        meta = (self._model.metadata or {}).get("meta")
        configuration = meta.get("config") if isinstance(meta, dict) else None
        return configuration.get("data") if isinstance(configuration, dict) else None

    def __repr__(self) -> str:
        if isinstance(self._model, ExportedModel):
            return f"YOLO({self._model.info.model_name}, {len(self._model.names)} classes, in {self._model.path})"
        origin = self._model.source or "new weights"
        return f"YOLO({self._model.model_name}, {len(self._model.names)} classes, from {origin})"
