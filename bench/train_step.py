"""Time a training step of ours against the peer's, step by step in turn, on the same numbers and the same cores.

    python bench/train_step.py --peer-python .venv-peer/bin/python

Ours is ``Trainer.step``, which real training runs: pixels to float, forward, loss, backward, clipping, optimiser,
moving average. The peer's is pixels to float, forward, loss, backward, optimiser. One side waits while the other
computes. One line a configuration; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from machine import busy_note, describe_machine, peer_python, usable_cores
from peers.random_batch import random_batch
from ullage.config import LossSettings, OptimSettings
from ullage.data.batch import Batch
from ullage.geometry.boxes import cxcywh_to_xyxy
from ullage.geometry.targets import Targets
from ullage.losses.detection import DetectionLoss
from ullage.memory import Plan
from ullage.train.frugal import PlannedMemory
from ullage.train.host_allocator import reusing_host_memory
from ullage.train.keeping import Keeping
from ullage.train.loop import Limits, Trainer
from ullage.train.optim import MovingAverage, make_optimiser, set_training_mode
from ullage.train.precision import Precision, choose_precision
from ullage.train.protocols import TrainBatch
from ullage.train.schedule import OptimChoice, Schedule
from ullage.train.state import Position, TrainState
from ullage.zoo.registry import build

PEER_PROGRAM = Path(__file__).parent / "peers" / "ultralytics_train_step.py"
PEER_MODEL = {"yolo11n": "yolo11n", "yolov12n": "yolo12n"}
NUM_CLASSES = 80
CPU = torch.device("cpu")
BATCHES_AN_EPOCH = 1000
PAUSE_SECONDS = 0.2  # after a side's step its threads spin for a moment before they sleep


@dataclass(frozen=True)
class Times:
    """Seconds of the timed steps."""

    ours: list[float]
    peer: list[float]

    def line(self) -> str:
        """Return medians, their ratio and the spread."""
        ours, peer = statistics.median(self.ours), statistics.median(self.peer)
        return (
            f"ours {ours:.3f} s, peer {peer:.3f} s, ratio {peer / ours:.2f}  "
            f"({len(self.ours)} steps each; ours {min(self.ours):.3f} to {max(self.ours):.3f}, "
            f"peer {min(self.peer):.3f} to {max(self.peer):.3f})"
        )


class SameBatch:
    """The ``Batches`` of a run whose every batch is the same."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return BATCHES_AN_EPOCH

    def epoch(self, epoch: int, *, epochs: int, start_batch: int = 0) -> Iterator[TrainBatch]:
        """Yield the batch for the rest of the epoch."""
        yield from [self.batch] * (BATCHES_AN_EPOCH - start_batch)


class OurStep:
    """Steps of our trainer on one batch."""

    def __init__(self, model: str, *, imgsz: int, batch: int, precision: Precision) -> None:
        torch.manual_seed(0)
        drawn = random_batch(images=batch, size=imgsz, num_classes=NUM_CLASSES)
        boxes_cxcywh_px_G4 = drawn.boxes_cxcywh_unit_G4 * imgsz
        targets = Targets(
            torch.from_numpy(drawn.image_index_G),
            torch.from_numpy(drawn.class_ids_G),
            torch.from_numpy(cxcywh_to_xyxy(boxes_cxcywh_px_G4)),
            batch,
        )
        images_BCHW = torch.from_numpy(drawn.images_BHW3).permute(0, 3, 1, 2)
        self.fingerprint = drawn.fingerprint()
        self.batch = Batch(images_BCHW, targets, tuple(range(batch)))
        self.trainer = make_trainer(model, self.batch, precision)
        self.parameters = sum(p.numel() for p in self.trainer.state.network.parameters())
        set_training_mode(self.trainer.state.network, ())

    def __call__(self) -> float:
        """Run one step; return its seconds."""
        began = time.perf_counter()
        self.trainer.step([self.batch], self.trainer.state.position)
        return time.perf_counter() - began


def make_trainer(
    model: str, batch: Batch, precision: Precision, *, plan: Plan | None = None, device: torch.device = CPU
) -> Trainer:
    """Put a trainer together as ``ullage train`` does, with SGD and the default settings."""
    settings, choice = OptimSettings(optimizer="SGD"), OptimChoice("SGD", 0.01, 0.937)
    network = build(model, num_classes=NUM_CLASSES)
    network = network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = len(batch.indices)
    schedule = Schedule(settings, choice, images, BATCHES_AN_EPOCH)
    state = TrainState(
        network=network,
        average=MovingAverage(network),
        optimiser=make_optimiser(network, choice, schedule.weight_decay),
        scaler=precision.scaler(),
        position=Position(),
        identity={},
    )
    return Trainer(
        state,
        loss=DetectionLoss.from_settings(LossSettings(), num_classes=NUM_CLASSES),
        batches=SameBatch(batch),
        evaluate=None,
        schedule=schedule,
        precision=precision,
        limits=Limits(epochs=settings.epochs),
        keeping=Keeping(Path(os.devnull), refuse_to_write),
        memory=None if plan is None else PlannedMemory(network, plan),
    )


def refuse_to_write(path: Path, payload: Mapping[str, Any]) -> None:
    """Stand where checkpoints are written; a single step writes none."""
    raise AssertionError(f"a timed step must not write '{path}' ({len(payload)} entries)")


class PeerStep:
    """Steps of the peer, in its own process; use it in a ``with`` block."""

    def __init__(self, python: Path, model: str, *, imgsz: int, batch: int, dtype: str, threads: int) -> None:
        sizes = ("--imgsz", str(imgsz), "--batch", str(batch), "--threads", str(threads), "--warmup", "0")
        command = [str(python), str(PEER_PROGRAM), "--serve", "--model", model, "--dtype", dtype, *sizes]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.facts = self._answer()

    def __enter__(self) -> PeerStep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def __call__(self) -> float:
        """Have it run one step; return its seconds."""
        return float(self._ask("step")["seconds"])

    def peak_bytes(self) -> int:
        """Have it run one step under the counter of live tensors; return the peak."""
        return int(self._ask("peak")["peak_bytes"])

    def _ask(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"the peer's program ended with status {self.process.wait()}; run it alone to see why: "
                f"{' '.join(map(str, self.process.args))}"  # pyright: ignore[reportArgumentType, reportCallIssue]
            )
        return json.loads(line)


def measure(model: str, precision: Precision, options: argparse.Namespace, python: Path) -> Times:
    """Time both sides in turn."""
    ours = OurStep(model, imgsz=options.imgsz, batch=options.batch, precision=precision)
    with (
        reusing_host_memory(torch.device("cpu")),  # as ``ullage train`` does
        PeerStep(
            python,
            PEER_MODEL[model],
            imgsz=options.imgsz,
            batch=options.batch,
            dtype=options.peer_dtype,
            threads=options.threads,
        ) as peer,
    ):
        if peer.facts["batch"] != ours.fingerprint or peer.facts["threads"] != torch.get_num_threads():
            raise SystemExit(f"the sides do not compute the same: {peer.facts}, ours {ours.fingerprint}")
        times = Times([], [])
        for number in range(options.warmup + options.steps):
            seconds = []
            for step in (ours, peer):
                seconds.append(step())
                time.sleep(PAUSE_SECONDS)
            if number >= options.warmup:
                times.ours.append(seconds[0])
                times.peer.append(seconds[1])
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PEER_MODEL), default=list(PEER_MODEL))
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads of a tensor operation, both sides")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=7, help="timed steps")
    parser.add_argument("--peer-dtype", choices=("float32", "bf16"), default="float32",
                        help="float32 is what the peer trains with on CPUs by default")  # fmt: skip
    parser.add_argument("--peer-python", help="Python of the peer's environment")
    options = parser.parse_args()
    python = peer_python(options.peer_python)
    torch.set_num_threads(options.threads)

    print(f"{describe_machine(options.threads)}; torch {torch.__version__}", flush=True)
    if note := busy_note():
        print(note, flush=True)
    device = torch.device("cpu")
    plain, best = choose_precision(device, False), choose_precision(device, True)
    for model in options.models:
        name = model if PEER_MODEL[model] == model else f"{model} (peer: {PEER_MODEL[model]}, its nearest)"
        sizes = f"{options.imgsz}px batch {options.batch}"
        times = measure(model, plain, options, python)
        print(f"{name} {sizes} float32: {times.line()}", flush=True)
        if best == plain:
            print(f"{name} {sizes} best precision: float32 is the best here, see above", flush=True)
            continue
        times = measure(model, best, options, python)
        print(f"{name} {sizes} {best.name} against {options.peer_dtype}: {times.line()}", flush=True)


if __name__ == "__main__":
    main()
