"""Measure how many training images a second the loader makes, with and without mosaic.

    python bench/loader.py [--data bccd/data.yaml] [--workers 0] [--cache False|ram|disk] [--seconds 5]

The first epoch fills caches and is not counted. Without ``--data`` it reads 64 JPEGs of 640 x 480 pixels that it makes
in a temporary folder: smoothed noise, which costs about as much to decode as photographs do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from machine import busy_note, describe_machine
from ullage.config.augment import AugmentSettings
from ullage.data.index import DetectionSet
from ullage.data.loader import TrainLoader, default_workers
from ullage.data.source import open_dataset

IMAGES, SIZE_HW, BOXES_AN_IMAGE = 64, (480, 640), 14
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a data set; its training images are read")
    parser.add_argument("--workers", type=int, default=default_workers("cpu"))
    parser.add_argument("--cache", choices=["False", "ram", "disk"], default="False")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each line is measured")
    arguments = parser.parse_args()
    print(f"{describe_machine(max(arguments.workers, 1))}; {busy_note() or 'idle otherwise'}")
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_images(Path(folder)) if arguments.data is None else open_dataset(arguments.data, split="train")
        for imgsz in (320, 640):
            for mosaic in (1.0, 0.0):
                loader = TrainLoader(
                    dataset,
                    batch=BATCH,
                    imgsz=imgsz,
                    augment=AugmentSettings(mosaic=mosaic, close_mosaic=0),
                    workers=arguments.workers,
                    cache=False if arguments.cache == "False" else arguments.cache,
                )
                speed = measure(loader, arguments.seconds)
                loader.close()
                print(
                    f"loader imgsz={imgsz} mosaic={mosaic:g} workers={arguments.workers} cache={arguments.cache}: "
                    f"{speed:.0f} images/s"
                )


def measure(loader: TrainLoader, seconds: float) -> float:
    """Return images a second, from the second epoch on."""
    for _ in loader.epoch(0, epochs=10**6):
        pass
    images, epoch, started = 0, 1, time.perf_counter()
    while time.perf_counter() - started < seconds:
        images += sum(len(batch.indices) for batch in loader.epoch(epoch, epochs=10**6))
        epoch += 1
    return images / (time.perf_counter() - started)


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
