"""Where a training run begins: afresh in a new folder, or from the checkpoint of an interrupted one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ullage.api.folders import DEFAULT_PROJECT, LAUNCH_FILE, make_run_folder, write_text
from ullage.api.models import WEIGHT_SUFFIXES, LoadedModel, from_weights, load_model
from ullage.config import TrainConfig
from ullage.errors import ConfigError, StorageError, TrainingError, WeightsError
from ullage.zoo.checkpoint_file import read_checkpoint

# What may change when a run goes on: where, how fast and in how much memory it runs, never what it computes.
RESUMABLE_WITH = frozenset(
    (
        "model", "resume", "device", "workers", "cache", "plots", "verbose", "save_period", "patience", "time",
        "memory", "host_memory", "technique", "gradient_checkpointing", "micro_batch", "on_oom", "on_nan",
        "save_minutes",
    )
)  # fmt: skip
RESTARTED = "ULLAGE_RESTARTED"  # environment: why a launcher starts the processes of a run again


@dataclass(frozen=True)
class Start:
    """Where a run begins: its settings, its network, and the checkpoint it goes on from."""

    config: TrainConfig
    model: LoadedModel
    folder: Path
    payload: Mapping[str, Any] | None


def begin(config: TrainConfig, model: LoadedModel | None, *, folder: Path | None = None) -> Start:
    """Begin a new run in a new folder, or in a given one, from a model in hand or from what the configuration names."""
    if model is None:
        pretrained = config.model.pretrained
        model = load_model(config.model.model, seed=config.run.seed)
        if isinstance(pretrained, str):
            model = _with_weights_of(model, load_model(pretrained))
        elif pretrained is False and model.source is not None:
            model = load_model(model.model_name, seed=config.run.seed)
    folder = make_run_folder(config.folder, verb="train") if folder is None else folder
    make_weights_folder(folder)
    return Start(_anchored(config), model, folder, None)


def _anchored(config: TrainConfig) -> TrainConfig:
    """Name data and weights files by their whole paths, so that the run can be repeated and resumed from any folder."""
    data, model = config.data.data, config.model
    whole_data = data if data is None or data == "demo" else _whole(data)
    weights = {key: _whole(text) for key, text in model if str(text).lower().endswith(WEIGHT_SUFFIXES)}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"data": whole_data}),
            "model": model.model_copy(update=weights),
        }
    )


def _whole(text: str) -> str:
    path = Path(text).expanduser()
    return str(path.absolute()) if path.exists() else text


def _with_weights_of(model: LoadedModel, other: LoadedModel) -> LoadedModel:
    if other.model_name != model.model_name:
        raise ConfigError(f"pretrained weights are of {other.model_name}, the model is {model.model_name}")
    return other


def checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """Find the checkpoint that ``resume`` means: the named one, the model, else the latest run; None without it."""
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


def go_on(config: TrainConfig, file: Path, *, is_restart: bool = False) -> Start:
    """Go on with an interrupted run, in its folder and with its settings.

    Args:
        config: Settings that a run in progress may change.
        file: Its ``last.pt``.
        is_restart: A launcher starts the run's processes again: it may have been in its very last moments.

    Raises:
        WeightsError: The file is damaged, or holds weights only.
        ConfigError: A setting was given that a run in progress cannot change.
        TrainingError: The run is complete.
    """
    payload = read_checkpoint(file)
    if not payload.get("train"):
        raise WeightsError(f"'{file}' holds weights only and cannot be resumed; resume from weights/last.pt")
    given = {key: value for key, value in _anchored(config).flat().items() if key in _explicit(config)}
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
    if merged.optim.time is None and done >= epochs and not is_restart:
        raise TrainingError(f"'{file}' has finished all {epochs} epochs; there is nothing to resume")
    folder = file.absolute().parent.parent
    make_weights_folder(folder)
    model = LoadedModel(from_weights(file).network, payload["model"]["name"], tuple(payload["names"]))
    return Start(merged, model, folder, payload)


def note_launch(folder: Path) -> None:
    """Note in a run's folder which launch it belongs to, for the processes that the launcher may start again."""
    if launch_id():
        write_text(folder / LAUNCH_FILE, json.dumps({"launch": launch_id()}) + "\n")


def launched_folder(config: TrainConfig, resuming: Path | None = None, *, launch: str | None = None) -> Path | None:
    """Return the folder of the run that a launch has begun already; None when it has not, or without a launcher.

    Args:
        config: Says in which project it would be.
        resuming: The checkpoint that the user wants the run to go on from.
        launch: Which one; None means the one that started this process.
    """
    launch = launch_id() if launch is None else launch
    if not launch:
        return None
    project = Path(config.folder.project).expanduser() if config.folder.project else DEFAULT_PROJECT
    found = (
        [resuming.parent.parent / LAUNCH_FILE]
        if resuming is not None
        else [*project.glob(f"*/{LAUNCH_FILE}"), *project.glob(f"*/*/{LAUNCH_FILE}")]
    )
    return next((file.parent for file in found if _launch_in(file) == launch), None)


def launch_id() -> str:
    """Return the name of the launch that started this process; empty without an elastic launcher."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return "" if name == "none" else name  # torchrun without --rdzv-id says "none" for every launch


def _launch_in(file: Path) -> str | None:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("launch")
    except (OSError, ValueError, AttributeError):
        return None


def given_settings(config: TrainConfig) -> dict[str, Any]:
    """Return what the user said, without defaults."""
    return {key: value for key, value in config.flat().items() if key in _explicit(config)}


def _explicit(config: TrainConfig) -> set[str]:
    return {key for name in config.sections() for key in getattr(config, name).model_fields_set}


def make_weights_folder(folder: Path) -> None:
    """Make ``weights/`` in the run's folder."""
    try:
        (folder / "weights").mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write into '{folder}': {error.strerror or error}") from None
