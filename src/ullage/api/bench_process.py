"""One format, measured in a process of its own: ``python -m ullage.api.bench_process``, JSON in, JSON out.

Alone in its process, the peak of its memory is its own.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from ullage.api.evaluate import evaluate
from ullage.api.exported import ExportedModel, open_model
from ullage.api.process_peak import peak_bytes
from ullage.config import EvalSettings
from ullage.data.decode import read_image
from ullage.data.loader import EvalLoader
from ullage.data.source import open_dataset
from ullage.errors import UllageError
from ullage.runtime.open_file import open_exported
from ullage.runtime.predictor import Predictor, TorchPredictor, precision_for, predict
from ullage.train.precision import choose_device

_IMAGES = 16
_LEAST_PASSES = 10
_JUDGED_BATCH = 8


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Measure one format.

    Args:
        order: ``file half device threads data split fraction size_hw batch conf warmup seconds``.

    Returns:
        ``passes``, ``latency_ms`` and ``network_ms`` (median, 95th, 99th percentile, of a pass), ``images_per_s``,
        ``peak_bytes`` (None where the system does not tell), ``map`` (None without data).
    """
    if order["threads"] is not None:
        torch.set_num_threads(order["threads"])
    size_hw, batch = (order["size_hw"][0], order["size_hw"][1]), order["batch"]
    dataset = open_dataset(order["data"] or "demo", split=order["split"], fraction=order["fraction"])
    images = [read_image(path) for path in dataset.paths[: max(_IMAGES, batch)]]
    predictor = _predictor(order)
    starts = cycle(range(len(images)))
    groups = ([images[(start + offset) % len(images)] for offset in range(batch)] for start in starts)
    for group in islice(groups, order["warmup"]):
        list(predict(predictor, source=group, imgsz=size_hw, batch=batch, conf=order["conf"]))
    passes_ms: list[float] = []
    networks_ms: list[float] = []
    end = time.perf_counter() + order["seconds"]
    while len(passes_ms) < _LEAST_PASSES or time.perf_counter() < end:
        start = time.perf_counter()
        found = list(predict(predictor, source=next(groups), imgsz=size_hw, batch=batch, conf=order["conf"]))
        passes_ms.append((time.perf_counter() - start) * 1000)
        networks_ms.append(found[0].speed["inference"] * batch)
    peak = peak_bytes()
    judged = None
    if order["data"] is not None:
        loader = EvalLoader(dataset, imgsz=max(size_hw), batch=_JUDGED_BATCH, rect=False, workers=0)
        try:
            judged = evaluate(predictor, batches=loader, dataset=dataset, settings=EvalSettings()).metrics.box.map
        finally:
            loader.close()
    return {
        "passes": len(passes_ms),
        "latency_ms": np.percentile(passes_ms, (50, 95, 99)).tolist(),
        "network_ms": np.percentile(networks_ms, (50, 95, 99)).tolist(),
        "images_per_s": batch * len(passes_ms) / sum(passes_ms) * 1000,
        "peak_bytes": peak,
        "map": judged,
        "threads": torch.get_num_threads(),
    }


def _predictor(order: dict[str, Any]) -> Predictor:
    model = open_model(order["file"])
    if isinstance(model, ExportedModel):
        device = None if order["device"] is None else str(choose_device(order["device"]))
        if order["threads"] is None or device not in (None, "cpu"):
            return model.on(order["device"])
        return open_exported(order["file"], device=device, threads=order["threads"])
    device = choose_device(order["device"])
    precision = precision_for(device, half=order["half"])
    return TorchPredictor(model.network, names=model.names, device=device, precision=precision)


def main() -> int:
    """Read an order from standard input, print what was measured as the last line, or what went wrong."""
    try:
        print(json.dumps({"measured": measure(json.load(sys.stdin))}))
    except UllageError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
