"""Time training steps of an Ultralytics network: forward, its loss, backward, optimiser.

Run with the Python of the peer's own environment (see README.md). Without ``--serve`` it times ``--steps`` steps and
prints one line of JSON with their seconds. With ``--serve`` it first prints a line that says what it will time; each
line ``step`` on stdin then runs one step and answers with its seconds, ``peak`` runs one and answers with the most
bytes of tensors that were alive (weights, optimiser and batch included), and the end of stdin (or ``quit``) brings the
line with all seconds. Between steps it waits and computes nothing.

The step is what users write with the public interface: no gradient clipping and no moving average, which our own timed
step has.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from random_batch import random_batch
from separate_program import prepare

NUM_CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolo11n")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="bf16 means autocast")
    parser.add_argument("--threads", type=int, required=True, help="threads of a tensor operation")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=5, help="timed steps without --serve")
    parser.add_argument("--serve", action="store_true", help="run a step for every line 'step' on stdin")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="peer-step-") as folder:
        answers = prepare(Path(folder), threads=options.threads)
        step, standing, facts = make_step(options)

        def answer(content: dict[str, Any]) -> None:
            print(json.dumps(content), file=answers, flush=True)

        for _ in range(options.warmup):
            step()
        seconds: list[float] = []
        if options.serve:
            answer(facts)
            for line in sys.stdin:
                if line.strip() == "step":
                    seconds.append(step())
                    answer({"seconds": seconds[-1]})
                elif line.strip() == "peak":
                    answer({"peak_bytes": peak_of(step, standing())})
                else:
                    break
        else:
            seconds = [step() for _ in range(options.steps)]
        answer({**facts, "seconds": seconds})


def peak_of(step: Callable[[], float], standing: list[Any]) -> int:
    """Run a step under the neutral counter."""
    from tensor_peak import TensorPeak

    with TensorPeak(standing) as peak:
        step()
    return peak.peak_bytes


def make_step(options: argparse.Namespace) -> tuple[Callable[[], float], Callable[[], list[Any]], dict[str, Any]]:
    """Build network and batch; return the step, which returns its seconds, what stands in memory, and what it is."""
    import torch
    from ultralytics import YOLO, __version__  # pyright: ignore[reportMissingImports]
    from ultralytics.cfg import get_cfg  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = YOLO(f"{options.model}.yaml").model.train()
    network.args = get_cfg()  # the loss reads its gains from here; these are the defaults
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=1e-4, momentum=0.937, nesterov=True, weight_decay=5e-4)

    drawn = random_batch(images=options.batch, size=options.imgsz, num_classes=NUM_CLASSES)
    images = torch.from_numpy(drawn.images_BHW3).permute(0, 3, 1, 2).contiguous()
    labels = {
        "cls": torch.from_numpy(drawn.class_ids_G).float()[:, None],
        "bboxes": torch.from_numpy(drawn.boxes_cxcywh_unit_G4),
        "batch_idx": torch.from_numpy(drawn.image_index_G).float(),
    }

    def step() -> float:
        began = time.perf_counter()
        pixels = images.float() / 255
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.dtype == "bf16"):
            loss, _ = network({"img": pixels, **labels})
        loss.sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        return time.perf_counter() - began

    def standing() -> list[Any]:
        moments = [value for state in optimiser.state.values() for value in state.values()]
        return [*network.parameters(), *network.buffers(), *moments, images, *labels.values()]

    return (
        step,
        standing,
        {
            "program": f"ultralytics {__version__}, torch {torch.__version__}, python {platform.python_version()}",
            "model": options.model,
            "dtype": options.dtype,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "threads": torch.get_num_threads(),
            "batch": drawn.fingerprint(),
        },
    )


if __name__ == "__main__":
    main()
