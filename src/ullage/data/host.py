"""The host's memory that loading takes: predicted before the run, reduced where a budget asks for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ullage.data.cache import Cache, base_bytes
from ullage.data.index import DetectionSet
from ullage.data.pool import HELD, PREFETCH, default_workers
from ullage.data.recent import BYTES_A_PROCESS, RECENT_BYTES
from ullage.errors import MemoryBudgetError
from ullage.units import format_bytes

WORKER_BYTES = 150_000_000  # of a loader process, beside what it shares with this one; measured on Linux, rounded up


@dataclass(frozen=True)
class HostPlan:
    """How images get to the network, and what memory of the host that takes.

    Attributes:
        cache: Where decoded images are kept.
        workers: Loader processes.
        cache_bytes: Decoded images in memory.
        batch_bytes: Batches that are made ahead.
        worker_bytes: The processes themselves.
        notes: What was reduced, one sentence each.
    """

    cache: Cache
    workers: int
    cache_bytes: int
    batch_bytes: int
    worker_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.cache_bytes + self.batch_bytes + self.worker_bytes


def predict_host_memory(
    dataset: DetectionSet, *, imgsz: int, batch: int, workers: int | None, cache: Cache, device_type: str
) -> HostPlan:
    """Predict what loading a data set takes of the host's memory."""
    count = default_workers(device_type) if workers is None else workers
    everything = int(base_bytes(dataset, imgsz).sum())
    ahead = count * PREFETCH + HELD
    return HostPlan(
        cache=cache,
        workers=count,
        cache_bytes=everything
        if cache == "ram"
        else min(everything, RECENT_BYTES + BYTES_A_PROCESS * max(count - 2, 0)),
        batch_bytes=ahead * min(batch, len(dataset)) * imgsz * imgsz * 3,
        worker_bytes=count * WORKER_BYTES,
    )


def fit_host_memory(
    dataset: DetectionSet,
    *,
    budget_bytes: int | None,
    imgsz: int,
    batch: int,
    workers: int | None,
    cache: Cache,
    device_type: str,
) -> HostPlan:
    """Choose cache and loader processes within a budget of the host's memory: the cache goes first, then processes.

    Args:
        dataset: The training images.
        budget_bytes: None for no limit.
        imgsz: Side of the training canvas.
        batch: Images a batch.
        workers: Wanted loader processes; None chooses.
        cache: Wanted cache.
        device_type: Where the network runs.

    Raises:
        MemoryBudgetError: Not even one process without a cache fits.
    """

    def predicted(cache: Cache, workers: int | None) -> HostPlan:
        return predict_host_memory(
            dataset, imgsz=imgsz, batch=batch, workers=workers, cache=cache, device_type=device_type
        )

    plan = predicted(cache, workers)
    if budget_bytes is None:
        return plan
    notes: list[str] = []
    if plan.total_bytes > budget_bytes and plan.cache == "ram":
        notes.append(
            f"cache='ram' would take {format_bytes(plan.cache_bytes)} of host_memory={format_bytes(budget_bytes)}; "
            "training without it (cache='disk' would help)"
        )
        plan = predicted(False, workers)
    before = plan.workers
    while plan.total_bytes > budget_bytes and plan.workers > 0:
        plan = predicted(plan.cache, plan.workers - 1)
    if plan.workers < before:
        notes.append(f"{plan.workers} loader processes instead of {before}, to stay within host_memory")
    if plan.total_bytes > budget_bytes:
        raise MemoryBudgetError(
            f"host_memory={format_bytes(budget_bytes)} is too little: loading needs {format_bytes(plan.total_bytes)} "
            f"(images {format_bytes(plan.cache_bytes)}, batches {format_bytes(plan.batch_bytes)}); use a smaller batch "
            "or imgsz, or a larger host_memory"
        )
    return replace(plan, notes=tuple(notes))
