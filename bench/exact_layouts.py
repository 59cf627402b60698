"""One process of one layout: ten optimiser steps; leaves the weights, and the hash of every image it has seen."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ullage.api.run import Run
from ullage.api.start import begin
from ullage.api.train_checks import open_data
from ullage.config import TrainConfig
from ullage.train.optim import set_training_mode
from ullage.train.precision import choose_precision, rank_device
from ullage.train.ranks import joined

# name -> processes, images of a pass
LAYOUTS: dict[str, dict[str, tuple[int, int | None]]] = {
    "frozen": {
        "1 x 32": (1, None), "4 x 8": (1, 8), "32 x 1": (1, 1), "5 unequal": (1, 7), "2 proc. x 16": (2, None),
        "2 x (2 x 8)": (2, 8), "4 proc. x 8": (4, None), "3 proc.": (3, None),
    },
    "synchronised": {
        "1 x 32": (1, None), "2 proc. x 16": (2, None), "4 proc. x 8": (4, None), "1 x 32 nudged": (1, None),
    },
}  # fmt: skip
NUDGE = 1e-7  # about one bit in float32: what any other order of additions does to a weight


class Seen:
    """Training batches, of which every image and its boxes are hashed as they pass; ends after some steps."""

    def __init__(self, batches: Any, steps: int) -> None:
        self.batches, self.hashes, self.left = batches, {}, steps

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, epochs: int, start_batch: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch, as far as steps are left."""
        for batch in self.batches.epoch(epoch, epochs=epochs, start_batch=start_batch):
            if not self.left:
                return
            self.left -= 1
            for place, index in enumerate(batch.indices):
                boxes = batch.targets.images(place, place + 1)
                told = hashlib.sha256(batch.images_BCHW[place].contiguous().numpy().tobytes())
                told.update(boxes.boxes_xyxy_px_G4.numpy().tobytes() + boxes.class_ids_G.numpy().tobytes())
                self.hashes[f"{epoch} {index}"] = told.hexdigest()
            yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--norm", choices=list(LAYOUTS), required=True)
    parser.add_argument("--model", required=True, help="weights to start from")
    parser.add_argument("--imgsz", type=int, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--micro", type=int)
    parser.add_argument("--nudge", action="store_true", help="change every weight by one part in ten millions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {
        "model": options.model, "data": options.data, "imgsz": options.imgsz, "batch": options.batch,
        "nbs": options.batch, "micro_batch": options.micro, "epochs": 100, "optimizer": "SGD", "lr0": 0.01,
        "amp": False, "val": False, "plots": False, "verbose": False, "workers": 0, "device": "cpu",
        "project": str(options.folder), "name": "run", "exist_ok": True, "save_minutes": 0,
        "sync_bn": options.norm == "synchronised",
    }  # fmt: skip
    data = open_data(TrainConfig.load(settings))
    settings["fraction"] = min(options.images / len(data.train), 1.0)
    config = TrainConfig.load(settings)
    device = rank_device("cpu")
    with joined(device) as ranks, contextlib.ExitStack() as stack:
        start = ranks.from_main(begin(config, None) if ranks.is_main else None)
        torch.manual_seed(0)
        run = Run(start, open_data(config), device, choose_precision(device, False), ranks, stack)
        trainer = run.trainer(())
        if options.nudge:
            luck = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for p in trainer.state.network.parameters():
                    p.mul_(1 + NUDGE * torch.randn(p.shape, generator=luck))
        if options.norm == "frozen":
            trainer.frozen = [m for m in trainer.state.network.modules() if isinstance(m, nn.BatchNorm2d)]
            set_training_mode(trainer.state.network, trainer.frozen)
        trainer.batches = seen = Seen(trainer.batches, options.steps)
        position = trainer.state.position
        with trainer_stop() as stop:
            while seen.left:
                trainer.train_epoch(position, 0.0, stop)
                position.begin_epoch(position.epoch + 1)
        hashes = ranks.collect(seen.hashes)
        if ranks.is_main:
            torch.save(dict(trainer.state.network.state_dict()), options.folder / "weights.pt")
            merged = {key: value for one in hashes for key, value in one.items()}
            (options.folder / "seen.json").write_text(json.dumps(merged, sort_keys=True))


def trainer_stop() -> Any:
    """Return a stop request that nobody makes."""
    from ullage.train.interrupts import StopRequest

    return StopRequest()


def differences(one: Path, other: Path) -> tuple[float, float, bool]:
    """Compare two layouts.

    Returns:
        The distance of all weights and statistics, as a part of their length; the largest difference of one number, as
        a part of its tensor's largest; whether all images and boxes agree.
    """
    expected, got = (torch.load(folder / "weights.pt", weights_only=True) for folder in (one, other))
    pairs = [(value.double(), got[key].double()) for key, value in expected.items() if value.is_floating_point()]
    distance = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    length = sum(float(a.square().sum()) for a, _ in pairs) ** 0.5
    worst = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)
    return distance / length, worst, (one / "seen.json").read_text() == (other / "seen.json").read_text()


if __name__ == "__main__":
    main()
