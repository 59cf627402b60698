"""What each technique costs in time: real steps in turn, one of each technique a round, in one process."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from memory_step import CPU, TECHNIQUES, Case, RealStep, shared_batch
from records import Record
from train_step import NUM_CLASSES
from ullage.api.plan import network_of, plan_training
from ullage.train.host_allocator import reusing_host_memory

CASES = (Case("yolo11n", 16, 320), Case("yolov12n", 16, 320), Case("yolov12s", 8, 320))
LIMITS = {"recompute": 1.15, "block": 1.40, "nested": 1.5, "nested in parts": 1.5, "off": 1.01}
WARMUP = 1


def combinations() -> list[Record]:
    """Return what is timed; ``off`` compares an engine that was told to do nothing with none at all."""
    return [{**vars(case), "what": what} for case in CASES for what in ("techniques", "off")]


def measure(key: Record, options: Any) -> Record:
    """Time rounds of steps."""
    torch.set_num_threads(options.threads)
    case = Case(**{k: key[k] for k in ("model", "batch", "imgsz", "precision")})
    with reusing_host_memory(CPU):
        times = off_times(case, options.rounds) if key["what"] == "off" else technique_times(case, options.rounds)
    return {"seconds": times, "threads": options.threads}


def technique_times(case: Case, rounds: int) -> dict[str, list[float]]:
    """Time one step of each technique a round."""
    step, times = RealStep(case, shared_batch(case)[0]), {technique: [] for technique in TECHNIQUES}
    for number in range(WARMUP + rounds):
        for technique, seconds in times.items():
            with step.under(technique):
                took = step()
            if number >= WARMUP:
                seconds.append(took)
    return times


def off_times(case: Case, rounds: int) -> dict[str, list[float]]:
    """Time a trainer without a plan and one whose plan is to do nothing, in turn, first one first, then the other."""
    batch = shared_batch(case)[0]
    plan = plan_training(
        network_of(case.model, num_classes=NUM_CLASSES), batch=case.batch, imgsz=case.imgsz, boxes=len(batch.targets),
        budget=None, technique="none", micro_batch=None, optimizer="SGD", precision="float32", device="cpu",
    )  # fmt: skip
    sides = {"none": RealStep(case, batch), "off": RealStep(case, batch, plan=plan)}
    for name, step in sides.items():
        if wrapped := [n for n, m in step.network.named_modules() if "forward" in vars(m)]:
            raise SystemExit(f"the network of side '{name}' has wrappers although nothing is in force: {wrapped[:3]}")
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(2 * (WARMUP + rounds)):
        for name in sorted(sides, reverse=bool(number % 2)):
            took = sides[name]()
            if number >= 2 * WARMUP:
                times[name].append(took)
    return times


def ratios(record: Record) -> dict[str, float]:
    """Return the medians against plain training."""
    medians = {name: statistics.median(seconds) for name, seconds in record["seconds"].items()}
    return {name: median / medians["none"] for name, median in medians.items() if name != "none"}


def line(record: Record) -> str:
    """Return one network in one line."""
    case = Case(*(record[k] for k in ("model", "batch", "imgsz", "precision")))
    plain = record["seconds"]["none"]
    told = ", ".join(f"{name} x {ratio:.3f}" for name, ratio in ratios(record).items())
    return (
        f"{case} {record['what']}: plain {statistics.median(plain):.3f} s ({min(plain):.3f} to {max(plain):.3f}, "
        f"{len(plain)} rounds, {record['threads']} threads); {told}"
    )


def summary(records: Sequence[Record]) -> str:
    """Return the largest ratios."""
    found: dict[str, list[float]] = {}
    for record in records:
        for name, ratio in ratios(record).items():
            found.setdefault(name, []).append(ratio)
    return "; ".join(
        f"{name} x {min(values):.3f} to {max(values):.3f}, <= {LIMITS[name]}: "
        f"{'yes' if max(values) <= LIMITS[name] else 'NO'}"
        for name, values in found.items()
    )
