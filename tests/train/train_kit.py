"""A detector small enough to train in milliseconds, and the pieces of a run around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ullage.config import OptimSettings
from ullage.geometry.targets import Targets
from ullage.losses.detection import DetectionLoss
from ullage.memory import Estimate, Plan
from ullage.nn.detector import Detector
from ullage.nn.head import DetectHead
from ullage.nn.layers import ConvUnit, unit_range
from ullage.nn.outputs import RawDetections
from ullage.train.frugal import PlannedMemory
from ullage.train.keeping import Keeping
from ullage.train.loop import Limits, Trainer
from ullage.train.optim import MovingAverage, make_optimiser
from ullage.train.precision import Precision
from ullage.train.schedule import OptimChoice, Schedule
from ullage.train.state import TrainState
from ullage.zoo.checkpoint_file import write_checkpoint

CLASSES = 2


class TinyDetector(Detector):
    """Three levels, a few thousand parameters."""

    block_names: ClassVar[dict[int, str]] = {0: "stem", 1: "down4", 2: "down5", 3: "head"}

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvUnit(3, 8, 3, 2), ConvUnit(8, 8, 3, 2), ConvUnit(8, 8, 3, 2))
        self.down4 = ConvUnit(8, 8, 3, 2)
        self.down5 = ConvUnit(8, 8, 3, 2)
        self.head = DetectHead(CLASSES, (8, 8, 8))

    def forward(self, images_B3HW: torch.Tensor) -> RawDetections:
        p3 = self.stem(unit_range(images_B3HW))
        p4 = self.down4(p3)
        return self.head((p3, p4, self.down5(p4)))


class NoisyDetector(TinyDetector):
    """The same with dropout: what it computes depends on the random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def forward(self, images_B3HW: torch.Tensor) -> RawDetections:
        p3 = self.drop(self.stem(unit_range(images_B3HW)))
        p4 = self.drop(self.down4(p3))
        return self.head((p3, p4, self.down5(p4)))


def plain_plan(batch: int, *, blocks: dict[str, str] | None = None, micro_batch: int | None = None) -> Plan:
    """A plan as it is made without a budget, with a prediction of 1.23 MB."""
    size = batch if micro_batch is None else micro_batch
    return Plan(
        batch=batch, micro_batch=size, accumulate=-(-batch // size), blocks=blocks or {}, precision=None,
        predicted=Estimate(1_230_000, 1_230_000, 1_230_000, 0, {}, {}, "backward", "", "cpu"), slowdown=1.0,
        fidelity="bitwise", fidelity_note="",
    )  # fmt: skip


@dataclass(frozen=True)
class MemoryBatch:
    images_BCHW: torch.Tensor
    targets: Targets
    indices: tuple[int, ...]


def make_images(count: int, *, side: int = 64, seed: int = 0, boxes_up_to: int = 4) -> MemoryBatch:
    """Noise with bright squares; the first image shows nothing."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 3, side, side), generator=random, dtype=torch.uint8)
    rows = []
    for image in range(1, count):
        for _ in range(int(torch.randint(1, boxes_up_to + 1, (), generator=random))):
            size = int(torch.randint(8, 32, (), generator=random))
            x, y = (int(v) for v in torch.randint(0, side - size, (2,), generator=random))
            kind = int(torch.randint(0, CLASSES, (), generator=random))
            images[image, kind, y : y + size, x : x + size] = 220
            rows.append((image, kind, x, y, x + size, y + size))
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    targets = Targets(table[:, 0].long(), table[:, 1].long(), table[:, 2:].contiguous(), count)
    return MemoryBatch(images, targets, tuple(range(count)))


def split(whole: MemoryBatch, sizes: list[int]) -> list[MemoryBatch]:
    """Cut a batch into smaller ones."""
    parts, start = [], 0
    for size in sizes:
        stop = start + size
        parts.append(
            MemoryBatch(whole.images_BCHW[start:stop], whole.targets.images(start, stop), whole.indices[start:stop])
        )
        start = stop
    return parts


@dataclass
class MemoryBatches:
    """The same batches every epoch."""

    batches: list[MemoryBatch]
    epochs_heard: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, *, epochs: int, start_batch: int = 0) -> Iterator[MemoryBatch]:
        self.epochs_heard.append(epochs)
        yield from self.batches[start_batch:]


def make_trainer(folder: Path, batches: list[MemoryBatch], **changes: Any) -> Trainer:
    """Put a run together; ``changes`` are settings of ``OptimSettings``, arguments of ``Trainer``, or a memory plan."""
    names = ("evaluate", "listeners", "frozen", "limits", "on_oom", "on_nan", "ranks", "name_image", "circle")
    arguments = {key: changes.pop(key) for key in names if key in changes}
    plan, kind = changes.pop("plan", None), changes.pop("kind", "SGD")
    network, precision = changes.pop("network", None), changes.pop("precision", Precision("cpu", None))
    settings = OptimSettings(**{"epochs": 2, "nbs": 8, "warmup_epochs": 0.0, **changes})
    if network is None:
        torch.manual_seed(0)
        network = TinyDetector()
    choice = OptimChoice(kind, settings.lr0, settings.momentum)
    schedule = Schedule(settings, choice, batches[0].images_BCHW.shape[0], len(batches))
    state = TrainState(
        network=network,
        average=MovingAverage(network),
        optimiser=make_optimiser(network, choice, schedule.weight_decay),
        scaler=precision.scaler(),
        identity={
            "model": {"name": "tiny", "num_classes": CLASSES},
            "names": ["a", "b"],
            "meta": {},
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        state,
        loss=DetectionLoss(num_classes=CLASSES),
        batches=MemoryBatches(batches),
        schedule=schedule,
        precision=precision,
        keeping=Keeping(folder, write_checkpoint),
        memory=PlannedMemory(network, plan) if plan is not None else None,
        **{
            "evaluate": None,
            "limits": Limits(epochs=settings.epochs),
            **arguments,
        },
    )


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything that the network holds."""
    return {key: value.clone() for key, value in network.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert different == []
