"""``train``: from a configuration to trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ullage._version import __version__
from ullage.api.evaluate import evaluate
from ullage.api.folders import describe_environment, remove_if_empty, write_text
from ullage.api.loading import LoadingReport
from ullage.api.models import LoadedModel, from_weights
from ullage.api.patient import Patience
from ullage.api.pictures import EvalPictures, PicturedBatches
from ullage.api.plan import check_technique, plan_training, worst_boxes
from ullage.api.rehearsal import Validation, Worst, rehearse
from ullage.api.start import Start, begin, checkpoint_to_resume, go_on
from ullage.api.val import eval_predictor, save_figures
from ullage.config import EvalSettings, OptimSettings, TrainConfig
from ullage.config.data import STRIDE
from ullage.data.host import fit_host_memory
from ullage.data.index import DetectionSet
from ullage.data.loader import EvalLoader, TrainLoader
from ullage.data.preview import save_labels_picture
from ullage.data.source import open_dataset
from ullage.errors import ConfigError, DataError, MemoryBudgetError, StorageError
from ullage.losses.detection import DetectionLoss
from ullage.metrics.result import Metrics
from ullage.nn.detector import Detector
from ullage.runtime.predictor import Predictor
from ullage.train.events import Notice
from ullage.train.frugal import PlannedMemory
from ullage.train.host_allocator import reusing_host_memory
from ullage.train.loop import Keeping, Limits, Trainer
from ullage.train.optim import MovingAverage, freeze_blocks, make_optimiser, set_training_mode
from ullage.train.precision import Precision, choose_device, choose_precision
from ullage.train.process import cap_process_memory, repeatable_kernels
from ullage.train.progress import ConsoleProgress
from ullage.train.protocols import Listener
from ullage.train.records import record_listeners
from ullage.train.schedule import Schedule, choose_optimiser
from ullage.train.state import TrainState
from ullage.units import parse_bytes
from ullage.zoo.checkpoint_file import write_checkpoint

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
    resuming = checkpoint_to_resume(config)
    start = None if resuming is None else go_on(config, resuming)
    config = config if start is None else start.config
    device, data = choose_device(config.device.device), _open_data(config)
    _check_smallest_batch(config, len(data.train))
    _check_techniques(config)
    if start is not None:
        _check_same_classes(start.model.names, data.train.names)
    precision = choose_precision(device, config.device.amp)
    start = begin(config, model) if start is None else start  # last: a wrong call leaves no empty folder behind
    _seed(config.run.seed)

    with (
        repeatable_kernels(device, config.run.deterministic),
        reusing_host_memory(device),
        contextlib.ExitStack() as stack,
    ):
        try:
            run = _Run(start, data, device, precision, stack)
            trainer = run.trainer(listeners)
        except MemoryBudgetError:
            remove_if_empty(start.folder)  # nothing fits, nothing was begun
            raise
        if start.payload is None:
            run.write_descriptions()
        try:
            trainer.fit()
        except BrokenPipeError:
            raise  # the console's reader has gone; that is not the folder's fault
        except OSError as error:
            raise StorageError(f"writing to '{start.folder}' failed: {error.strerror or error}") from None
        metrics = run.judge_best() if data.val is not None else None
    return TrainResult(start.folder, run.keeping.best, run.keeping.last, metrics)


class _Run:
    """Puts the parts of one run together."""

    def __init__(
        self, start: Start, data: _Data, device: torch.device, precision: Precision, stack: contextlib.ExitStack
    ) -> None:
        self.start, self.config, self.data, self.device, self.precision = start, start.config, data, device, precision
        self.console = ConsoleProgress() if self.config.run.verbose else None
        if self.console is not None:
            stack.callback(self.console.close)
        self.folder = start.folder
        self.notices: list[str] = []
        settings = self.config.data
        sizes = train_sizes(settings.imgsz, settings.multi_scale)
        self.imgsz = settings.imgsz if isinstance(settings.imgsz, int) else settings.imgsz[1]
        self.largest = sizes[1] if sizes else self.imgsz
        budget = self.config.memory.host_memory
        host = fit_host_memory(
            data.train,
            budget_bytes=parse_bytes(budget) if budget is not None else None,
            imgsz=self.largest,
            batch=settings.batch,
            workers=self.config.loader.workers,
            cache=self.config.loader.cache,
            device_type=device.type,
        )
        self.notices += host.notes
        workers = host.workers if host.notes else self.config.loader.workers
        self.batches = TrainLoader(
            data.train,
            batch=settings.batch,
            imgsz=self.imgsz,
            augment=self.config.augment,
            seed=self.config.run.seed,
            workers=workers,
            cache=host.cache,
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
                workers=workers,
                device_type=device.type,
            )
            stack.callback(self.eval_batches.close)
        self.keeping = Keeping(self.folder / "weights", write_checkpoint, self.config.run.save_period)
        self.loss = DetectionLoss.from_settings(self.config.loss, num_classes=len(data.train.names))
        self.eval_settings = EvalSettings()
        self.patience = Patience(on_oom=self.config.memory.on_oom, tell=self._tell)
        self._trainer: Trainer | None = None

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
        set_training_mode(network, frozen)
        memory = self._memory(network, type(state.optimiser).__name__, accumulates=schedule.accumulate > 1)
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
            memory=memory,
            on_oom=config.memory.on_oom,
        )
        self._trainer = trainer
        self._announce(trainer, network, choice.kind, choice.lr0)
        self._rehearse(trainer, memory)
        return trainer

    def _memory(self, network: Detector, optimiser: str, *, accumulates: bool) -> PlannedMemory:
        """Plan the memory of the run, put the plan in force, cap the process."""
        settings, batch = self.config.memory, self.config.data.batch
        data = self.data
        plan = plan_training(
            network,
            batch=batch,
            imgsz=self.largest,
            boxes=self._worst_boxes,
            budget=settings.memory,
            technique="none" if self.config.device.compile else settings.wanted_technique,
            micro_batch=settings.micro_batch,
            optimizer=optimiser,
            precision=self.precision.name,
            device=self.device.type,
            validates=data.val is not None,
            accumulates=accumulates,
        )
        write_text(self.folder / "plan.json", plan.to_json())
        self.patience.limit = plan.val_batch if plan.val_batch < batch else 0
        if settings.memory is not None:
            cap_process_memory(self.device, parse_bytes(settings.memory))
        return PlannedMemory(network, plan, frozen_in_code=self.config.device.compile)

    def _rehearse(self, trainer: Trainer, memory: PlannedMemory) -> None:
        """Take one step on the worst batch, which changes nothing; say what it needed beside what was predicted."""
        data, batch = self.data, self.config.data.batch
        validation = None
        if data.val is not None:
            validation = Validation(self._predictor, self.loss, self.eval_settings, self.patience, self.imgsz)
        worst = Worst(self.largest, batch, self._worst_boxes)
        text = rehearse(trainer, memory, worst=worst, budget=self.config.memory.memory, validation=validation)
        trainer.tell(Notice(text))

    def _worst_boxes(self, images: int) -> int:
        return worst_boxes(self.data.train, images, augment=self.config.augment)

    def _tell(self, event: object) -> None:
        if self._trainer is not None:
            self._trainer.tell(event)

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
        listeners.append(LoadingReport(self.batches.spent, tuple(listeners)))
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
        if unused := unused_by_auto(self.config.optim):
            texts.append(
                f"optimizer=auto sets its own lr0 and momentum, {unused} is not used: name an optimizer to keep it"
            )
        for text in [*texts, *self.notices]:
            trainer.tell(Notice(text))

    def _predictor(self, network: nn.Module) -> Predictor:
        assert isinstance(network, Detector)
        half = self.precision.dtype is not None
        return eval_predictor(network, self._validation()[1], self.device, half=half)

    def _evaluate(self, network: nn.Module) -> dict[str, float]:
        batches, dataset = self._validation()
        result = evaluate(
            self._predictor(network),
            patience=self.patience,
            batches=batches,
            dataset=dataset,
            settings=self.eval_settings,
            loss=self.loss,
        )
        return {**result.metrics.results_dict, **{f"val/{name}_loss": value for name, value in result.losses.items()}}

    def _validation(self) -> tuple[EvalLoader, DetectionSet]:
        if self.eval_batches is None or self.data.val is None:
            raise ConfigError("this run has val=False: there is nothing to judge on")
        return self.eval_batches, self.data.val

    def judge_best(self) -> Metrics:
        """Judge the best weights once more, with pictures."""
        batches, dataset = self._validation()
        plots = self.config.run.plots
        metrics = evaluate(
            self._predictor(from_weights(self.keeping.best).network),
            patience=self.patience,
            batches=batches,
            dataset=dataset,
            settings=self.eval_settings,
            on_batch=EvalPictures(folder=self.folder, names=dataset.names) if plots else None,
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


def unused_by_auto(settings: OptimSettings) -> str:
    """Name what was set although ``optimizer="auto"`` decides it; empty when nothing was."""
    if settings.optimizer != "auto":
        return ""
    fields = {key: OptimSettings.model_fields[key].default for key in ("lr0", "momentum")}
    return " and ".join(
        f"{key}={getattr(settings, key):g}" for key, default in fields.items() if getattr(settings, key) != default
    )


def train_sizes(imgsz: int | tuple[int, int], multi_scale: bool) -> tuple[int, int] | None:
    """Return the smallest and largest training size, None when there is only one."""
    if isinstance(imgsz, tuple):
        return imgsz
    if not multi_scale:
        return None
    low, high = (max(round(imgsz * part / STRIDE), 1) * STRIDE for part in (0.5, 1.5))
    return low, high


def _check_same_classes(before: Sequence[str], now: Sequence[str]) -> None:
    if tuple(before) != tuple(now):
        raise DataError(
            f"the data set's classes have changed since the run began: {', '.join(before[:8])} then, "
            f"{', '.join(now[:8])} now; restore them, or begin a new run"
        )


def _check_smallest_batch(config: TrainConfig, images: int) -> None:
    """Refuse a batch that leaves BatchNorm a single value per channel: one image whose coarsest map is one cell."""
    settings = config.data
    sizes = train_sizes(settings.imgsz, settings.multi_scale)
    least = sizes[0] if sizes else settings.imgsz
    smallest = min(_parts_of(images, (settings.batch, config.memory.micro_batch or settings.batch)))
    if least == STRIDE and smallest == 1:
        raise ConfigError(
            f"imgsz={settings.imgsz} and batch={settings.batch} make a batch of one image of {STRIDE}x{STRIDE} pixels "
            f"out of {images} images, too little to train on; use sizes of at least {2 * STRIDE}, or another batch"
        )


def _check_techniques(config: TrainConfig) -> None:
    """Refuse a technique that does not exist, or that compiled code would not know of."""
    wanted = config.memory.wanted_technique
    check_technique(wanted)
    if config.device.compile and wanted not in ("auto", "none"):
        raise ConfigError(
            f"compile=True and technique={wanted} exclude each other: compiled code keeps what its compiler decides; "
            "leave one of them out (memory= and micro_batch= work with compile)"
        )


def _parts_of(images: int, sizes: tuple[int, ...]) -> set[int]:
    """Return the sizes of the parts when images are cut into batches, and those into smaller ones."""
    if not sizes:
        return {images}
    cut = {min(sizes[0], images), images % sizes[0]} - {0}
    return {part for size in cut for part in _parts_of(size, sizes[1:])}


def _named_data(config: TrainConfig) -> str:
    if config.data.data is None:
        raise ConfigError("train needs data=: a YAML, COCO JSON, folder, CSV, or 'demo'")
    return config.data.data


def _open_data(config: TrainConfig) -> _Data:
    settings, data = config.data, _named_data(config)
    train_set = open_dataset(
        data,
        split="train",
        classes=settings.classes,
        single_cls=settings.single_cls,
        fraction=settings.fraction,
        seed=config.run.seed,
    )
    if not config.run.val:
        return _Data(train_set, None)
    val_set = open_dataset(data, split="val", classes=settings.classes, single_cls=settings.single_cls)
    return _Data(train_set, val_set)


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network)  # pyright: ignore[reportReturnType]


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
