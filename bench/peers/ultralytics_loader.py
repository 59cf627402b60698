"""Run Ultralytics' training loader on one data set and print images a second for each round that is asked for.

Run with the Python of the peer's own environment (see README.md). It reads one line a round from its input, makes a few
epochs of batches, and answers with one line of JSON. The data set must lie in a folder that may be written to: the peer
keeps a cache file beside the labels.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from process_memory import children_memory
from separate_program import prepare

EPOCHS_A_ROUND = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the YAML of a YOLO data set")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--mosaic", type=float, default=1.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peer-loader-") as folder:
        answers = prepare(Path(folder), threads=1)
        loader, program = build(options)
        for _ in loader:  # the first epoch starts the processes and fills what the peer keeps
            pass
        print(json.dumps({"program": program}), file=answers, flush=True)
        for _ in sys.stdin:
            # The first epoch is not timed: its first batches were made ahead, while the other side was measured.
            untimed = sum(len(batch["img"]) for batch in loader)
            images, began = 0, time.perf_counter()
            for _ in range(EPOCHS_A_ROUND):
                for batch in loader:
                    images += len(batch["img"])
            speed = images / (time.perf_counter() - began)
            answer = {"speed": speed, "images": untimed + images, "workers": children_memory()}
            print(json.dumps(answer), file=answers, flush=True)


def build(options: argparse.Namespace) -> tuple[Any, str]:
    """Build the loader as the peer's trainer does, through its documented functions."""
    from ultralytics import __version__, settings  # pyright: ignore[reportMissingImports]
    from ultralytics.cfg import get_cfg  # pyright: ignore[reportMissingImports]
    from ultralytics.data import build_dataloader, build_yolo_dataset  # pyright: ignore[reportMissingImports]
    from ultralytics.data.utils import check_det_dataset  # pyright: ignore[reportMissingImports]

    settings.update({"sync": False})
    data = check_det_dataset(str(options.data))
    cfg = get_cfg(overrides={"imgsz": options.imgsz, "mosaic": options.mosaic, "workers": options.workers,
                             "task": "detect", "mode": "train", "cache": False})  # fmt: skip
    dataset = build_yolo_dataset(cfg, data["train"], options.batch, data, mode="train", rect=False, stride=32)
    loader = build_dataloader(dataset, batch=options.batch, workers=options.workers, shuffle=True, rank=-1)
    return loader, f"ultralytics {__version__}, python {platform.python_version()}"


if __name__ == "__main__":
    main()
