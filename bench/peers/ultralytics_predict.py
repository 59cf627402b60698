"""Time Ultralytics' prediction from files to results, in one runtime.

Run with the Python of the peer's own environment (see README.md). It builds a network from its own description (new
weights), writes them to ``--weights`` when asked, exports them where the format is another, and then waits: each line
``run`` on stdin predicts the whole source once and answers with its seconds, what the peer itself reports of its
stages, and the shape of the network's input; the end of stdin ends it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cores import only_cores
from separate_program import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolo11n")
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint: written when it is not there")
    parser.add_argument("--format", choices=("pytorch", "onnx", "openvino"), default="pytorch")
    parser.add_argument("--source", required=True, help="folder of images, or a video")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peer-predict-") as folder:
        answers = prepare(Path(folder), threads=options.threads)
        model, facts = load(options, Path(folder))
        print(json.dumps(facts), file=answers, flush=True)
        for line in sys.stdin:
            if line.strip() != "run":
                break
            print(json.dumps(run(model, options)), file=answers, flush=True)


def load(options: argparse.Namespace, folder: Path) -> tuple[Any, dict[str, Any]]:
    import torch
    from ultralytics import YOLO, __version__  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(options.threads)
    only_cores(options.threads)
    torch.manual_seed(0)
    if not options.weights.exists():
        YOLO(f"{options.model}.yaml").save(str(options.weights))
    model = YOLO(str(options.weights))
    shapes: set[tuple[int, ...]] = set()
    if options.format == "pytorch":

        def look(module: Any, inputs: Any) -> None:
            if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
                shapes.add(tuple(inputs[0].shape))

        handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
        run(model, options, limit=40)
        handle.remove()
    else:
        local = folder / f"{options.model}.pt"
        local.write_bytes(options.weights.read_bytes())
        plain = {"simplify": False} if options.format == "onnx" else {}  # it would want one library more
        file = YOLO(str(local)).export(format=options.format, imgsz=options.imgsz, verbose=False, **plain)
        model = YOLO(str(file), task="detect")
        run(model, options, limit=40)
    torch.set_num_threads(options.threads)  # the peer may choose its own when it prepares
    return model, {
        "program": f"ultralytics {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "threads": torch.get_num_threads(),
        "input_shapes": sorted(shapes),
    }


def run(model: Any, options: argparse.Namespace, limit: int | None = None) -> dict[str, Any]:
    began, began_cpu, count, boxes = time.perf_counter(), time.process_time(), 0, 0
    stages = {"preprocess": 0.0, "inference": 0.0, "postprocess": 0.0}
    for found in model.predict(options.source, imgsz=options.imgsz, stream=True, verbose=False, device="cpu"):
        count += 1
        boxes += len(found.boxes)
        stages = {name: stages[name] + found.speed[name] / 1000 for name in stages}
        if count == limit:
            break
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    return {**spent, "images": count, "boxes": boxes, "stages": stages}


if __name__ == "__main__":
    main()
