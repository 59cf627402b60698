"""Processes that make batches: started once, fed with keys, quiet on Ctrl-C, honest about errors."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ullage.data.order import BatchKey
from ullage.errors import ConfigError, DataError, UllageError
from ullage.units import format_bytes

PREFETCH = 2


class Parts(NamedTuple):
    """A batch as it travels between processes: only tensors. Letters as in ``Batch`` and ``Targets``."""

    images_BHW3: torch.Tensor
    image_index_G: torch.Tensor
    class_ids_G: torch.Tensor
    boxes_xyxy_px_G4: torch.Tensor


@dataclass(frozen=True)
class _Failure:
    """An error of ours on its way home: raised there, it says one line instead of a worker's traceback."""

    error: UllageError


def start_method() -> str:
    """Return how loader processes start: forked on Linux, where they then share the image cache; spawned elsewhere."""
    return "fork" if sys.platform.startswith("linux") else "spawn"


def default_workers(device_type: str) -> int:
    """Choose how many loader processes serve a network on a device.

    A GPU leaves the cores idle, so all but one load, up to 8. A CPU that also trains has no core to give away: a sample
    costs a few percent of its training step, so one process is enough, and with two cores it only gets in the way.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device_type == "cpu":
        return 0 if cores <= 2 else 1 if cores <= 8 else 2
    return max(min(cores - 1, 8), 1)


class BatchPool:
    """Makes batches from keys, in this process or in others, in the order of the keys.

    Args:
        make: Makes one batch; it must be picklable where processes are spawned.
        workers: How many processes; 0 makes batches here, when they are asked for.
        pin: Put tensors into pinned memory, for fast copies to a CUDA device.
    """

    def __init__(self, make: Callable[[BatchKey], Parts], *, workers: int, pin: bool) -> None:
        self._make = make
        self._workers = workers
        self._pin = pin
        self._sampler = _KeySampler()
        # Only this object holds what keeps the processes alive, no frame of a generator, so that close ends them.
        self._loader: DataLoader[Parts | _Failure] | None = None
        self._batches: Iterator[Parts | _Failure] | None = None
        self._turn = 0

    def run(self, keys: Sequence[BatchKey]) -> Iterator[Parts]:
        """Make a batch of every key.

        Raises:
            UllageError: Whatever ``make`` raised, at the place of its batch.
            DataError: A loader process died.
        """
        if self._workers == 0:
            for key in keys:
                parts = self._make(key)
                yield Parts(*(part.pin_memory() for part in parts)) if self._pin else parts
            return
        self._sampler.keys = list(keys)
        self._batches = iter(self._started())
        self._turn += 1
        turn = self._turn
        for _ in keys:
            result = self._next(turn)
            if isinstance(result, Parts):
                yield result
            else:
                error = result.error
                # The traceback will hold this frame: a name in it would keep the error, and so the processes, alive.
                try:
                    raise error
                finally:
                    del error, result

    def close(self) -> None:
        """End the processes; ``run`` would start them again."""
        self._batches = self._loader = None

    def _next(self, turn: int) -> Parts | _Failure:
        if self._batches is None or turn != self._turn:
            raise RuntimeError("this pass over the data ended when the loader was closed or started anew")
        try:
            return next(self._batches)
        except (RuntimeError, EOFError, OSError) as error:
            # A process that dies while its batch is on the way breaks the connection instead.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"a loader process died ({cause}); it probably ran out of memory: use fewer workers than "
                f"{self._workers}, or workers=0 to see the cause"
            ) from error

    def _started(self) -> DataLoader[Parts | _Failure]:
        if self._loader is None:
            self._loader = DataLoader(
                _KeyedBatches(self._make),
                batch_size=None,
                sampler=self._sampler,
                num_workers=self._workers,
                collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]  # without batching it gets one value
                pin_memory=self._pin,
                worker_init_fn=_init_worker,
                multiprocessing_context=start_method(),
                generator=torch.Generator().manual_seed(0),  # else every epoch would draw from the global generator
                prefetch_factor=PREFETCH,
                persistent_workers=True,
            )
        return self._loader


def check_shared_memory(workers: int, *, batch_bytes: int, asked: bool) -> int:
    """Return how many loader processes the shared memory serves; batches travel through it.

    Args:
        workers: How many are wanted.
        batch_bytes: Size of the largest batch.
        asked: True when the user named the number: then fewer is an error, not an answer.

    Raises:
        ConfigError: The shared memory is too small for the number that the user named.
    """
    shm = Path("/dev/shm")
    if workers == 0 or not shm.is_dir():
        return workers
    free = shutil.disk_usage(shm).free
    fits = free // ((PREFETCH + 1) * batch_bytes)
    if fits >= workers:
        return workers
    if asked:
        raise ConfigError(
            f"workers={workers} need {format_bytes((PREFETCH + 1) * batch_bytes * workers)} of shared memory for "
            f"batches of {format_bytes(batch_bytes)}, but /dev/shm has {format_bytes(free)} free; use workers={fits}, "
            "or give the container more (docker run --shm-size=2g)"
        )
    return fits


class _KeySampler(Sampler[BatchKey]):
    """Hands out the keys of the current epoch."""

    def __init__(self) -> None:
        self.keys: list[BatchKey] = []

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class _KeyedBatches(Dataset[Parts | _Failure]):
    """Makes a batch of a key; an error of ours becomes a value."""

    def __init__(self, make: Callable[[BatchKey], Parts]) -> None:
        self._make = make

    def __getitem__(self, index: BatchKey) -> Parts | _Failure:
        try:
            return self._make(index)
        except UllageError as error:
            return _Failure(error)


def _as_it_is(value: Parts | _Failure) -> Parts | _Failure:
    return value


def _init_worker(_: int) -> None:
    torch.set_num_threads(1)
    # 0, not 1: OpenCV would first end the threads of its pool, which a forked process does not have, and hang.
    cv2.setNumThreads(0)
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A parent that stops while it takes a tensor over leaves the thread that serves it with a broken connection.
    sys.excepthook = _quiet_about_broken_connections


def _quiet_about_broken_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
