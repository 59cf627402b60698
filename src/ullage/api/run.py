"""One run in one process: data, network, plan and loop put together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ullage._version import __version__
from ullage.api.announce import announcement
from ullage.api.evaluate import Judgement, OnBatch, judge_all
from ullage.api.folders import describe_environment, write_text
from ullage.api.loading import LoadingReport
from ullage.api.models import from_weights
from ullage.api.patient import Patience
from ullage.api.pictures import EvalPictures, PicturedBatches
from ullage.api.plan import plan_training, worst_boxes
from ullage.api.rehearsal import Validation, Worst, rehearse
from ullage.api.start import RESTARTED, Start
from ullage.api.train_checks import TrainData, train_sizes
from ullage.api.val import eval_predictor, save_figures
from ullage.config import EvalSettings
from ullage.data.host import fit_host_memory
from ullage.data.index import DetectionSet
from ullage.data.loader import EvalLoader, TrainLoader, default_workers
from ullage.data.preview import save_labels_picture
from ullage.errors import ConfigError
from ullage.losses.detection import DetectionLoss
from ullage.metrics.result import Metrics
from ullage.nn.detector import Detector
from ullage.runtime.predictor import Predictor
from ullage.train.events import Notice
from ullage.train.frugal import PlannedMemory
from ullage.train.keeping import Keeping
from ullage.train.loop import Limits, Trainer
from ullage.train.optim import MovingAverage, freeze_blocks, make_optimiser, set_training_mode
from ullage.train.precision import Precision
from ullage.train.process import cap_process_memory
from ullage.train.progress import ConsoleProgress
from ullage.train.protocols import Listener
from ullage.train.ranks import Ranks, local_ranks
from ullage.train.records import record_listeners
from ullage.train.schedule import Schedule, choose_optimiser
from ullage.train.state import TrainState
from ullage.train.sync_norm import synchronise_norms
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
        metrics: The best weights judged on the validation images; None with ``val=False``, and in other processes than
            the main one.
    """

    run_dir: Path
    best: Path
    last: Path
    metrics: Metrics | None


class Run:
    """Puts the parts of one run together."""

    def __init__(
        self,
        start: Start,
        data: TrainData,
        device: torch.device,
        precision: Precision,
        ranks: Ranks,
        stack: contextlib.ExitStack,
    ) -> None:
        self.start, self.config, self.data, self.device, self.precision = start, start.config, data, device, precision
        self.ranks = ranks
        self.console = ConsoleProgress() if self.config.run.verbose and ranks.is_main else None
        if self.console is not None:
            stack.callback(self.console.close)
        self.folder, restarted = start.folder, os.environ.get(RESTARTED, "")
        self.notices = [f"{restarted}: started again, from the last checkpoint"] if restarted else []
        settings = self.config.data
        sizes = train_sizes(settings.imgsz, settings.multi_scale)
        self.imgsz = settings.imgsz if isinstance(settings.imgsz, int) else settings.imgsz[1]
        self.largest = sizes[1] if sizes else self.imgsz
        self.share = -(-settings.batch // ranks.size)  # images of a batch that come to one process, at most
        budget, workers = self.config.memory.host_memory, self.config.loader.workers
        workers = default_workers(device.type, processes=local_ranks()) if workers is None else workers
        host = fit_host_memory(
            data.train,
            budget_bytes=parse_bytes(budget) // local_ranks() if budget is not None else None,
            imgsz=self.largest,
            batch=self.share,
            workers=workers,
            cache=self.config.loader.cache,
            device_type=device.type,
        )
        self.notices += host.notes
        self.batches = TrainLoader(
            data.train,
            batch=settings.batch,
            imgsz=self.imgsz,
            augment=self.config.augment,
            seed=self.config.run.seed,
            workers=host.workers if host.notes else workers,
            cache=host.cache,
            rect=settings.rect,
            sizes=sizes,
            device_type=device.type,
            rank=ranks.rank,
            ranks=ranks.size,
        )
        stack.callback(self.batches.close)
        self.eval_batches = None
        if data.val is not None:
            self.eval_batches = EvalLoader(
                data.val,
                imgsz=self.imgsz,
                batch=self.share,
                workers=host.workers if host.notes else workers,
                device_type=device.type,
                rank=ranks.rank,
                ranks=ranks.size,
            )
            stack.callback(self.eval_batches.close)
        keep = self.config.run
        self.keeping = Keeping(self.folder / "weights", write_checkpoint, keep.save_period, 60 * keep.save_minutes)
        self.loss = DetectionLoss.from_settings(self.config.loss, num_classes=len(data.train.names))
        self.eval_settings = EvalSettings()
        self.patience = Patience(on_oom=self.config.memory.on_oom, tell=self._tell)
        self._trainer: Trainer | None = None

    def trainer(self, listeners: Sequence[Listener]) -> Trainer:
        """Build network, optimiser and loop."""
        config, network = self.config, self._network()
        circle = synchronise_norms(network, self.ranks.size) if config.device.sync_bn else None
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
        if config.run.plots and self.ranks.is_main:
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
            listeners=[*self._listeners(state.position.epoch), *listeners] if self.ranks.is_main else (),
            frozen=frozen,
            forward=_compiled(network) if config.device.compile else None,
            memory=memory,
            on_oom=config.memory.on_oom,
            on_nan=config.run.on_nan,
            ranks=self.ranks,
            circle=circle,
            name_image=lambda index: Path(self.data.train.paths[index]).name,
        )
        self._trainer = trainer
        self._announce(trainer, network, choice.kind, choice.lr0)
        self._rehearse(trainer, memory)
        return trainer

    def _memory(self, network: Detector, optimiser: str, *, accumulates: bool) -> PlannedMemory:
        """Plan the memory of the run, put the plan in force, cap the process."""
        settings, batch, data = self.config.memory, self.share, self.data
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
        if self.ranks.is_main:
            write_text(self.folder / "plan.json", plan.to_json())
        self.patience.limit = plan.val_batch if plan.val_batch < batch else 0
        if settings.memory is not None:
            cap_process_memory(self.device, parse_bytes(settings.memory))
        return PlannedMemory(network, plan, frozen_in_code=self.config.device.compile)

    def _rehearse(self, trainer: Trainer, memory: PlannedMemory) -> None:
        """Take one step on the worst batch, which changes nothing; say what it needed beside what was predicted."""
        validation = None
        if self.data.val is not None:
            validation = Validation(self._predictor, self.loss, self.eval_settings, self.patience, self.imgsz)
        worst = Worst(self.largest, self.share, self._worst_boxes)
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
        devices = self.config.device.device or self.device.type
        texts = announcement(
            self.config, self.data, network, name=self.start.model.model_name, optimiser=optimiser, lr0=lr0,
            where=str(self.device) if self.ranks.size == 1 else f"{self.ranks.size} processes ({devices})",
            precision=self.precision.name, accumulate=trainer.schedule.accumulate, folder=self.folder,
        )  # fmt: skip
        for text in [*texts, *self.notices]:
            trainer.tell(Notice(text))

    def _predictor(self, network: nn.Module) -> Predictor:
        assert isinstance(network, Detector)
        half = self.precision.dtype is not None
        return eval_predictor(network, self._validation()[1], self.device, half=half)

    def _evaluate(self, network: nn.Module) -> dict[str, float]:
        judged = self._judge(network)
        found: dict[str, float] = {}
        if judged is not None:
            whole = judged.evaluation()
            found = {**whole.metrics.results_dict, **{f"val/{name}_loss": v for name, v in whole.losses.items()}}
        return self.ranks.from_main(found)

    def _judge(self, network: nn.Module, *, loss: bool = True, on_batch: OnBatch | None = None) -> Judgement | None:
        """Judge a network on the validation images, every process some of them; the main one gets the judgement."""
        batches, dataset = self._validation()
        return judge_all(
            self._predictor(network),
            patience=self.patience,
            batches=batches,
            dataset=dataset,
            settings=self.eval_settings,
            loss=self.loss if loss else None,
            on_batch=on_batch,
        ).gathered(self.ranks)

    def _validation(self) -> tuple[EvalLoader, DetectionSet]:
        if self.eval_batches is None or self.data.val is None:
            raise ConfigError("this run has val=False: there is nothing to judge on")
        return self.eval_batches, self.data.val

    def judge_best(self) -> Metrics | None:
        """Judge the best weights once more, with pictures; only the main process gets the metrics."""
        plots = self.config.run.plots and self.ranks.is_main
        names = self._validation()[1].names
        best = self.ranks.from_main(from_weights(self.keeping.best).network if self.ranks.is_main else None)
        assert best is not None
        judged = self._judge(
            best, loss=False, on_batch=EvalPictures(folder=self.folder, names=names) if plots else None
        )
        if judged is None:
            return None
        metrics = judged.evaluation().metrics
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


def _compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network)  # pyright: ignore[reportReturnType]
