"""Measure the index of a large data set: how much memory it takes, and how fast it opens.

    python bench/index.py [--images 1000000] [--boxes 10] [--files 20000]

The first line is about a made-up set of a million images and ten million boxes: the columns, the file, the time to open
it, and what two processes that look at every image take of their own. The second reads a set of real label files, keeps
its index, and opens it again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from machine import describe_machine
from ullage.data.index import DetectionSet
from ullage.data.index_cache import load_index, save_index
from ullage.data.packed import Numbers, Texts
from ullage.data.source import open_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--boxes", type=int, default=10, help="boxes an image")
    parser.add_argument("--files", type=int, default=20_000, help="images of the set with real label files; 0 skips it")
    options = parser.parse_args()
    print(describe_machine(1))
    with tempfile.TemporaryDirectory(prefix="bench-index-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        measure_made_up(Path(folder), options.images, options.boxes)
        if options.files:
            measure_files(Path(folder) / "set", options.files)


def measure_made_up(folder: Path, images: int, boxes: int) -> None:
    """Print memory and seconds of a made-up index."""
    file = folder / "made_up.index"
    made = make_index(images, boxes)
    columns = index_bytes(made)
    save_index(file, made, whole=[], others=[])
    del made
    before = own_bytes()
    began = time.perf_counter()
    dataset = load_index(file)
    seconds = time.perf_counter() - began
    assert dataset is not None
    opened = own_bytes() - before
    with multiprocessing.get_context("fork").Pool(2, _keep, (dataset,)) as pool:
        grown = pool.map(_look, [0, 1], chunksize=1)
    print(
        f"index {images:,} images, {len(dataset.class_ids_N):,} boxes: columns {columns / 1e6:.0f} MB, file "
        f"{file.stat().st_size / 1e6:.0f} MB, opened in {seconds:.2f} s with {opened / 1e6:.0f} MB of its own; each of "
        f"two processes that looked all over it took {max(grown) / 1e6:.0f} MB of its own"
    )


def measure_files(folder: Path, count: int) -> None:
    """Print how long a set of real files takes to read, and to open again."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    picture = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    label = "0 0.5 0.5 0.2 0.2\n" * 10
    for number in range(count):
        (folder / f"images/{number:07d}.jpg").write_bytes(picture)
        (folder / f"labels/{number:07d}.txt").write_text(label.replace("0.2", f"0.{number % 8 + 1}", 1))
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    times = []
    for _ in range(2):
        began = time.perf_counter()
        open_dataset(folder / "data.yaml", split="train")
        times.append(time.perf_counter() - began)
    print(f"{count:,} images with label files: read in {times[0]:.2f} s, opened again in {times[1]:.2f} s")


def make_index(images: int, boxes: int) -> DetectionSet:
    """Make up an index; names and paths are as long as COCO's."""
    rng = np.random.default_rng(0)
    count = images * boxes
    corners = rng.uniform(0, 400, (count, 2)).astype(np.float32)
    return DetectionSet(
        names=tuple(map(str, range(80))),
        paths=Texts.of(f"/data/coco/images/train2017/{number:012d}.jpg" for number in range(images)),
        sizes_hw_I2=np.full((images, 2), (480, 640), np.int32),
        offsets=np.arange(images + 1, dtype=np.int64) * boxes,
        boxes_xyxy_px_N4=np.concatenate((corners, corners + 50), 1),
        class_ids_N=rng.integers(0, 80, count, dtype=np.int32),
        crowd_N=np.zeros(count, bool),
        image_ids=Numbers(np.arange(images)),
        category_ids=tuple(range(80)),
    )


def index_bytes(dataset: DetectionSet) -> int:
    """Return the memory of all columns."""
    arrays = (dataset.sizes_hw_I2, dataset.offsets, dataset.boxes_xyxy_px_N4, dataset.class_ids_N, dataset.crowd_N)
    packed = [each.nbytes() for each in (dataset.paths, dataset.image_ids) if not isinstance(each, tuple)]
    return sum(array.nbytes for array in arrays) + sum(packed)


def own_bytes() -> int:
    """Return the memory that this process alone holds."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines())
    fields = {words[0]: int(words[1]) for words in lines if len(words) == 3}
    return 1024 * (fields["Private_Clean:"] + fields["Private_Dirty:"])


_kept: list[Any] = []


def _keep(dataset: DetectionSet) -> None:
    _kept.append(dataset)


def _look(_: int) -> int:
    (dataset,) = _kept
    before, boxes = own_bytes(), 0
    for index in range(0, len(dataset), 7):
        boxes += len(dataset.labels(index)) + len(dataset.paths[index])
    time.sleep(0.5)  # so that each process gets one of the two
    return max(own_bytes() - before, 0)


if __name__ == "__main__":
    main()
