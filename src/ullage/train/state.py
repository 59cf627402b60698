"""Everything that changes while training: with it, a run goes on as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from ullage.errors import WeightsError
from ullage.train.optim import MovingAverage, adopt_layouts

SCHEMA = 1


@dataclass
class Position:
    """Where the run is: the next batch to train on, and what the epoch has summed up so far."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    best_fitness: float = -1.0
    best_epoch: int = -1
    loss_sums: list[float] = field(default_factory=list)
    loss_steps: int = 0
    boxes: int = 0
    images: int = 0
    epoch_seconds: float = 0.0

    def add(self, losses: list[float], *, images: int, boxes: int) -> None:
        """Note what an optimiser step has seen, and its mean losses."""
        self.loss_sums = [a + b for a, b in zip(self.loss_sums or [0.0] * len(losses), losses, strict=True)]
        self.loss_steps += 1
        self.images += images
        self.boxes += boxes

    def begin_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch."""
        self.epoch, self.batch = epoch, 0
        self.loss_sums, self.loss_steps, self.boxes, self.images, self.epoch_seconds = [], 0, 0, 0, 0.0


@dataclass
class TrainState:
    """The live objects of a run.

    Attributes:
        network: Raw weights, float32.
        average: Moving average; this is what is judged and shared.
        optimiser: With its moments.
        scaler: Loss scaler for float16.
        identity: What the checkpoint says of itself: model name, classes, names, configuration, versions.
        position: Where the run is.
    """

    network: nn.Module
    average: MovingAverage
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    identity: Mapping[str, Any]
    position: Position = field(default_factory=Position)

    def payload(self, *, resumable: bool = True) -> dict[str, Any]:
        """Return the checkpoint: tensors and plain data that ``torch.load(weights_only=True)`` reads.

        Args:
            resumable: False leaves out what only a resume needs, for a small file to share.
        """
        shared = {
            "schema": SCHEMA,
            "kind": "ullage.checkpoint",
            **self.identity,
            "weights": dict(self.network.state_dict()) if resumable else dict(self.average.network.state_dict()),
            "ema": dict(self.average.network.state_dict()) if resumable else None,
        }
        if not resumable:
            return shared
        return {
            **shared,
            "train": {
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average_steps": self.average.steps,
                "position": vars(self.position).copy(),
                "random": random_state(),
            },
        }

    def restore(self, payload: Mapping[str, Any]) -> None:
        """Take everything over from a checkpoint.

        Raises:
            WeightsError: The file holds weights only, or does not fit this run.
        """
        if not payload.get("train"):
            raise WeightsError("this checkpoint holds weights only and cannot be resumed; resume from weights/last.pt")
        train = payload["train"]
        try:
            self.network.load_state_dict(payload["weights"])
            self.average.network.load_state_dict(payload["ema"])
            self.optimiser.load_state_dict(train["optimiser"])
            adopt_layouts(self.optimiser)
            self.scaler.load_state_dict(train["scaler"])
            self.average.steps = train["average_steps"]
            self.position = Position(**train["position"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"the checkpoint does not fit this run: {' '.join(str(error).split())[:300]}") from None
        set_random_state(train["random"])


def random_state() -> dict[str, Any]:
    """Return the state of every random generator that training may use, as plain data and tensors."""
    name, keys, index, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, np.int64)), int(index), int(has_gauss), float(gauss)],
        "python": [version, list(internal), gauss_next],
    }


def set_random_state(saved: Mapping[str, Any]) -> None:
    """Restore what ``random_state`` returned; generators of devices that are not here are left alone."""
    torch.set_rng_state(saved["torch"].cpu())
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["cuda"]])
    name, keys, index, has_gauss, gauss = saved["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), index, has_gauss, gauss))
    version, internal, gauss_next = saved["python"]
    random.setstate((version, tuple(internal), gauss_next))
