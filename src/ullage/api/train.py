"""``train``: from a configuration to trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ullage._version import __version__
from ullage.api.evaluate import evaluate
from ullage.api.folders import DEFAULT_PROJECT, describe_environment, make_run_folder, write_text
from ullage.api.models import LoadedModel, from_weights, load_model
from ullage.api.pictures import EvalPictures, PicturedBatches
from ullage.api.val import eval_predictor, save_figures
from ullage.config import EvalSettings, TrainConfig
from ullage.config.data import STRIDE
from ullage.data.index import DetectionSet
from ullage.data.loader import EvalLoader, TrainLoader
from ullage.data.preview import save_labels_picture
from ullage.data.source import open_dataset
from ullage.errors import ConfigError, StorageError, TrainingError, WeightsError
from ullage.losses.detection import DetectionLoss
from ullage.metrics.result import Metrics
from ullage.nn.detector import Detector
from ullage.train.events import Notice
from ullage.train.loop import Keeping, Limits, Trainer
from ullage.train.optim import MovingAverage, freeze_blocks, make_optimiser
from ullage.train.precision import Precision, choose_device, choose_precision
from ullage.train.progress import ConsoleProgress
from ullage.train.protocols import Listener
from ullage.train.records import record_listeners
from ullage.train.schedule import Schedule, choose_optimiser
from ullage.train.state import TrainState
from ullage.zoo.checkpoint_file import read_checkpoint, write_checkpoint

# What may change when a run goes on: where and how fast it runs, never what it computes.
RESUMABLE_WITH = frozenset(
    ("model", "resume", "device", "workers", "cache", "plots", "verbose", "save_period", "patience", "time")
)
UNLIMITED_EPOCHS = 1_000_000


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        run_dir: The run's folder.
        best: Weights of the best epoch.
        last: Checkpoint of the last step.
        metrics: The best weights judged on the validation images; None with ``val=False``.
    """

    run_dir: Path
    best: Path
    last: Path
    metrics: Metrics | None


@dataclass(frozen=True)
class _Data:
    """The images of a run."""

    train: DetectionSet
    val: DetectionSet | None


@dataclass(frozen=True)
class _Start:
    """Where a run begins: its settings, its network, and the checkpoint it goes on from."""

    config: TrainConfig
    model: LoadedModel
    folder: Path
    payload: Mapping[str, Any] | None


def train(config: TrainConfig, *, model: LoadedModel | None = None, listeners: Sequence[Listener] = ()) -> TrainResult:
    """Train a detector.

    Args:
        config: All settings.
        model: An already loaded model to start from; None loads ``config.model.model``.
        listeners: Hear the events of ``train.events`` besides the console and the run folder's files.

    Raises:
        ConfigError: Settings are wrong or contradict each other.
        DataError: The data set cannot be used.
        StorageError: The run folder cannot be written, or the disk is full.
        TrainingError: The gradient is not finite.
        KeyboardInterrupt: Asked to stop; ``weights/last.pt`` holds everything.
    """
    resuming = _resumed_file(config)
    if resuming is None and config.data.data is None:
        raise ConfigError("train needs data=: a YAML, COCO JSON, folder, CSV, or 'demo'")
    start = _fresh_start(config, model) if resuming is None else _resumed_start(config, resuming)
    config, device = start.config, choose_device(start.config.device.device)
    data = _open_data(config)
    precision = choose_precision(device, config.device.amp)
    _seed(config.run.seed)

    with _determinism(device, config.run.deterministic), contextlib.ExitStack() as stack:
        run = _Run(start, data, device, precision, stack)
        trainer = run.trainer(listeners)
        if start.payload is None:
            run.write_descriptions()
        try:
            trainer.fit()
        except OSError as error:
            raise StorageError(f"writing to '{start.folder}' failed: {error.strerror or error}") from None
        metrics = run.judge_best() if data.val is not None else None
    return TrainResult(start.folder, run.keeping.best, run.keeping.last, metrics)


class _Run:
    """Puts the parts of one run together."""

    def __init__(
        self, start: _Start, data: _Data, device: torch.device, precision: Precision, stack: contextlib.ExitStack
    ) -> None:
        self.start, self.config, self.data, self.device, self.precision = start, start.config, data, device, precision
        self.console = ConsoleProgress() if self.config.run.verbose else None
        if self.console is not None:
            stack.callback(self.console.close)
        self.folder = start.folder
        self.notices: list[str] = []
        settings = self.config.data
        sizes = train_sizes(settings.imgsz, settings.multi_scale)
        self.imgsz = sizes[1] if sizes else int(settings.imgsz)  # pyright: ignore[reportArgumentType]
        self.batches = TrainLoader(
            data.train,
            batch=settings.batch,
            imgsz=self.imgsz,
            augment=self.config.augment,
            seed=self.config.run.seed,
            workers=self.config.loader.workers,
            cache=self.config.loader.cache,
            rect=settings.rect,
            sizes=sizes,
            device_type=device.type,
        )
        stack.callback(self.batches.close)
        self.eval_batches = None
        if data.val is not None:
            self.eval_batches = EvalLoader(
                data.val,
                imgsz=self.imgsz,
                batch=settings.batch,
                workers=self.config.loader.workers,
                device_type=device.type,
            )
            stack.callback(self.eval_batches.close)
        self.keeping = Keeping(self.folder / "weights", write_checkpoint, self.config.run.save_period)
        self.loss = DetectionLoss.from_settings(self.config.loss, num_classes=len(data.train.names))
        self.eval_settings = EvalSettings()

    def trainer(self, listeners: Sequence[Listener]) -> Trainer:
        """Build network, optimiser and loop."""
        config, network = self.config, self._network()
        choice = choose_optimiser(
            config.optim, images=len(self.data.train), batch=config.data.batch, num_classes=network.num_classes
        )
        schedule = Schedule(config.optim, choice, config.data.batch, len(self.batches))
        frozen = freeze_blocks(network, config.model.freeze)
        state = TrainState(
            network=network,
            average=MovingAverage(network),
            optimiser=make_optimiser(network, choice, schedule.weight_decay),
            scaler=self.precision.scaler(),
            identity=self._identity(),
        )
        if self.start.payload is not None:
            state.restore(self.start.payload)
        batches = self.batches
        if config.run.plots:
            plain_from = max(config.optim.epochs - config.augment.close_mosaic, 0)
            batches = PicturedBatches(
                self.batches, folder=self.folder, names=self.data.train.names, plain_from=plain_from
            )
        limited = config.optim.time is not None
        trainer = Trainer(
            state,
            loss=self.loss,
            batches=batches,
            evaluate=self._evaluate if self.data.val is not None else None,
            schedule=schedule,
            precision=self.precision,
            limits=Limits(
                epochs=UNLIMITED_EPOCHS if limited else config.optim.epochs,
                patience=config.optim.patience,
                seconds=config.optim.time * 3600 if config.optim.time is not None else None,
            ),
            keeping=self.keeping,
            listeners=[*self._listeners(state.position.epoch), *listeners],
            frozen=frozen,
            forward=_compiled(network) if config.device.compile else None,
        )
        self._announce(trainer, network, choice.kind, choice.lr0)
        return trainer

    def _network(self) -> Detector:
        model, report = self.start.model.with_classes(self.data.train.names)
        if report is not None and report.skipped:
            self.notices.append(f"from '{self.start.model.source}': {report}")
        return model.network.to(self.device)

    def _identity(self) -> dict[str, Any]:
        names = list(self.data.train.names)
        return {
            "model": {"name": self.start.model.model_name, "num_classes": len(names)},
            "names": names,
            "meta": {"ullage": __version__, "torch": torch.__version__, "config": self.config.flat()},
        }

    def _listeners(self, first_epoch: int) -> list[Listener]:
        listeners = record_listeners(self.folder, first_epoch=first_epoch, plots=self.config.run.plots)
        return [*listeners, self.console] if self.console is not None else listeners

    def _announce(self, trainer: Trainer, network: Detector, optimiser: str, lr0: float) -> None:
        parameters = sum(p.numel() for p in network.parameters())
        schedule, images = trainer.schedule, len(self.data.train)
        accumulated = f", {schedule.accumulate} batches a step" if schedule.accumulate > 1 else ""
        texts = [
            f"{self.start.model.model_name}: {parameters:,} parameters, {network.num_classes} classes, on "
            f"{self.device} in {self.precision.name}; {optimiser}, lr0 {lr0:g}{accumulated}",
            f"{images:,} training images with {len(self.data.train.class_ids_N):,} boxes, "
            f"{len(self.data.val) if self.data.val is not None else 0:,} validation images; results in '{self.folder}'",
        ]
        problems = len(self.data.train.problems) + (len(self.data.val.problems) if self.data.val is not None else 0)
        if problems:
            texts.append(
                f"{problems} problems in the data; 'ullage data check data={self.config.data.data}' lists them"
            )
        for text in [*texts, *self.notices]:
            trainer.tell(Notice(text))

    def _evaluate(self, network: nn.Module) -> dict[str, float]:
        assert self.eval_batches is not None and self.data.val is not None and isinstance(network, Detector)
        result = evaluate(
            eval_predictor(network, self.data.val, self.device, half=self.precision.dtype is not None),
            batches=self.eval_batches,
            dataset=self.data.val,
            settings=self.eval_settings,
            loss=self.loss,
        )
        return {**result.metrics.results_dict, **{f"val/{name}_loss": value for name, value in result.losses.items()}}

    def judge_best(self) -> Metrics:
        """Judge the best weights once more, with pictures."""
        assert self.eval_batches is not None and self.data.val is not None
        best = from_weights(self.keeping.best)
        plots = self.config.run.plots
        metrics = evaluate(
            eval_predictor(best.network, self.data.val, self.device, half=self.precision.dtype is not None),
            batches=self.eval_batches,
            dataset=self.data.val,
            settings=self.eval_settings,
            on_batch=EvalPictures(folder=self.folder, names=self.data.val.names) if plots else None,
        ).metrics
        if plots:
            save_figures(metrics, self.folder)
        if self.config.run.verbose:
            print(metrics)
        return metrics

    def write_descriptions(self) -> None:
        """Write what the run is: settings, machine, labels."""
        write_text(self.folder / "args.yaml", self.config.dump())
        write_text(self.folder / "environment.json", describe_environment(self.device))
        if self.config.run.plots:
            save_labels_picture(self.data.train, path=self.folder / "labels.png")


def train_sizes(imgsz: int | tuple[int, int], multi_scale: bool) -> tuple[int, int] | None:
    """Return the smallest and largest training size, None when there is only one."""
    if isinstance(imgsz, tuple):
        return imgsz
    if not multi_scale:
        return None
    low, high = (max(round(imgsz * part / STRIDE), 1) * STRIDE for part in (0.5, 1.5))
    return low, high


def _open_data(config: TrainConfig) -> _Data:
    assert config.data.data is not None
    settings = config.data
    train_set = open_dataset(
        settings.data,
        split="train",
        classes=settings.classes,
        single_cls=settings.single_cls,
        fraction=settings.fraction,
        seed=config.run.seed,
    )
    if not config.run.val:
        return _Data(train_set, None)
    val_set = open_dataset(settings.data, split="val", classes=settings.classes, single_cls=settings.single_cls)
    return _Data(train_set, val_set)


def _fresh_start(config: TrainConfig, model: LoadedModel | None) -> _Start:
    if model is None:
        pretrained = config.model.pretrained
        model = load_model(config.model.model, seed=config.run.seed)
        if isinstance(pretrained, str):
            model = _with_weights_of(model, load_model(pretrained))
        elif pretrained is False and model.source is not None:
            model = load_model(model.model_name, seed=config.run.seed)
    folder = make_run_folder(config.folder, verb="train")
    _make_weights_folder(folder)
    return _Start(config, model, folder, None)


def _with_weights_of(model: LoadedModel, other: LoadedModel) -> LoadedModel:
    if other.model_name != model.model_name:
        raise ConfigError(f"pretrained weights are of {other.model_name}, the model is {model.model_name}")
    return other


def _resumed_file(config: TrainConfig) -> Path | None:
    resume = config.run.resume
    if resume is False:
        return None
    if isinstance(resume, str):
        return Path(resume).expanduser()
    if config.model.model.endswith(".pt"):
        return Path(config.model.model).expanduser()
    project = Path(config.folder.project) if config.folder.project else DEFAULT_PROJECT
    found = sorted(project.glob("*/weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"resume: there is no run under '{project}' to go on with; name one: model=.../weights/last.pt"
        )
    return found[-1]


def _resumed_start(config: TrainConfig, file: Path) -> _Start:
    payload = read_checkpoint(file)
    if not payload.get("train"):
        raise WeightsError(f"'{file}' holds weights only and cannot be resumed; resume from weights/last.pt")
    given = {key: value for key, value in config.flat().items() if key in _explicit(config)}
    refused = sorted(set(given) - RESUMABLE_WITH)
    kept = TrainConfig.load(payload["meta"]["config"])
    changed = [key for key in refused if given[key] != kept.flat()[key]]
    if changed:
        raise ConfigError(
            f"a resumed run keeps its settings; {', '.join(changed)} cannot change. May change: "
            f"{', '.join(sorted(RESUMABLE_WITH - {'model', 'resume'}))}"
        )
    merged = kept.override(**{key: given[key] for key in given if key in RESUMABLE_WITH - {"model", "resume"}})
    done, epochs = payload["train"]["position"]["epoch"], merged.optim.epochs
    if merged.optim.time is None and done >= epochs:
        raise TrainingError(f"'{file}' has finished all {epochs} epochs; there is nothing to resume")
    folder = file.absolute().parent.parent
    _make_weights_folder(folder)
    model = LoadedModel(from_weights(file).network, payload["model"]["name"], tuple(payload["names"]))
    return _Start(merged, model, folder, payload)


def _explicit(config: TrainConfig) -> set[str]:
    return {key for name in config.sections() for key in getattr(config, name).model_fields_set}


def _make_weights_folder(folder: Path) -> None:
    try:
        (folder / "weights").mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write into '{folder}': {error.strerror or error}") from None


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network)  # pyright: ignore[reportReturnType]


def _seed(seed: int) -> None:
    torch.manual_seed(seed)


@contextlib.contextmanager
def _determinism(device: torch.device, wanted: bool) -> Iterator[None]:
    """Ask CUDA for repeatable kernels while the run lasts; CPUs repeat themselves anyway."""
    if device.type != "cuda" or not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill
