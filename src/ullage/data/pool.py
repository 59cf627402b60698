"""Processes that make batches: started once, fed with keys, quiet on Ctrl-C, honest about errors."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ullage.data.order import BatchKey, Keys
from ullage.data.shared import start_method
from ullage.data.slots import BatchSlots, slots_of
from ullage.data.spent import Spent
from ullage.errors import DataError, UllageError

PREFETCH = 2
HELD = 2  # batches that the training loop holds when the next one is planned: the last one and this one

Make = Callable[[BatchKey, torch.Tensor], "Parts"]


class Parts(NamedTuple):
    """A batch as it travels between processes: tensors and numbers. Letters as in ``Batch`` and ``Targets``."""

    images_BHW3: torch.Tensor
    image_index_G: torch.Tensor
    class_ids_G: torch.Tensor
    boxes_xyxy_px_G4: torch.Tensor
    spent: Spent

    def pinned(self) -> Parts:
        """Return a copy in pinned memory."""
        images_BHW3, image_index_G, class_ids_G, boxes_xyxy_px_G4 = (part.pin_memory() for part in self[:4])
        return Parts(images_BHW3, image_index_G, class_ids_G, boxes_xyxy_px_G4, self.spent)


class Pass(NamedTuple):
    """The batches to make, and what probably follows: made ahead while the loop does other things.

    Attributes:
        name: Tells passes apart; equal names have equal keys.
        keys: The batches.
        following: Returns the pass after this one; None when there is none.
    """

    name: tuple[int, ...]
    keys: Keys
    following: Callable[[], Pass | None]


@dataclass(frozen=True)
class _Task:
    """What a loader process gets: make this batch, there; without a slot, in memory of its own."""

    key: BatchKey
    slot: int | None


@dataclass(frozen=True)
class _Sent:
    """What comes back through the pipe: arrays, because each tensor would take a file and a place in ``/dev/shm``.

    Attributes:
        arrays: As in ``Parts``; without images when they are in a slot.
        spent: As in ``Parts``.
        slot: Where the images are.
        shape: Of the images.
        token: Of the slots.
    """

    arrays: tuple[np.ndarray[Any, Any], ...]
    spent: Spent
    slot: int | None
    shape: tuple[int, ...]
    token: int

    def parts(self) -> Parts:
        """Return the batch; its slot is free when nobody holds it any more."""
        tensors = [torch.from_numpy(array) for array in self.arrays]
        if self.slot is not None:
            tensors.insert(0, slots_of(self.token).hand_over(self.slot, self.shape))
        images_BHW3, image_index_G, class_ids_G, boxes_xyxy_px_G4 = tensors
        return Parts(images_BHW3, image_index_G, class_ids_G, boxes_xyxy_px_G4, self.spent)

    def pin_memory(self) -> Parts:
        """Called in the thread that pins: copies out of the slot, so that it is free at once."""
        return self.parts().pinned()


@dataclass(frozen=True)
class _Failure:
    """An error of ours on its way home: raised there, it says one line instead of a worker's traceback."""

    error: UllageError
    slot: int | None
    token: int

    def free(self) -> None:
        """Give the slot back that the batch would have come in."""
        if self.slot is not None:
            slots_of(self.token).give_back(self.slot)

    def pin_memory(self) -> _Failure:
        """An error needs no pinned memory."""
        return self


def default_workers(device_type: str, *, processes: int = 1) -> int:
    """Choose how many loader processes serve a network on a device.

    A GPU leaves the cores idle, so all but one load, up to 8. A CPU that also trains has no core to give away: a sample
    costs a few percent of its training step, so one process is enough, and with two cores it only gets in the way.

    Args:
        device_type: ``"cpu"`` or another.
        processes: How many training processes share the machine's cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(cores // processes, 1)
    if device_type == "cpu":
        return 0 if cores <= 2 else 1 if cores <= 8 else 2
    return max(min(cores - 1, 8), 1)


class BatchPool:
    """Makes batches from keys, in this process or in others, in the order of the keys.

    Args:
        make: Makes one batch in the memory that it is given; it must be picklable where processes are spawned.
        workers: How many processes; 0 makes batches here, when they are asked for.
        pin: Put tensors into pinned memory, for fast copies to a CUDA device.
        batch_bytes: Size of the largest batch of images.
        before_start: Called before processes start, when none of them is alive.
    """

    def __init__(
        self, make: Make, *, workers: int, pin: bool, batch_bytes: int, before_start: Callable[[], None] | None = None
    ) -> None:
        self._make = make
        self._workers = workers
        self._pin = pin
        self._batch_bytes = batch_bytes
        self._before_start = before_start
        self._plan = _Plan()
        # Only this object holds what keeps the processes alive, no frame of a generator, so that close ends them.
        self._loader: DataLoader[Parts | _Sent | _Failure] | None = None
        self._batches: Iterator[Parts | _Sent | _Failure] | None = None
        self._turn = 0
        self.spent = Spent()

    def run(self, wanted: Pass, *, skip: int = 0) -> Iterator[Parts]:
        """Make the batches of a pass, without the first ``skip``.

        Raises:
            UllageError: Whatever ``make`` raised, at the place of its batch.
            DataError: A loader process died.
        """
        self._turn += 1
        turn = self._turn
        if self._workers == 0:
            for key in wanted.keys.after(skip):
                began = time.perf_counter()
                parts = self._make(key, empty_images(key))
                waited = Spent(wait_seconds=time.perf_counter() - began)
                self.spent = self.spent + parts.spent + waited
                yield parts.pinned() if self._pin else parts
            return
        self._start(wanted, skip)
        for _ in range(self._plan.due):
            began = time.perf_counter()
            result = self._next(turn)
            self.spent = self.spent + Spent(wait_seconds=time.perf_counter() - began)
            if not isinstance(result, _Failure):
                parts = result.parts() if isinstance(result, _Sent) else result
                self.spent = self.spent + parts.spent
                yield parts
                del parts, result  # else this frame would hold a batch, and its slot, while the next one is awaited
            else:
                result.free()
                error = result.error
                # The traceback will hold this frame: a name in it would keep the error, and so the processes, alive.
                try:
                    raise error
                finally:
                    del error, result

    def close(self) -> None:
        """End the processes; ``run`` would start them again."""
        self._batches = self._loader = None
        self._plan = _Plan()

    def _start(self, wanted: Pass, skip: int) -> None:
        """Go on with what the processes make already, or start anew."""
        if skip == 0 and self._batches is not None and self._plan.goes_on_with(wanted):
            return
        new = self._loader is None
        if self._loader is None:
            self._loader = self._started()
        self._plan.begin(wanted, skip)
        self._batches = iter(self._loader)
        if new:
            # At exit Python waits for these processes after asking them to end by a signal, which they do not hear.
            atexit.register(_close_at_exit, weakref.ref(self))

    def _next(self, turn: int) -> Parts | _Sent | _Failure:
        if self._batches is None or turn != self._turn:
            raise RuntimeError("this pass over the data ended when the loader was closed or started anew")
        try:
            result = next(self._batches)
        except (RuntimeError, EOFError, OSError) as error:
            # A process that dies while its batch is on the way breaks the connection instead.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"a loader process died ({cause}); it probably ran out of memory: use fewer workers than "
                f"{self._workers}, or workers=0 to see the cause"
            ) from error
        self._plan.due -= 1
        return result

    def _started(self) -> DataLoader[Parts | _Sent | _Failure]:
        if self._before_start is not None:
            self._before_start()
        slots = BatchSlots(self._workers * PREFETCH + HELD, self._batch_bytes)
        self._plan = _Plan(slots)
        return DataLoader(
            _KeyedBatches(self._make, slots),
            batch_size=None,
            sampler=self._plan,
            num_workers=self._workers,
            collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]  # without batching it gets one value
            pin_memory=self._pin,
            worker_init_fn=_init_worker,
            multiprocessing_context=start_method(),
            generator=torch.Generator().manual_seed(0),  # else every epoch would draw from the global generator
            prefetch_factor=PREFETCH,
            persistent_workers=True,
        )


def _close_at_exit(pool: weakref.ref[BatchPool]) -> None:
    left = pool()
    if left is not None:
        left.close()


def empty_images(key: BatchKey) -> torch.Tensor:
    """Return memory for the images of a batch."""
    return torch.empty(len(key.indices), *key.size_hw, 3, dtype=torch.uint8)


class _Plan(Sampler[_Task]):
    """Hands out the batches of a pass, and of those that probably follow.

    Attributes:
        slots: Where batches travel.
        due: How many batches of the current pass have not arrived yet.
    """

    def __init__(self, slots: BatchSlots | None = None) -> None:
        self.slots = slots
        self.due = 0
        self._wanted: Pass | None = None
        self._keys: Keys | None = None
        self._ahead: Pass | None = None
        self._ahead_count = 0

    def begin(self, wanted: Pass, skip: int) -> None:
        """Plan a pass from its batch number ``skip`` on; takes effect with the next ``iter``."""
        self._wanted, self._keys, self._ahead = wanted, wanted.keys.after(skip), None
        self.due = len(self._keys)

    def goes_on_with(self, wanted: Pass) -> bool:
        """Tell whether the processes have gone on with the wanted pass by themselves; if so, it is the current one."""
        if self.due > 0 or self._ahead is None or self._ahead.name != wanted.name:
            return False
        self._wanted, self._ahead, self.due = self._ahead, None, self._ahead_count
        return True

    def __iter__(self) -> Iterator[_Task]:
        if self.slots is not None:
            self.slots.take_back()  # by now every process has acknowledged the new start, so none writes any more
        keys = self._keys
        while keys is not None:
            for key in keys:
                shape = (len(key.indices), *key.size_hw, 3)
                yield _Task(key, None if self.slots is None else self.slots.take(shape))
            if self._ahead is not None or self._wanted is None:
                return  # further ahead than one pass is never needed
            self._ahead = self._wanted.following()
            if self._ahead is None:
                return
            keys = self._ahead.keys
            self._ahead_count = len(keys)

    def __len__(self) -> int:
        return self.due


class _KeyedBatches(Dataset[_Sent | _Failure]):
    """Makes a batch of a key; an error of ours becomes a value."""

    def __init__(self, make: Make, slots: BatchSlots) -> None:
        self._make = make
        self._slots = slots
        self._token = slots.token

    def __getitem__(self, index: _Task) -> _Sent | _Failure:
        key, slot = index.key, index.slot
        shape = (len(key.indices), *key.size_hw, 3)
        try:
            there = empty_images(key) if slot is None else torch.from_numpy(self._slots.view(slot, shape))
            parts = self._make(key, there)
            arrays = tuple(part.numpy() for part in parts[:4])
            return _Sent(arrays if slot is None else arrays[1:], parts.spent, slot, shape, self._token)
        except UllageError as error:
            return _Failure(error, slot, self._token)


def _as_it_is(value: _Sent | _Failure) -> _Sent | _Failure:
    return value


def _init_worker(_: int) -> None:
    torch.set_num_threads(1)
    # 0, not 1: OpenCV would first end the threads of its pool, which a forked process does not have, and hang.
    cv2.setNumThreads(0)
    # Ctrl-C reaches every process of the terminal, and the end of a job every process of the job; the parent alone
    # decides what that means. It ends this process by hand; when the parent is gone, this process ends by itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A parent that stops while it takes a tensor over leaves the thread that serves it with a broken connection.
    sys.excepthook = _quiet_about_broken_connections


def _quiet_about_broken_connections(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
