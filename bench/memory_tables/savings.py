"""What each technique keeps and needs, as a ratio to plain training: traces of 16 images at 640 px, without values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_step import IN_PARTS, TECHNIQUES, Case, parsed, techniques_of
from records import Record
from train_step import NUM_CLASSES
from ullage.api.plan import network_of, tracing_images, tracing_step
from ullage.memory.trace import Setting, trace_step
from ullage.zoo.registry import MODELS

BATCH, IMGSZ, BOXES_PER_IMAGE = 16, 640, 20
TARGETS = {"recompute": 0.35, "block": 0.25, "nested": 0.20, IN_PARTS: 0.20}  # of what is kept, yolov12s


def combinations() -> list[Record]:
    """Return what is traced."""
    return [{"model": model, "precision": precision} for precision in ("float32", "bf16") for model in MODELS]


def measure(key: Record, options: Any) -> Record:
    """Trace a network under every technique."""
    network = network_of(key["model"], num_classes=NUM_CLASSES)
    step = tracing_step(BOXES_PER_IMAGE * BATCH, BATCH)
    setting = Setting(precision=key["precision"], optimizer="SGD", average=True)
    kept, peaks = {}, {}
    for technique in TECHNIQUES:
        trace = trace_step(
            step, network, tracing_images(BATCH, IMGSZ), setting=setting,
            techniques=parsed(techniques_of(network, technique)),
        )  # fmt: skip
        kept[technique], peaks[technique] = sum(trace.kept.values()), trace.ledger.peak().nbytes
    return {"kept": kept, "peak": peaks}


def line(record: Record) -> str:
    """Return one network in one line."""
    kept, peak = record["kept"], record["peak"]
    ratios = ", ".join(f"{t} {kept[t] / kept['none']:.3f} / {peak[t] / peak['none']:.3f}" for t in TECHNIQUES[1:])
    case = Case(record["model"], BATCH, IMGSZ, record["precision"])
    return (
        f"{case}: plain keeps {kept['none'] / 1e9:.2f} GB, peak {peak['none'] / 1e9:.2f} GB; kept / peak against it: "
        f"{ratios}"
    )


def summary(records: Sequence[Record]) -> str:
    """Return the range of what is kept, and the requirements."""
    parts = []
    for technique in TECHNIQUES[1:]:
        ratios = [record["kept"][technique] / record["kept"]["none"] for record in records]
        parts.append(f"{technique} {min(ratios):.3f} to {max(ratios):.3f}")
    chosen = next((r for r in records if (r["model"], r["precision"]) == ("yolov12s", "float32")), None)
    text = f"{len(records)} networks, kept: {', '.join(parts)}"
    if chosen is None:
        return text
    verdicts = [
        f"{technique} {chosen['kept'][technique] / chosen['kept']['none']:.4f} <= {limit}: "
        f"{'yes' if chosen['kept'][technique] <= limit * chosen['kept']['none'] else 'NO'}"
        for technique, limit in TARGETS.items()
    ]
    return f"{text}; yolov12s float32: {', '.join(verdicts)}"
