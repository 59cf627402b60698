"""One real training step of ours on a batch of our choice: its memory counted in two ways, its time, its prediction."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]

from peers.random_batch import random_batch
from peers.tensor_peak import TensorPeak
from train_step import NUM_CLASSES, make_trainer
from ullage.api.plan import network_of, tracing_images
from ullage.api.rehearsal import worst_batch
from ullage.data.batch import Batch
from ullage.geometry.boxes import cxcywh_to_xyxy
from ullage.geometry.targets import Targets
from ullage.losses.bound import Crowding, WorstCaseLoss
from ullage.memory import Estimate, Plan, Technique, apply_techniques, block_names, estimate
from ullage.memory.costs import parts_of
from ullage.nn.outputs import RawDetections, anchor_grid
from ullage.train.optim import set_training_mode
from ullage.train.precision import choose_precision

STRIDES = (8, 16, 32)
IN_PARTS = "nested in parts"
TECHNIQUES = ("none", "recompute", "block", "nested", IN_PARTS)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """What is trained."""

    model: str
    batch: int
    imgsz: int
    precision: str = "float32"

    def __str__(self) -> str:
        return f"{self.model} {self.batch} x {self.imgsz}px {self.precision}"


def techniques_of(network: nn.Module, name: str) -> dict[str, str]:
    """Return the technique of every block; ``nested in parts`` divides blocks as the planner may."""
    names = block_names(network)
    if name == IN_PARTS:
        return {part: "nested" for block in names for part in parts_of(network, block) or (block,)}
    return {} if name == "none" else dict.fromkeys(names, name)


def crowded_batch(case: Case, boxes_per_image: int) -> Batch:
    """Return noise with many boxes of all sizes, as a run's rehearsal takes it."""
    images, targets = worst_batch(case.batch, case.imgsz, boxes_per_image * case.batch, CPU)
    return Batch(images, targets, tuple(range(case.batch)))


def shared_batch(case: Case) -> tuple[Batch, str]:
    """Return the batch that the peer gets, too, and its fingerprint."""
    drawn = random_batch(images=case.batch, size=case.imgsz, num_classes=NUM_CLASSES)
    corners = cxcywh_to_xyxy(drawn.boxes_cxcywh_unit_G4 * case.imgsz)
    index, classes = torch.from_numpy(drawn.image_index_G), torch.from_numpy(drawn.class_ids_G)
    images = torch.from_numpy(drawn.images_BHW3).permute(0, 3, 1, 2)
    targets = Targets(index, classes, torch.from_numpy(corners), case.batch)
    return Batch(images, targets, tuple(range(case.batch))), drawn.fingerprint()


def predict(case: Case, batch: Batch, technique: str, device: str = "cpu") -> Estimate:
    """Predict the step from a trace without values; of the batch only its size and where its boxes lie are known."""
    network = network_of(case.model, num_classes=NUM_CLASSES)
    crowding = crowding_of(batch.targets, case.imgsz)

    def step(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        raw = network(images)
        return WorstCaseLoss(boxes=crowding.boxes, crowding=crowding)(raw)

    return estimate(
        step, network, tracing_images(case.batch, case.imgsz), optimizer="SGD", average=True, device=device,
        technique=techniques_of(network, technique), precision=case.precision,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def crowding_of(targets: Targets, imgsz: int) -> Crowding:
    """Return what the loss's memory depends on for boxes that are known."""
    with _disable_current_modes():
        centres, strides = anchor_grid([(imgsz // stride, imgsz // stride) for stride in STRIDES], STRIDES, CPU)
        outputs = torch.empty(targets.batch_size, len(strides), 1)
        return Crowding.of(targets.to(CPU), RawDetections(outputs, outputs, centres, strides))


class RealStep:
    """Steps of our trainer, weights, momentum and moving average included, as real training takes them.

    Args:
        case: What is trained.
        batch: The same in every step.
        plan: A plan in force from the start; None for plain training.
        device: Where.
    """

    def __init__(self, case: Case, batch: Batch, *, plan: Plan | None = None, device: torch.device = CPU) -> None:
        torch.manual_seed(0)
        precision = choose_precision(device, False if case.precision == "float32" else case.precision)  # type: ignore[arg-type]
        self.batch = batch
        self.trainer = make_trainer(case.model, batch, precision, plan=plan, device=device)
        self.network = self.trainer.state.network
        set_training_mode(self.network, ())

    def __call__(self) -> float:
        """Run one step; return its seconds."""
        began = time.perf_counter()
        self.trainer.step([self.batch], self.trainer.state.position)
        return time.perf_counter() - began

    @contextlib.contextmanager
    def under(self, technique: str) -> Generator[None]:
        """Put a technique in force."""
        with apply_techniques(self.network, parsed(techniques_of(self.network, technique))):
            yield

    def standing(self) -> list[torch.Tensor]:
        """Return what is there between two steps."""
        state, targets = self.trainer.state, self.batch.targets
        networks = [t for n in (state.network, state.average.network) for t in (*n.parameters(), *n.buffers())]
        moments = [t for s in state.optimiser.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        kept = [t for value in vars(self.trainer.accumulate).values() if isinstance(value, list) for t in value]
        inputs = [self.batch.images_BCHW, targets.boxes_xyxy_px_G4, targets.class_ids_G, targets.image_index_G]
        return [*networks, *moments, *kept, *inputs]

    def peak_of_tensors(self) -> int:
        """Run a step; return the most bytes of live tensors, by a counter that knows nothing of our engine."""
        with TensorPeak(self.standing()) as peak:
            self()
        return peak.peak_bytes

    def peak_of_allocations(self) -> int:
        """Run a step; return the most bytes that the CPU's allocator had given out, by PyTorch's profiler."""
        standing = TensorPeak(self.standing()).standing_bytes
        with quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self()
        return standing + peak_of_events(profiler)


def parsed(techniques: Mapping[str, str]) -> dict[str, Technique]:
    """Read techniques by their names."""
    return {block: Technique.parse(name) for block, name in techniques.items()}


def peak_of_events(profiler: Any) -> int:
    """Return the highest level that a profile's allocations reach above where they began."""
    level = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


@contextlib.contextmanager
def quiet_stderr() -> Generator[None]:
    """Let nothing that C++ says through: the profiler names every block that it did not see being allocated."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
