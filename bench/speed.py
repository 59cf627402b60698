"""From files to results, ours against the peer's: decoding, preprocessing, network, suppression, results.

    python bench/speed.py --peer-python .venv-peer/bin/python --images ../shared/data/coco128/images
    python bench/speed.py --sources ../shared/data/videos/01_dog.mp4 --formats onnx

The same network with the same weights: the peer builds it and saves its checkpoint, ours reads it; each side writes its
own ONNX and OpenVINO file. Both use the same number of threads and run in turn, the whole source each time; one side
waits while the other computes. One line a combination: medians of seconds an image, their ratio, the ratio of the
processor's seconds (with --threads 1 it holds on a machine that others use, too), and what part of our time is spent
outside the network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import torch

from machine import busy_note, describe_machine, peer_python, usable_cores
from peers.cores import only_cores
from records import Record, append

PEER_PROGRAM = Path(__file__).parent / "peers" / "ultralytics_predict.py"
RESULTS = Path(__file__).parent / "results" / "speed.jsonl"
SOURCES = ("../shared/data/coco128/images", "../shared/data/videos/01_dog.mp4")
WANTED = {"pytorch": 1.3, "onnx": 1.1, "openvino": 1.1}
OUTSIDE = 0.15
PAUSE_S = 0.3


class Side:
    """A program that predicts the source for every line ``run``; use it in a ``with`` block."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.facts = self._answer()

    def run(self) -> dict[str, Any]:
        """Have it predict the whole source."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"a side ended with status {self.process.wait()}; run it alone to see why: "
                f"{' '.join(map(str, self.process.args))}"  # pyright: ignore[reportArgumentType, reportCallIssue]
            )
        return json.loads(line)

    def __enter__(self) -> Side:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def serve(options: argparse.Namespace) -> None:
    """Be our side."""
    from ullage import YOLO

    torch.set_num_threads(options.threads)
    only_cores(options.threads)
    model = YOLO(options.weights)
    with TemporaryDirectory(prefix="ullage-speed-") as folder:
        if options.format != "pytorch":
            ending = {"onnx": ".onnx", "openvino": "_openvino_model"}[options.format]
            out = Path(folder) / f"net{ending}"
            model = YOLO(model.export(format=options.format, imgsz=options.imgsz, out=out, verbose=False, device="cpu"))
        run(model, options, limit=40)
        print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__}), flush=True)
        for line in sys.stdin:
            if line.strip() != "run":
                break
            print(json.dumps(run(model, options)), flush=True)


def run(model: Any, options: argparse.Namespace, limit: int | None = None) -> dict[str, Any]:
    began, began_cpu, count, boxes = time.perf_counter(), time.process_time(), 0, 0
    stages = {"preprocess": 0.0, "inference": 0.0, "postprocess": 0.0}
    for found in model.predict(options.source, imgsz=options.imgsz, stream=True, device="cpu"):
        count += 1
        boxes += len(found)
        stages = {name: stages[name] + found.speed[name] / 1000 for name in stages}
        if count == limit:
            break
    spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    return {**spent, "images": count, "boxes": boxes, "stages": stages}


def measure(options: argparse.Namespace, source: str, form: str, python: Path, weights: Path) -> Record:
    shared = [
        "--weights", str(weights), "--source", source, "--format", form, "--imgsz", str(options.imgsz),
        "--threads", str(options.threads),
    ]  # fmt: skip
    with (
        Side([str(python), str(PEER_PROGRAM), "--model", options.network, *shared]) as peer,
        Side([sys.executable, __file__, "--serve", *shared]) as ours,
    ):
        if peer.facts["threads"] != ours.facts["threads"]:
            raise SystemExit(f"the sides do not use the same threads: {peer.facts}, {ours.facts}")
        rounds: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
        for number in range(options.rounds + 1):
            for name, side in (("ours", ours), ("peer", peer)):
                answer = side.run()
                if number:  # the first round fills caches
                    rounds[name].append(answer)
                time.sleep(PAUSE_S)
    images = {name: {one["images"] for one in answers} for name, answers in rounds.items()}
    if images["ours"] != images["peer"]:
        raise SystemExit(f"the sides do not read the same: {images}")
    return {
        "network": options.network,
        "format": form,
        "source": source,
        "imgsz": options.imgsz,
        "threads": options.threads,
        "images": images["ours"].pop(),
        **{name: [one["seconds"] for one in answers] for name, answers in rounds.items()},
        **{f"{name}_cpu": [one["cpu_seconds"] for one in answers] for name, answers in rounds.items()},
        **{f"{name}_stages": answers[-1]["stages"] for name, answers in rounds.items()},
        **{f"{name}_boxes": answers[-1]["boxes"] for name, answers in rounds.items()},
        "peer_input_shapes": peer.facts["input_shapes"],
        "program": peer.facts["program"],
    }


def line(record: Record) -> str:
    ours, peer = (statistics.median(record[name]) / record["images"] * 1000 for name in ("ours", "peer"))
    inside = record["ours_stages"]["inference"] / record["ours"][-1]
    ratio, outside, wanted = peer / ours, 1 - inside, WANTED[record["format"]]
    of_cpu = statistics.median(record["peer_cpu"]) / statistics.median(record["ours_cpu"])
    return (
        f"{record['network']} {record['format']:<8} {Path(record['source']).name}: ours {ours:.1f} ms an image, peer "
        f"{peer:.1f} ms, ratio {ratio:.2f} ({_mark(ratio >= wanted)} {wanted}), of CPU seconds {of_cpu:.2f}; outside "
        f"the network {outside:.0%} ({_mark(outside <= OUTSIDE)} {OUTSIDE:.0%})"
    )


def _mark(good: bool) -> str:
    return "meets" if good else "MISSES"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="yolo11n")
    parser.add_argument("--formats", default="pytorch,onnx,openvino")
    parser.add_argument("--sources", default=",".join(SOURCES), help="folders of images, or videos")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of both sides")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of the whole source, after one that is not")
    parser.add_argument("--peer-python", help="Python of the peer's environment")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--serve", action="store_true", help="be our side; used by this program itself")
    parser.add_argument("--weights", help="with --serve: the checkpoint")
    parser.add_argument("--source", help="with --serve: one of the sources")
    parser.add_argument("--format", help="with --serve: one of the formats")
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    python = peer_python(options.peer_python)
    print(f"{describe_machine(options.threads)}; torch {torch.__version__}", flush=True)
    with TemporaryDirectory(prefix="ullage-speed-") as folder:
        for source in options.sources.split(","):
            for form in options.formats.split(","):
                if note := busy_note():
                    print(note, flush=True)
                record = measure(options, source, form, python, Path(folder) / "net.pt")
                append(options.results, {"table": "speed", **record})
                print(line(record), flush=True)


if __name__ == "__main__":
    main()
