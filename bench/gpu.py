"""Prediction and techniques on a GPU: what the allocator says, and step times. Needs a CUDA device.

    python bench/gpu.py
    python bench/gpu.py --models yolov12s --batch 16 --imgsz 640 --precision bf16

One line a technique: the predicted peak against ``max_memory_allocated``, the predicted reserve against
``max_memory_reserved``, and the median time of a step against plain training. Nothing else may use the device.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time

import torch

from memory_step import TECHNIQUES, Case, RealStep, crowded_batch, predict
from ullage.api.plan import BOXES_PER_IMAGE
from ullage.data.batch import Batch
from ullage.memory import Estimate
from ullage.units import format_bytes
from ullage.zoo.registry import MODELS

WARMUP = 3  # the optimiser's state, and cuDNN's choice of algorithms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["yolov12n", "yolov12s", "yolo11s"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--precision", choices=("float32", "bf16", "fp16"), default="fp16")
    parser.add_argument("--steps", type=int, default=7, help="timed steps")
    parser.add_argument("--device", type=int, default=0)
    options = parser.parse_args()
    if not torch.cuda.is_available() or options.device >= torch.cuda.device_count():
        raise SystemExit(
            f"bench/gpu.py needs CUDA device {options.device}; PyTorch {torch.__version__} finds "
            f"{torch.cuda.device_count()} here: nothing was measured"
        )
    device = torch.device("cuda", options.device)
    print(f"{torch.cuda.get_device_name(device)}; torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    worst = 0.0
    for model in options.models:
        case = Case(model, options.batch, options.imgsz, options.precision)
        batch, plain = crowded_batch(case, BOXES_PER_IMAGE), None
        for technique in TECHNIQUES:
            predicted = predict(case, batch, technique, device="cuda")
            allocated, reserved, seconds = measure(case, batch, technique, device, options.steps)
            plain = plain or seconds
            worst = max(worst, abs(predicted.peak_bytes / allocated - 1))
            print(line(case, technique, predicted, allocated, reserved, seconds / plain), flush=True)
    print(f"worst error of the predicted peak {worst:.1%}; the process's context and libraries are not compared")


def measure(case: Case, batch: Batch, technique: str, device: torch.device, steps: int) -> tuple[int, int, float]:
    """Return the most bytes allocated and reserved in a step, and the median of its seconds."""
    gc.collect()
    torch.cuda.empty_cache()
    step, seconds = RealStep(case, batch, device=device), []
    with step.under(technique):
        for _ in range(WARMUP):
            step()
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        for _ in range(steps):
            began = time.perf_counter()
            step()
            torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return *peaks, statistics.median(seconds)


def line(case: Case, technique: str, predicted: Estimate, allocated: int, reserved: int, slowdown: float) -> str:
    """Return one technique in one line."""

    def compared(name: str, actual: int, expected: int) -> str:
        return f"{name} {format_bytes(actual)}, predicted {format_bytes(expected)} ({expected / actual - 1:+.1%})"

    return (
        f"{case} {technique}: {compared('allocated', allocated, predicted.peak_bytes)}; "
        f"{compared('reserved', reserved, predicted.reserved_bytes)}; time x {slowdown:.2f}"
    )


if __name__ == "__main__":
    main()
