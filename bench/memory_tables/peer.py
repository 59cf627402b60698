"""Peak and step time against the peer's: same network, batch, size and precision, each side in its own process.

Both peaks are counted by ``peers/tensor_peak.py``. Ours trains by a plan for a quarter of what the peer needed, with
bitwise techniques in one pass. The peer's step has no moving average of the weights, so that ours does not count in the
ratio; it is printed beside. Its time counts all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Sequence

import torch

from machine import peer_python
from memory_step import CPU, Case, RealStep, shared_batch
from records import Record
from train_step import NUM_CLASSES, PAUSE_SECONDS, PeerStep
from ullage.api.plan import network_of, plan_training
from ullage.errors import MemoryBudgetError
from ullage.memory import Plan
from ullage.train.host_allocator import reusing_host_memory

PEAK_LIMIT, TIME_LIMIT = 0.25, 1.4
CASES = (
    Case("yolo12s", 16, 320),
    Case("yolo11s", 16, 320),
    Case("yolo11n", 16, 640),
    Case("yolo12s", 8, 640),
    Case("yolo12s", 16, 320, "bf16"),
)


def combinations() -> list[Record]:
    """Return what is compared; the sides call these networks by the same names."""
    return [dict(vars(case)) for case in CASES]


def measure(key: Record, options: argparse.Namespace) -> Record:
    """Count both peaks, then time both sides in turn."""
    torch.set_num_threads(options.threads)
    case, python = Case(**key), peer_python(options.peer_python)
    batch, fingerprint = shared_batch(case)
    with (
        reusing_host_memory(CPU),
        PeerStep(
            python, case.model, imgsz=case.imgsz, batch=case.batch, dtype=case.precision, threads=options.threads
        ) as peer,
    ):
        if peer.facts["batch"] != fingerprint or peer.facts["threads"] != torch.get_num_threads():
            raise SystemExit(f"the sides do not compute the same: {peer.facts}, ours {fingerprint}")
        peer()  # the optimiser's state is there from the second step on
        peer_peak = peer.peak_bytes()
        average = average_bytes(case)
        plan, technique = plan_for(case, int(PEAK_LIMIT * peer_peak), len(batch.targets))
        ours = RealStep(case, batch, plan=plan)
        if (parameters := sum(p.numel() for p in ours.network.parameters())) != peer.facts["parameters"]:
            print(f"note: ours has {parameters:,} parameters, the peer {peer.facts['parameters']:,}", flush=True)
        ours()
        our_peak = ours.peak_of_tensors()
        seconds: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(1 + options.rounds):
            for name, step in (("ours", ours), ("peer", peer)):
                took = step()
                time.sleep(PAUSE_SECONDS)
                if number:
                    seconds[name].append(took)
    return {
        "ours": our_peak - average, "average": average, "peer": peer_peak, "technique": technique,
        "predicted": plan.predicted.peak_bytes, "seconds": seconds, "threads": options.threads,
        "program": peer.facts["program"],
    }  # fmt: skip


def average_bytes(case: Case) -> int:
    """Return the size of a moving average of weights and buffers."""
    network = network_of(case.model, num_classes=NUM_CLASSES)
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers()))


def plan_for(case: Case, budget: int, boxes: int) -> tuple[Plan, str]:
    """Plan one pass in a budget, or in the next larger one in which it fits.

    Plans count what convolutions take for themselves; the counter that compares the sides does not see it.
    """

    for percent in range(100, 200, 5):
        with contextlib.suppress(MemoryBudgetError):
            plan = plan_training(
                network_of(case.model, num_classes=NUM_CLASSES), batch=case.batch, imgsz=case.imgsz, boxes=boxes,
                budget=str(budget * percent // 100), technique="auto", micro_batch=case.batch, optimizer="SGD",
                precision=case.precision, device="cpu", validates=False, average=False,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
            return plan, f"planned in {percent * PEAK_LIMIT / 100:.3f}"
    raise SystemExit(f"{case}: nothing fits in half of the peer's peak")


def line(record: Record) -> str:
    """Return one comparison in one line."""
    case = Case(*(record[k] for k in ("model", "batch", "imgsz", "precision")))
    ours, peer = (statistics.median(record["seconds"][side]) for side in ("ours", "peer"))
    steps = f"{len(record['seconds']['ours'])} steps each, {record['threads']} threads; {record['program']}"
    return (
        f"{case} ({record['technique']}): peak ours {record['ours'] / 2**20:,.0f} MiB (and "
        f"{record['average'] / 2**20:,.0f} MiB moving average), "
        f"peer {record['peer'] / 2**20:,.0f} MiB, ratio {record['ours'] / record['peer']:.3f}; "
        f"step ours {ours:.3f} s, peer {peer:.3f} s, ratio {ours / peer:.2f} ({steps})"
    )


def summary(records: Sequence[Record]) -> str:
    """Return the worst ratios."""
    peaks = [r["ours"] / r["peer"] for r in records]
    times = [statistics.median(r["seconds"]["ours"]) / statistics.median(r["seconds"]["peer"]) for r in records]
    holds = max(peaks) <= PEAK_LIMIT and max(times) <= TIME_LIMIT
    return (
        f"{len(records)} comparisons: worst peak ratio {max(peaks):.3f} (<= {PEAK_LIMIT}), worst time ratio "
        f"{max(times):.2f} (<= {TIME_LIMIT}): {'yes' if holds else 'NO'}"
    )
