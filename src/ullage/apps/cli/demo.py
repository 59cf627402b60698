"""``ullage demo``: from data that ships with the package to a saved picture, offline."""

from __future__ import annotations

from typing import Any

from ullage.apps.cli.watch import RunWatch
from ullage.config import PredictConfig, TrainConfig, ValConfig

DEMO_FIXED = ("data", "resume", "time", "single_cls", "classes", "val", "detach")
# Digits are not symmetric, hence no flips. With so few images, small steps are many steps: a nominal batch of one batch
# and a high rate reach in minutes, on two cores, what the settings for real data need hours for.
DEMO_SETTINGS: dict[str, Any] = {
    "model": "yolo11n",
    "data": "demo",
    "imgsz": 192,
    "batch": 16,
    "nbs": 16,
    "epochs": 24,
    "close_mosaic": 6,
    "optimizer": "AdamW",
    "lr0": 0.003,
    "momentum": 0.9,
    "fliplr": 0.0,
    "name": "demo",
}


def run_demo(config: TrainConfig, watch: RunWatch) -> None:
    """Train on ``demo``, judge the best weights, find digits in a picture and save it.

    Args:
        config: The settings of the training.
        watch: Hears the events of the run.

    Raises:
        UllageError: Something failed.
    """
    from ullage import api
    from ullage.data.source import open_dataset

    print("1 of 3: train on the demo data")
    result = api.train(config, listeners=[watch])
    sizes = config.data.imgsz
    imgsz = sizes if isinstance(sizes, int) else sizes[1]
    shared = {"model": str(result.best), "imgsz": imgsz, "device": config.device.device, "project": str(result.run_dir)}

    print("2 of 3: judge the best weights on the validation images")
    metrics = api.val(ValConfig.load({**shared, "data": "demo", "name": "val", "workers": config.loader.workers}))
    print(metrics)

    print("3 of 3: find digits in a validation image")
    picture = open_dataset("demo", split="val").paths[0]
    prediction = api.predict(PredictConfig.load({**shared, "source": picture, "save": True, "name": "predict"}))
    for found in prediction:
        print(f"{found.path}: {found}")
    print(f"picture saved in {prediction.save_dir}")
    print(f"results in {result.run_dir}")
    print(f"mAP50 {metrics.box.map50:.3f}  mAP50-95 {metrics.box.map:.3f}")
