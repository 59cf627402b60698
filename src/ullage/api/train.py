"""``train``: from a configuration to trained weights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from ullage.api.detached import refuse_detached
from ullage.api.folders import remove_if_empty
from ullage.api.launch import launch
from ullage.api.models import LoadedModel
from ullage.api.note import noted_process
from ullage.api.run import Run, TrainResult
from ullage.api.start import Start, begin, checkpoint_to_resume, go_on, launched_folder, note_launch
from ullage.api.train_checks import (
    TrainData,
    check_same_classes,
    check_smallest_batch,
    check_techniques,
    open_data,
)
from ullage.config import TrainConfig
from ullage.errors import MemoryBudgetError, StorageError
from ullage.train.host_allocator import reusing_host_memory
from ullage.train.precision import Precision, choose_precision, device_names, rank_device
from ullage.train.process import repeatable_kernels
from ullage.train.protocols import Listener
from ullage.train.ranks import Ranks, joined, wanted_ranks

__all__ = ["TrainResult", "train"]


def train(config: TrainConfig, *, model: LoadedModel | None = None, listeners: Sequence[Listener] = ()) -> TrainResult:
    """Train a detector: here, in several processes of this machine, or as one of those that a launcher has started.

    Args:
        config: All settings. Several devices (``"0,1"``, ``"cpu,cpu"``) start a process each.
        model: An already loaded model to start from; None loads ``config.model.model``.
        listeners: Hear the events of ``train.events`` besides the console and the run folder's files.

    Raises:
        ConfigError: Settings are wrong or contradict each other.
        DataError: The data set cannot be used.
        StorageError: The run folder cannot be written, or the disk is full at the end.
        TrainingError: The gradient is not finite.
        RankLost: Another process of the run is gone.
        KeyboardInterrupt: Asked to stop; ``weights/last.pt`` holds everything.
    """
    refuse_detached(config)
    if wanted_ranks() == 1 and len(device_names(config.device.device)) > 1:
        return launch(config, model=model, listeners=listeners)
    device = rank_device(config.device.device)
    with joined(device) as ranks:
        return _train(config, model, listeners, device, ranks)


def _train(
    config: TrainConfig,
    model: LoadedModel | None,
    listeners: Sequence[Listener],
    device: torch.device,
    ranks: Ranks,
) -> TrainResult:
    start = ranks.from_main(_taken_up(config) if ranks.is_main else None)
    config = config if start is None else start.config
    precision, data = choose_precision(device, config.device.amp), open_data(config)
    check_smallest_batch(config, len(data.train), ranks.size)
    check_techniques(config)
    if start is not None:
        check_same_classes(start.model.names, data.train.names)
    if start is None:  # last: a wrong call leaves no empty folder behind
        start = ranks.from_main(begin(config, model, folder=launched_folder(config)) if ranks.is_main else None)
    assert start is not None
    if ranks.is_main:
        note_launch(start.folder)
    torch.manual_seed(config.run.seed)

    try:
        return _run(start, data, device, precision, ranks, listeners)
    except MemoryBudgetError:
        if ranks.is_main and start.payload is None:
            remove_if_empty(start.folder)  # nothing fits, nothing was begun
        raise


def _run(
    start: Start,
    data: TrainData,
    device: torch.device,
    precision: Precision,
    ranks: Ranks,
    listeners: Sequence[Listener],
) -> TrainResult:
    with (
        repeatable_kernels(device, start.config.run.deterministic),
        reusing_host_memory(device),
        contextlib.ExitStack() as stack,
    ):
        if ranks.is_main:
            stack.enter_context(noted_process(start.folder))
        run = Run(start, data, device, precision, ranks, stack)
        trainer = run.trainer(listeners)
        if start.payload is None and ranks.is_main:
            run.write_descriptions()
        try:
            trainer.fit()
        except BrokenPipeError:
            raise  # the console's reader has gone; that is not the folder's fault
        except OSError as error:
            raise StorageError(f"writing to '{start.folder}' failed: {error.strerror or error}") from None
        metrics = run.judge_best() if data.val is not None else None
    return TrainResult(start.folder, run.keeping.best, run.keeping.last, metrics)


def _taken_up(config: TrainConfig) -> Start | None:
    """Return where a run goes on: because the user wants it, or because a launcher starts its processes again."""
    resuming = checkpoint_to_resume(config)
    folder = launched_folder(config, resuming)
    if folder is not None and (folder / "weights" / "last.pt").exists():
        return go_on(config, folder / "weights" / "last.pt", is_restart=True)
    return None if resuming is None else go_on(config, resuming)
