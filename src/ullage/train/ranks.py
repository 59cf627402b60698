"""The processes that train as one: which of them this is, and what they tell each other.

Every process holds the whole network and does its share of every batch. They add up un-normalised sums and gradients,
so the step is that of one process, whatever the shares; nothing is averaged, and a share may be empty. Gradients are
added after the local sums are complete, not inside backward as ``DistributedDataParallel`` does: so the processes can
agree first that none of them ran out of memory, and undo the step together when one did.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ullage.errors import TrainingError

T = TypeVar("T")
BUCKET_BYTES = 32 * 2**20
PATIENCE = timedelta(minutes=10)  # the longest that one process waits for another; evaluation is shared and shorter


class RankLost(TrainingError):
    """Another process of the run is gone; its own error says why."""


class Ranks:
    """One of the processes of a run. Alone, nothing is communicated.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def total(self, figures: Sequence[float]) -> list[float]:
        """Add figures over all processes, in float64.

        Raises:
            RankLost: Another process is gone.
        """
        if self.size == 1:
            return list(figures)
        sums = torch.tensor(figures, dtype=torch.float64)
        with named_losses():
            dist.all_reduce(sums)
        return sums.tolist()

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Add tensors over all processes, in place, in buckets of 32 MiB. All processes end with the same bits.

        Raises:
            RankLost: Another process is gone.
        """
        if self.size == 1:
            return
        with named_losses():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.all_reduce(flat)
                for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def from_main(self, value: T) -> T:
        """Return what the main process gave; the others' values are ignored.

        Raises:
            RankLost: Another process is gone.
        """
        if self.size == 1:
            return value
        box: list[Any] = [value]
        with named_losses():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def collect(self, value: T) -> list[T]:
        """Return every process's value, in the order of their numbers, everywhere.

        Raises:
            RankLost: Another process is gone.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with named_losses():
            dist.all_gather_object(values, value)
        return values

    def gather(self, value: T) -> list[T] | None:
        """Return every process's value, in the order of their numbers, in the main process only.

        Raises:
            RankLost: Another process is gone.
        """
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        with named_losses():
            dist.gather_object(value, values, dst=0)
        return values

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with those of the main process.

        Raises:
            RankLost: Another process is gone.
        """
        if self.size == 1:
            return
        with named_losses():
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, src=0)
                tensor.detach().copy_(whole)

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            RankLost: Another process is gone.
        """
        self.total([0.0])


def wanted_ranks() -> int:
    """Return how many processes the launcher that started this one has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_ranks() -> int:
    """Return how many of them share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextlib.contextmanager
def joined(device: torch.device) -> Generator[Ranks]:
    """Join the other processes that a launcher (``torchrun`` or ours) has started, for as long as the block lasts.

    Figures and objects travel by gloo, tensors on GPUs by NCCL.

    Raises:
        TrainingError: The others cannot be reached.
    """
    if wanted_ranks() == 1:
        yield Ranks()
        return
    if dist.is_initialized():  # by the caller, who will end it
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the processes of the run cannot reach each other: {_first_line(error)}") from error
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def named_losses() -> Generator[None]:
    """Say in our words that a connection broke.

    Raises:
        RankLost: It did.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo and NCCL raise nothing more precise
        raise RankLost(f"another process of this run is gone: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _buckets(tensors: Iterable[torch.Tensor]) -> Generator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    filled = 0
    for tensor in tensors:
        if bucket and (filled >= BUCKET_BYTES or tensor.dtype != bucket[0].dtype or tensor.device != bucket[0].device):
            yield bucket
            bucket, filled = [], 0
        bucket.append(tensor)
        filled += tensor.nbytes
    if bucket:
        yield bucket
