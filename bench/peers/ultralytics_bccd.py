"""Train Ultralytics' network on BCCD with its defaults and print what came out, as one line of JSON.

Run with the Python of the peer's own environment (see README.md). Everything it writes lies in a temporary folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bccd_files import write_yolo
from separate_program import prepare

TRACKERS = ("clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb", "neptune", "hub")
MAP, MAP50 = "metrics/mAP50-95(B)", "metrics/mAP50(B)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="BCCD, Pascal VOC layout")
    parser.add_argument("--predictions", type=Path, required=True, help="where the best checkpoint's detections go")
    parser.add_argument("--model", default="yolo11n")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, help="threads of a tensor operation; absent, the peer chooses")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the temporary folder goes, whoever stops us
    with tempfile.TemporaryDirectory(prefix="peer-bccd-") as folder:
        answers = prepare(Path(folder), threads=options.threads)
        print(json.dumps(measure(options, Path(folder))), file=answers, flush=True)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, judge the best checkpoint, keep its detections."""
    import torch
    from ultralytics import YOLO, __version__, settings  # pyright: ignore[reportMissingImports]

    settings.update({"sync": False} | {name: False for name in TRACKERS if name in settings})
    data = write_yolo(options.data.resolve(), folder / "bccd")

    threads: set[int] = set()
    network = YOLO(f"{options.model}.yaml")
    if options.threads is not None:  # training sets a number of its own (1 on two cores); put ours back each time
        for event in ("on_train_epoch_start", "on_val_start"):
            network.add_callback(event, lambda _: torch.set_num_threads(options.threads))
    network.add_callback("on_train_epoch_end", lambda _: threads.add(torch.get_num_threads()))
    common = {"data": str(data), "imgsz": options.imgsz, "batch": options.batch, "device": "cpu", "plots": False,
              "project": str(folder / "runs"), "exist_ok": True}  # fmt: skip
    began = time.perf_counter()
    network.train(**common, name="train", epochs=options.epochs, seed=options.seed, pretrained=False)
    train_seconds = time.perf_counter() - began

    run = folder / "runs" / "train"
    with (run / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    best = max(rows, key=lambda row: float(row[MAP]))

    judged = YOLO(str(run / "weights" / "best.pt")).val(**common, name="val", save_json=True)
    options.predictions.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "runs" / "val" / "predictions.json", options.predictions)
    return {
        "program": f"ultralytics {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "model": options.model,
        "seed": options.seed,
        "epochs": len(rows),
        "threads": sorted(threads),
        "train_seconds": train_seconds,
        "map": float(best[MAP]),
        "map50": float(best[MAP50]),
        "best_epoch": int(best["epoch"]),
        "checkpoint_map": float(judged.box.map),
        "checkpoint_map50": float(judged.box.map50),
    }


if __name__ == "__main__":
    main()
