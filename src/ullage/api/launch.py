"""Training in several processes of this machine, started and watched by PyTorch's elastic launcher.

The processes get the call in a private folder and answer in it: with the result, or with errors, of which the user
sees the one that began it. When a process dies without a word (killed, a GPU that fell off the bus), all are started
again and go on from ``last.pt``, as long as runs get further between two deaths.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import secrets
import signal
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ullage import errors
from ullage.api.models import LoadedModel, from_weights
from ullage.api.relay import Relay
from ullage.api.start import RESTARTED, checkpoint_to_resume, given_settings, launched_folder
from ullage.config import TrainConfig
from ullage.errors import BackendUnavailable, ConfigError, TrainingError, UllageError
from ullage.train.precision import choose_device, device_names
from ullage.train.protocols import Listener

if TYPE_CHECKING:
    from ullage.api.run import TrainResult

MOST_FUTILE = 3  # restarts in a row that did not get further
_BROKEN_DEVICE = ("CUDA error", "NCCL", "cuDNN error", "unspecified launch failure")


@dataclass(frozen=True)
class Call:
    """What the processes are to do.

    Attributes:
        settings: What the user said, without defaults.
        has_model: A model in hand is in ``model.pt``.
        is_fresh: That model's weights are new: a class branch of another size is made anew without a word.
        address: Where the listeners of the caller are; None when there are none.
        key: What proves that it is one of these processes.
    """

    settings: dict[str, Any]
    has_model: bool
    is_fresh: bool
    address: str | None
    key: str

    def write(self, folder: Path) -> None:
        """Write it for the processes to read."""
        (folder / "call.json").write_text(json.dumps(vars(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Call:
        """Read what ``write`` wrote."""
        return cls(**json.loads((folder / "call.json").read_text(encoding="utf-8")))

    def model(self, folder: Path) -> LoadedModel | None:
        """Return the model in hand."""
        if not self.has_model:
            return None
        model = from_weights(folder / "model.pt")
        return LoadedModel(model.network, model.model_name, model.names) if self.is_fresh else model


def launch(config: TrainConfig, *, model: LoadedModel | None, listeners: Sequence[Listener]) -> TrainResult:
    """Train on several devices of this machine, one process on each.

    Args:
        config: Its device names them all.
        model: An already loaded model to start from.
        listeners: Hear the main process's events; called from a thread.

    Raises:
        UllageError: What the first process to fail had to say.
        KeyboardInterrupt: Asked to stop; ``last.pt`` holds everything.
    """
    names = _checked(device_names(config.device.device))
    settings, launch_id = given_settings(config), f"ullage-{secrets.token_hex(8)}"
    resuming = checkpoint_to_resume(config)
    with tempfile.TemporaryDirectory(prefix="ullage-") as text, Relay(listeners) as relay:
        folder = Path(text)
        if model is not None:
            model.save(folder / "model.pt")
        is_fresh, futile, reason, last = model is not None and model.source is None, 0, "", None
        while True:
            here = [name for name in names if _is_there(name)] or names
            Call({**settings, "device": ",".join(here)}, model is not None, is_fresh, relay.address, relay.key).write(
                folder
            )
            deaths = _run_once(folder, len(here), launch_id, restarted=reason)
            if not deaths:
                with (folder / "result.pickle").open("rb") as file:
                    return pickle.load(file)  # noqa: S301  ours, in a folder that is only ours
            reason = _reason_to_restart(folder, deaths)
            now = _stamp(launched_folder(config, resuming, launch=launch_id))
            futile, last = (0 if now != last else futile + 1), now
            if futile >= MOST_FUTILE:
                raise TrainingError(f"{reason}; {futile} restarts in a row did not get further")


def _checked(names: list[str]) -> list[str]:
    """Refuse devices that are not here, or named twice; CPU processes share the machine."""
    kinds = {choose_device(name).type for name in names}
    if len(kinds) > 1:
        raise ConfigError(f"device={','.join(names)!r} mixes kinds of devices; the processes of a run need one kind")
    twice = sorted({name for name in names if names.count(name) > 1 and kinds != {"cpu"}})
    if twice:
        raise ConfigError(f"device={','.join(names)!r} names {', '.join(twice)} twice; each process needs its own GPU")
    return names


def _is_there(name: str) -> bool:
    with contextlib.suppress(BackendUnavailable):
        choose_device(name)
        return True
    return False


def _run_once(folder: Path, count: int, launch_id: str, *, restarted: str) -> Mapping[int, Any]:
    """Run the processes to their end; return how those that failed did, by rank.

    Raises:
        KeyboardInterrupt: The user asked to stop.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for old in folder.glob("error-*.json"):
        old.unlink()
    threads = max(
        (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // count, 1
    )
    plan = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=launch_id,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    surroundings = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), RESTARTED: restarted,
                    "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR")}  # fmt: skip
    with _signals_put_back(), _environment(surroundings), _quiet():
        try:
            elastic_launch(plan, sys.executable)("-m", "ullage.api.worker", str(folder))
        except ChildFailedError as error:
            return error.failures
        except SignalException:
            raise KeyboardInterrupt from None
    return {}


def _reason_to_restart(folder: Path, deaths: Mapping[int, Any]) -> str:
    """Say why the processes are started again.

    Raises:
        UllageError: They should not be: a process had something to say that would only come again.
    """
    told = sorted(
        (json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("error-*.json")), key=lambda e: e["when"]
    )
    for error in told:
        kind = getattr(errors, error["kind"], None)
        if isinstance(kind, type) and issubclass(kind, UllageError):
            raise kind(error["message"])
        if error["kind"] not in ("RankLost", "KeyboardInterrupt") and not any(
            sign in error["message"] for sign in _BROKEN_DEVICE
        ):
            print(error["traceback"], file=sys.stderr)
            raise TrainingError(f"process {error['rank']} failed: {error['kind']}: {error['message']}")
    silent = set(deaths) - {error["rank"] for error in told}
    if silent:
        rank = min(silent)
        code = deaths[rank].exitcode
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return f"process {rank} ended {how}"
    if not told:
        return "the processes ended without a word"
    return f"process {told[0]['rank']}: {told[0]['message'] or 'it was asked to stop'}"


def _stamp(run: Path | None) -> int:
    """Return what changes whenever ``last.pt`` is written; 0 before the first."""
    try:
        return (run / "weights" / "last.pt").stat().st_mtime_ns if run is not None else 0
    except OSError:
        return 0


@contextlib.contextmanager
def _signals_put_back() -> Generator[None]:
    """Undo what the launcher does to the handlers of signals."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where none was changed
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Generator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the launcher from telling what we tell ourselves."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
