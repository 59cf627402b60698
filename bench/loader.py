"""Measure how many training images a second the loader makes, alone or beside the peer's loader.

    python bench/loader.py [--data bccd/data.yaml] [--workers 0] [--cache False|ram|disk] [--rounds 5]
    python bench/loader.py growth [--data ...] [--workers 2] [--rounds 20]
    python bench/loader.py peer [--data ../shared/data/coco128/data.yaml ...] [--workers 1 2] [--copies 1] [--rounds 7]

Alone, it prints images a second at 320 and 640 pixels, with and without mosaic, and where the time went. Without
``--data`` it reads 64 JPEGs of 640 x 480 pixels that it makes in a temporary folder: smoothed noise, which costs about
as much to decode as photographs do.

Beside the peer, both loaders run as programs of their own (see peers/README.md) on one copy of the data set; they are
asked in turn for an epoch that is not timed, because its first batches were made ahead, and two that are. A ratio is a
median over the rounds. A second ratio is that of the processor time that the workers take for an image, which tells the
same on a machine that does other things, too. Of a worker's memory three figures are given, each the largest of all
workers and rounds: the share (what several processes share is divided among them), what it holds alone, and its peak
resident size, in which shared memory counts in full for each of them. ``--copies`` makes a larger set of copies of the
images under other names, so that neither side keeps all of it in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from machine import busy_note, describe_machine, peer_python
from peers.process_memory import children_memory, own_memory
from ullage.config.augment import AugmentSettings
from ullage.data.index import DetectionSet
from ullage.data.loader import TrainLoader, default_workers
from ullage.data.source import open_dataset

IMAGES, SIZE_HW, BOXES_AN_IMAGE = 64, (480, 640), 14
BATCH = 16
PAUSE_SECONDS = 3.0
DATA = ("../shared/data/coco128/data.yaml", "../shared/data/aquarium/data.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("alone", "growth", "peer", "answer"), default="alone")
    parser.add_argument("--data", nargs="+", help="data sets; their training images are read")
    parser.add_argument("--workers", type=int, nargs="+")
    parser.add_argument("--cache", choices=["False", "ram", "disk"], default="False")
    parser.add_argument("--mosaic", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--imgsz", type=int, nargs="+")
    parser.add_argument("--rounds", type=int, default=5, help="epochs that are measured")
    parser.add_argument("--copies", type=int, default=1, help="make the set this many times as large")
    parser.add_argument("--peer-python", help="Python of the peer's environment")
    options = parser.parse_args()
    if options.what == "peer" and options.rounds < 2:
        parser.error("peer needs two rounds or more")
    if options.what == "answer":
        answer(options)
        return
    print(f"{describe_machine(1)}; {busy_note() or 'idle otherwise'}")
    {"alone": measure_alone, "growth": measure_growth, "peer": measure_beside_peer}[options.what](options)


def measure_alone(options: argparse.Namespace) -> None:
    """Print a line for each size, with and without mosaic."""
    (workers,) = options.workers or [default_workers("cpu")]
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_images(Path(folder)) if not options.data else open_dataset(options.data[0], split="train")
        for imgsz in options.imgsz or (320, 640):
            for mosaic in options.mosaic:
                loader = _loader(dataset, options, imgsz=imgsz, mosaic=mosaic, workers=workers)
                speeds = [_epoch(loader, epoch) for epoch in range(options.rounds + 1)][1:]
                print(
                    f"loader imgsz={imgsz} mosaic={mosaic:g} workers={workers} cache={options.cache}: "
                    f"{statistics.median(speeds):.0f} images/s; {loader.spent()}"
                )
                loader.close()


def measure_growth(options: argparse.Namespace) -> None:
    """Print the memory of the loader's processes and of this one after three epochs and after the last."""
    (workers,) = options.workers or [2]
    (data,) = options.data or DATA[:1]
    loader = _loader(open_dataset(data, split="train"), options, imgsz=640, mosaic=1.0, workers=workers)
    seen: list[tuple[int, int]] = []
    for epoch in range(options.rounds):
        _epoch(loader, epoch)
        seen.append((own_memory(), sum(worker["own"] for worker in children_memory())))
    loader.close()
    (here, there), (last_here, last_there) = seen[min(2, len(seen) - 1)], seen[-1]
    print(
        f"memory after 3 and after {options.rounds} epochs, {workers} workers: this process {here / 1e6:.1f} and "
        f"{last_here / 1e6:.1f} MB, its workers together {there / 1e6:.1f} and {last_there / 1e6:.1f} MB"
    )


def answer(options: argparse.Namespace) -> None:
    """Make an epoch for each line of input and answer with one line of JSON, as the peer's program does."""
    (data,), (workers,), (mosaic,), (imgsz,) = options.data, options.workers, options.mosaic, options.imgsz
    dataset = open_dataset(data, split="train")
    loader = _loader(dataset, options, imgsz=imgsz, mosaic=mosaic, workers=workers)
    _epoch(loader, 0)
    print(json.dumps({"program": "ullage"}), flush=True)
    for epoch, _ in enumerate(sys.stdin, 1):
        # The first epoch is not counted: its first batches were made ahead, while the other side was measured.
        speeds = [_epoch(loader, epoch * 3 + part) for part in range(3)]
        answer = {
            "speed": statistics.harmonic_mean(speeds[1:]),
            "images": 3 * len(dataset),
            "workers": children_memory(),
        }
        print(json.dumps(answer), flush=True)
    print(loader.spent(), file=sys.stderr)
    loader.close()


def measure_beside_peer(options: argparse.Namespace) -> None:
    """Print a line for each data set, number of workers, with and without mosaic: ours, the peer's, the ratio."""
    python = peer_python(options.peer_python)
    for data in options.data or DATA:
        with tempfile.TemporaryDirectory(prefix="bench-loader-") as folder:
            copied = copy_set(Path(data), Path(folder), copies=options.copies)
            for workers in options.workers or (1, 2):
                for mosaic in options.mosaic:
                    for imgsz in options.imgsz or (640,):
                        case = {"data": str(copied), "imgsz": imgsz, "workers": workers, "mosaic": mosaic}
                        name = f"{Path(data).parent.name} x{options.copies} imgsz={imgsz} workers={workers} "
                        print(name + f"mosaic={mosaic:g}: " + compare(case, python, options.rounds), flush=True)


def compare(case: dict[str, Any], python: Path, rounds: int) -> str:
    """Ask both programs in turn; return what came out, in words."""
    here = Path(__file__).resolve().parent
    flags = [word for key, value in case.items() for word in (f"--{key}", str(value))]
    ours = Answering([sys.executable, str(here / "loader.py"), "answer", *flags])
    theirs = Answering([str(python), str(here / "peers" / "ultralytics_loader.py"), *flags], errors=subprocess.DEVNULL)
    with ours, theirs:
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for _ in range(rounds):
            answers = []
            for side in (ours, theirs):
                time.sleep(PAUSE_SECONDS)  # until the other side has made ahead what it makes ahead
                answers.append(side.ask())
            pairs.append((answers[0], answers[1]))
    ratios = sorted(a["speed"] / b["speed"] for a, b in pairs)
    speeds = [statistics.median(pair[side]["speed"] for pair in pairs) for side in (0, 1)]
    (peak, their_peak), (share, their_share), (own, their_own) = (
        [max(worker[kind] for pair in pairs for worker in pair[side]["workers"]) / 1e6 for side in (0, 1)]
        for kind in ("peak", "share", "own")
    )
    cpu, their_cpu = (cpu_ms_an_image([pair[side] for pair in pairs]) for side in (0, 1))
    return (
        f"{statistics.median(ratios):.2f} times the peer's images/s (rounds {ratios[0]:.2f} to {ratios[-1]:.2f}; "
        f"{speeds[0]:.0f} and {speeds[1]:.0f}), {their_cpu / cpu:.2f} times as many for the workers' processor time "
        f"({cpu:.1f} and {their_cpu:.1f} ms an image); a worker's share of the memory {share:.0f} and "
        f"{their_share:.0f} MB, of its own {own:.0f} and {their_own:.0f} MB, peak with all that is shared {peak:.0f} "
        f"and {their_peak:.0f} MB"
    )


def cpu_ms_an_image(answers: list[dict[str, Any]]) -> float:
    """Return the processor time of all workers for an image; other programs on the machine hardly change it."""
    first, last = (sum(worker["cpu_ms"] for worker in answer["workers"]) for answer in (answers[0], answers[-1]))
    return (last - first) / sum(answer["images"] for answer in answers[1:])


class Answering:
    """A program that makes an epoch for each line that it is sent."""

    def __init__(self, command: list[str], *, errors: int | None = None) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=environment,
        )  # fmt: skip
        self.program = self._read()["program"]

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def ask(self) -> dict[str, Any]:
        """Have it make one epoch."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended without an answer; run it by hand to see why")
        return json.loads(line)


def copy_set(data: Path, folder: Path, *, copies: int) -> Path:
    """Copy a YOLO data set, its images several times under other names; return the YAML. The peer writes beside it."""
    for part, suffix in (("images", ".jpg"), ("labels", ".txt")):
        (folder / part).mkdir()
        for path in sorted((data.parent / part).rglob(f"*{suffix}")):
            for number in range(copies):
                shutil.copyfile(path, folder / part / f"{number}_{path.name}")
    settings = yaml.safe_load(data.read_text(encoding="utf-8"))
    settings |= {"path": str(folder), "train": "images", "val": "images"}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder / "data.yaml"


def _loader(
    dataset: DetectionSet, options: argparse.Namespace, *, imgsz: int, mosaic: float, workers: int
) -> TrainLoader:
    return TrainLoader(
        dataset,
        batch=BATCH,
        imgsz=imgsz,
        augment=AugmentSettings(mosaic=mosaic, close_mosaic=0),
        workers=workers,
        cache=False if options.cache == "False" else options.cache,
    )


def _epoch(loader: TrainLoader, epoch: int) -> float:
    """Return images a second."""
    began = time.perf_counter()
    images = sum(len(batch.indices) for batch in loader.epoch(epoch, epochs=10**6))
    return images / (time.perf_counter() - began)


def make_images(folder: Path) -> DetectionSet:
    """Write JPEGs with boxes at random places."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{i:03d}.jpg" for i in range(IMAGES)]
    for path in paths:
        noise = rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 2), [cv2.IMWRITE_JPEG_QUALITY, 90])
    count = IMAGES * BOXES_AN_IMAGE
    corners = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(10, 80, (count, 2))), 1).astype(np.float32)
    return DetectionSet(
        names=("thing",),
        paths=tuple(map(str, paths)),
        sizes_hw_I2=np.full((IMAGES, 2), SIZE_HW, np.int32),
        offsets=np.arange(IMAGES + 1, dtype=np.int64) * BOXES_AN_IMAGE,
        boxes_xyxy_px_N4=boxes,
        class_ids_N=np.zeros(count, np.int32),
        crowd_N=np.zeros(count, bool),
        image_ids=tuple(range(IMAGES)),
        category_ids=(0,),
    )


if __name__ == "__main__":
    main()
