"""One truth, in numbers: the same training whatever the split, the number of processes, or the accident.

    python bench/exact.py layouts --data DIR    # one batch cut in six ways; weights after ten steps, and what was seen
    python bench/exact.py kills --data DIR      # killed at random instants, resumed: the same bits
    python bench/exact.py nodes                 # two machines (network namespaces: Linux, root), the link cut for 30 s

Each prints a line for every case and one in all. Nothing here is a time. What one of two processes does to the other
when it is killed, runs out of memory or is told to stop is in tests/train/test_ranks.py and
tests/e2e/test_several_processes.py.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from exact_layouts import LAYOUTS, differences
from exact_nodes import cut_and_mend, train_here
from records import Record, append

RESULTS = Path(__file__).parent / "results" / "exact.jsonl"
HERE = Path(__file__).parent


def layouts(options: argparse.Namespace) -> list[Record]:
    """Train every layout in processes of its own, and compare weights and images with the first."""
    records: list[Record] = []
    with tempfile.TemporaryDirectory(prefix="ullage-exact-") as text:
        folder = Path(text)
        begun = train_a_little(folder, options)
        for norm in options.norms:
            reference: Path | None = None
            for name, (ranks, micro) in LAYOUTS[norm].items():
                here = folder / norm / name.replace(" ", "")
                here.mkdir(parents=True)
                run_layout(here, begun, ranks, micro, norm, options, nudge=name.endswith("nudged"))
                reference = reference or here
                distance, error, seen = differences(reference, here)
                records.append(
                    {
                        "table": "layouts",
                        "norm": norm,
                        "layout": name,
                        "distance": distance,
                        "worst": error,
                        "same_images": seen,
                    }
                )
                print(f"layouts  BatchNorm {norm:12s} {name:14s} all weights {distance:.1e}, worst number {error:.1e}, "
                      f"images and boxes {'identical' if seen else 'DIFFERENT'}", flush=True)  # fmt: skip
    return records


def train_a_little(folder: Path, options: argparse.Namespace) -> Path:
    """Train the network that all layouts begin with.

    The first steps of new weights multiply any difference, also that of the last bit of a sum, hundreds of times.
    """
    words = [f"model={options.model}", f"data={options.data}", f"imgsz={options.imgsz}", "batch=16", "nbs=16",
             f"epochs={options.begin_epochs}", "val=False", "plots=False", "verbose=False", "workers=0", "device=cpu",
             f"project={folder}", "name=begun"]  # fmt: skip
    subprocess.run([sys.executable, "-m", "ullage", "train", *words], check=True)
    return folder / "begun" / "weights" / "best.pt"


def run_layout(
    folder: Path,
    begun: Path,
    ranks: int,
    micro: int | None,
    norm: str,
    options: argparse.Namespace,
    *,
    nudge: bool,
) -> None:
    """Run ``exact_layouts.py`` in some processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = command if ranks > 1 else [sys.executable]
    words = [str(HERE / "exact_layouts.py"), str(folder), "--data", options.data, "--norm", norm, "--model",
             str(begun), "--imgsz", str(options.imgsz), "--images", str(options.images), "--batch",
             str(options.batch), "--steps", str(options.steps)]  # fmt: skip
    words += [*(["--micro", str(micro)] if micro else []), *(["--nudge"] if nudge else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def kills(options: argparse.Namespace) -> list[Record]:
    """Kill a run at random instants until it has come to its end; compare with one that nobody disturbed."""
    luck = random.Random(options.seed)
    counts = dict.fromkeys(
        ("kills", "mid-epoch", "while a checkpoint was written", "before the first", "unreadable"), 0
    )
    differing = runs = 0
    with tempfile.TemporaryDirectory(prefix="ullage-kills-") as text:
        folder = Path(text)
        train(folder / "whole", options).wait()
        expected = last_of(folder / "whole")
        while counts["kills"] < options.kills:
            runs += 1
            broken = folder / f"broken{runs}"
            process = train(broken, options)
            while counts["kills"] < options.kills and survives(process, broken, luck):
                process = go_on(process, broken, counts, options)
            process.wait()
            differing += len(different(expected, last_of(broken)))
            told = ", ".join(f"{count} {what}" for what, count in counts.items())
            print(f"kills    {told}; {runs} runs came to their end, {differing} tensors differ", flush=True)
    return [{"table": "kills", **counts, "runs": runs, "differing": differing}]


def survives(process: subprocess.Popen[bytes], project: Path, luck: random.Random) -> bool:
    """Wait until a random instant, mostly while it trains; return whether the process still lives."""
    last, began = project / "run" / "weights" / "last.pt", time.monotonic()
    before = last.stat().st_mtime_ns if last.exists() else 0
    if luck.random() < 0.1:  # while it starts
        time.sleep(luck.uniform(0, 5))
        return process.poll() is None
    while process.poll() is None and time.monotonic() - began < 120:
        if last.exists() and last.stat().st_mtime_ns != before:
            time.sleep(luck.uniform(0, 1.5))
            break
        time.sleep(0.005)
    return process.poll() is None


def go_on(
    process: subprocess.Popen[bytes], project: Path, counts: dict[str, int], options: argparse.Namespace
) -> subprocess.Popen[bytes]:
    """Kill a run, look at what it left, and start it again from there."""
    process.kill()
    process.wait()
    counts["kills"] += 1
    last = project / "run" / "weights" / "last.pt"
    leftovers = list(last.parent.glob(".last.pt.*.tmp")) if last.parent.exists() else []
    counts["while a checkpoint was written"] += bool(leftovers)
    for leftover in leftovers:
        leftover.unlink()
    if not last.exists():
        counts["before the first"] += 1
        shutil.rmtree(project, ignore_errors=True)
        return train(project, options)
    try:
        counts["mid-epoch"] += torch.load(last, weights_only=True)["train"]["position"]["batch"] > 0
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        counts["unreadable"] += 1
        print(f"kills    unreadable: {error}", flush=True)
        shutil.rmtree(project, ignore_errors=True)
        return train(project, options)
    return train(project, options, resume=last)


def train(project: Path, options: argparse.Namespace, *, resume: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a short training in a process of its own; ``last.pt`` is written after every step."""
    words = ["model=yolo11n", f"data={options.data}", "imgsz=64", "batch=8", "nbs=16", "epochs=15", "fraction=0.1",
             "val=False", "plots=False", "workers=0", "device=cpu", f"project={project}", "name=run",
             "save_minutes=1e-9", "verbose=False"]  # fmt: skip
    words = words if resume is None else ["resume", f"model={resume}", "verbose=False"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "ullage", "train", *words], env=environment)


def last_of(project: Path) -> dict[str, Any]:
    """Read the checkpoint that a run left."""
    return torch.load(project / "run" / "weights" / "last.pt", weights_only=True)


def different(one: Any, other: Any, place: str = "") -> list[str]:
    """Name the tensors of two checkpoints that are not the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    if isinstance(one, dict):
        keys = (key for key in one if key not in ("random", "meta"))
        return [found for key in keys for found in different(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, list | tuple):
        return [found for a, b in zip(one, other, strict=True) for found in different(a, b, place)]
    return []


def nodes(options: argparse.Namespace) -> list[Record]:
    """Cut the link between two machines for a while; compare with two processes of one machine."""
    with tempfile.TemporaryDirectory(prefix="ullage-nodes-") as text:
        last, silence = cut_and_mend(Path(text), options.cut_seconds, options.epochs)
        told, other = (torch.load(file, weights_only=True) for file in (last, train_here(Path(text), options.epochs)))
        differing = different({"w": told["weights"], "e": told["ema"]}, {"w": other["weights"], "e": other["ema"]})
    record = {"table": "nodes", "cut_seconds": options.cut_seconds, "silence": round(silence, 1),
              "differing": len(differing)}  # fmt: skip
    print(f"nodes    link cut for {options.cut_seconds:g} s, nothing new for {silence:.1f} s, then on to the end; "
          f"{len(differing)} tensors differ from two processes of one machine")  # fmt: skip
    return [record]


TABLES = {"layouts": layouts, "kills": kills, "nodes": nodes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--data", default="demo", help="a data set; layouts wants real photographs")
    parser.add_argument("--model", default="yolov12n")
    parser.add_argument("--imgsz", type=int, default=96)
    parser.add_argument(
        "--images", type=int, default=80, help="layouts: images of an epoch; a short last batch is good"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--begin-epochs", type=int, default=20, help="layouts: training before the comparison")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--norms", nargs="+", default=list(LAYOUTS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cut-seconds", type=float, default=30.0, help="nodes")
    parser.add_argument("--epochs", type=int, default=20, help="nodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    records = TABLES[options.table](options)
    for record in records:
        append(options.results, {**record, "torch": torch.__version__, "steps": options.steps})
    print(summary(records, options.steps) if options.table == "layouts" else json.dumps(records[-1]))


def summary(records: list[Record], steps: int) -> str:
    """Return the verdict on all layouts."""
    told: list[str] = []
    for norm in LAYOUTS:
        part = [record for record in records if record["norm"] == norm and "nudged" not in record["layout"]]
        if part:
            distance, worst = (max(record[key] for record in part) for key in ("distance", "worst"))
            told.append(f"BatchNorm {norm}: all weights {distance:.1e}, worst number {worst:.1e}")
    same = all(record["same_images"] for record in records)
    return f"layouts  after {steps} steps {'; '.join(told)}; images and boxes {'identical' if same else 'DIFFERENT'}"


if __name__ == "__main__":
    main()
