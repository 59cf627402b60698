"""Prediction without a GPU, data or memory against a real step, on the CPU.

``allocated`` is the level of the allocator, from the events of PyTorch's profiler: what is predicted. ``live`` counts
tensors as operators return them; what convolutions take for themselves is not among them. With a single thread PyTorch
computes 1 x 1 convolutions in another way, which copies whole maps: compare with two or more.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

from memory_step import TECHNIQUES, Case, RealStep, crowded_batch, predict
from records import Record
from ullage.units import format_bytes
from ullage.zoo.registry import MODELS

LIMIT, LOW = 0.03, -0.01  # required against the allocator: error of each prediction; how much too low it may be
BOXES_PER_IMAGE = 100  # what a plan without data assumes
BATCH_AT_320 = {"n": 16, "s": 8, "m": 4, "l": 2, "x": 2}
UNIFORM = TECHNIQUES[:4]
# Batch, size, precision, models and techniques beside the table at 320 px in float32.
MORE = (
    (4, 640, "float32", ("yolo11n", "yolov12n", "yolo12n"), UNIFORM),
    (2, 640, "float32", ("yolov12s", "yolo11s"), ("none", "nested")),
    (1, 320, "float32", ("yolo11n", "yolov12n"), ("none", "recompute")),
    (64, 160, "float32", ("yolov12n", "yolo11n"), ("none", "nested")),
    (32, 320, "float32", ("yolov12n",), ("recompute", "nested")),
    (4, 320, "bf16", ("yolo11n", "yolov12n", "yolo12n", "yolov12s"), UNIFORM),
    (1, 1280, "float32", ("yolov12n",), ("none", "nested")),
)


def combinations() -> list[Record]:
    """Return what is compared."""
    table = [(Case(model, BATCH_AT_320[model[-1]], 320), t) for model in MODELS for t in UNIFORM]
    table += [
        (Case(model, batch, imgsz, precision), technique)
        for batch, imgsz, precision, models, techniques in MORE
        for model in models
        for technique in techniques
    ]
    return [{**vars(case), "technique": technique} for case, technique in table]


def measure(key: Record, options: Any) -> Record:
    """Predict and measure one combination."""
    case, technique = Case(**{k: key[k] for k in ("model", "batch", "imgsz", "precision")}), key["technique"]
    batch = crowded_batch(case, BOXES_PER_IMAGE)
    predicted = predict(case, batch, technique)
    step = RealStep(case, batch)
    with step.under(technique):
        step()  # the optimiser's state is there from the second step on
        live = step.peak_of_tensors()
        allocated = step.peak_of_allocations()
    del step
    gc.collect()
    return {"predicted": predicted.peak_bytes, "live": live, "allocated": allocated, "phase": predicted.phase}


def error(record: Record, against: str) -> float:
    """Return the relative error of a prediction."""
    return record["predicted"] / record[against] - 1


def line(record: Record) -> str:
    """Return one combination in one line."""
    case = Case(record["model"], record["batch"], record["imgsz"], record["precision"])
    figures = ", ".join(
        f"{against} {format_bytes(record[against])} ({error(record, against):+.2%})"
        for against in ("live", "allocated")
    )
    return f"{case} {record['technique']}: predicted {format_bytes(record['predicted'])} ({record['phase']}), {figures}"


def summary(records: Sequence[Record]) -> str:
    """Return the worst errors in one line."""
    parts, errors = [f"{len(records)} combinations"], []
    for against in ("live", "allocated"):
        errors = [error(record, against) for record in records]
        parts.append(f"{against}: worst over {max(errors):+.2%}, worst under {min(errors):+.2%}")
    holds = max(errors) <= LIMIT and min(errors) >= LOW
    return f"{'; '.join(parts)}; allocated within {LOW:+.0%} to {LIMIT:+.0%}: {'yes' if holds else 'NO'}"
