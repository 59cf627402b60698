"""Measure how fast ``ullage data check`` reads labels and decodes images.

    python bench/check.py [--labels 20000] [--images 400] [--rounds 5]

The first line is about a YOLO set of small files: finding them, reading labels with 7 boxes on average, looking at the
header and the end of each image, cleaning, and keeping the index. The second is about JPEGs of 640 x 480 pixels:
decoding each, its digest and the search for look-alikes, beside as many threads that only decode. Figures are medians
over the rounds; files come from memory, as they do when they were just copied.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from machine import busy_note, describe_machine, usable_cores
from ullage.data.check import check
from ullage.data.source import open_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, default=20_000, help="images of the set whose labels are read")
    parser.add_argument("--images", type=int, default=400, help="images of the set that is decoded")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{describe_machine(usable_cores())}; {busy_note() or 'idle otherwise'}")
    with tempfile.TemporaryDirectory(prefix="bench-check-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        data = make_set(Path(folder) / "labels", options.labels, size_hw=(48, 64))
        seconds = timed(lambda: open_anew(data), options.rounds)
        print(f"labels: {options.labels / seconds:,.0f} images/s, one process")
        data = make_set(Path(folder) / "images", options.images, size_hw=(480, 640))
        paths = sorted((data.parent / "images").iterdir())
        seconds, bare = timed(lambda: check(data), options.rounds), timed(lambda: decode(paths), options.rounds)
        print(f"images: {options.images / seconds:,.0f} images/s; decoding alone {options.images / bare:,.0f} images/s")


def timed(work: Callable[[], object], rounds: int) -> float:
    """Return the median seconds."""
    seconds: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def open_anew(data: Path) -> None:
    """Read a set as if for the first time."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    open_dataset(data, split="train")


def decode(paths: list[Path]) -> None:
    """Decode, and nothing else."""
    with ThreadPoolExecutor(4 * usable_cores()) as pool:
        list(pool.map(lambda path: cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR), paths))


def make_set(folder: Path, count: int, *, size_hw: tuple[int, int]) -> Path:
    """Write smoothed noise, each picture with a few boxes; every image differs by its comment."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    content = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (0, 0), 3))[1].tobytes()
    for number in range(count):
        comment = b"\xff\xfe" + (2 + 8).to_bytes(2, "big") + f"{number:08d}".encode()
        (folder / f"images/{number:08d}.jpg").write_bytes(content[:2] + comment + content[2:])
        boxes = rng.uniform(0.3, 0.6, (int(rng.integers(0, 15)), 4))
        lines = (f"{rng.integers(0, 80)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in boxes)
        (folder / f"labels/{number:08d}.txt").write_text("".join(lines), encoding="utf-8")
    names = ", ".join(f"class{number}" for number in range(80))
    (folder / "data.yaml").write_text(f"train: images\nnames: [{names}]\n", encoding="utf-8")
    return folder / "data.yaml"


if __name__ == "__main__":
    main()
