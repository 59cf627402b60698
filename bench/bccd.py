"""Train on BCCD with ours and with the peer, seed by seed in turn, and compare accuracy and wall time.

    python bench/bccd.py --data ../shared/data/bccd --peer-python .venv-peer/bin/python

Every run is a fresh process with the same number of threads, pictures off, alone on the machine. Ours is
``ullage train cfg=recipes/bccd_yolo11n.yaml``, timed from outside: start of Python to its end. The peer's time is its
``train`` call alone, without the start of Python and the imports. A result is appended to ``--results`` as soon as its
run ends, and runs that are there already are not repeated, so that a long comparison can be done in parts.

Accuracy twice: ``map`` is what each side says of its best epoch; ``judged_map`` scores the detections of each side's
best checkpoint with the same evaluator against ground truth read straight from the XML files (COCO's protocol, 100
detections an image). Compare the judged figures: the sides do not compute their own ones alike.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import busy_note, describe_machine, peer_python, usable_cores
from peers.bccd_files import coco_ground_truth
from records import Record, append, find, read_records
from ullage.metrics.coco import coco_metrics

HERE = Path(__file__).parent
PEER_PROGRAM = HERE / "peers" / "ultralytics_bccd.py"
RECIPE = HERE.parent / "recipes" / "bccd_yolo11n.yaml"
MODEL = "yolo11n"
SIDES = ("ours", "peer")
FIRST_CATEGORY = {"ours": 0, "peer": 1}  # which category id each side's predictions give to the first class
RUN_ULLAGE = "import sys; from ullage.apps.cli.main import main; sys.exit(main())"  # what the command `ullage` runs
FIGURES = ("map", "map50", "judged_map", "judged_map50", "train_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/bccd"), help="BCCD, Pascal VOC layout")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=SIDES, help="run one side")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads of a tensor operation, both sides")
    parser.add_argument("--peer-own-threads", action="store_true",
                        help="let the peer choose the threads of its training, as it does for its users")  # fmt: skip
    parser.add_argument("--peer-python", help="Python of the peer's environment")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "bccd.jsonl")
    options = parser.parse_args()
    if not (options.data / "Annotations").is_dir():
        raise SystemExit(f"--data '{options.data}' is not BCCD in its Pascal VOC layout: it has no folder Annotations")
    sides = (options.only,) if options.only else SIDES
    python = peer_python(options.peer_python) if "peer" in sides else None

    print(describe_machine(options.threads), flush=True)
    for seed in options.seeds:
        for side in sides:
            wanted = run_key(side, seed, options)
            record = find(read_records(options.results), wanted)
            if record is None:
                if note := busy_note():
                    print(note, flush=True)
                record = run(wanted, options, python)
                append(options.results, record)
            print(run_line(record), flush=True)
    keys = [run_key(side, seed, options) for seed in options.seeds for side in SIDES]
    found = [record for key in keys if (record := find(read_records(options.results), key)) is not None]
    print(summary(found), flush=True)


def run_key(side: str, seed: int, options: argparse.Namespace) -> Record:
    """Return what makes a run that run: two records with the same key are repetitions of one another."""
    return {
        "side": side,
        "seed": seed,
        "model": MODEL,
        "epochs": options.epochs,
        "imgsz": options.imgsz,
        "batch": options.batch,
        "machine": describe_machine(options.threads),
        "threads": "own" if side == "peer" and options.peer_own_threads else options.threads,
    }


def run(key: Record, options: argparse.Namespace, python: Path | None) -> Record:
    """Run one side with one seed; judge its detections."""
    load, kept = os.getloadavg()[0], options.results.parent / "predictions"
    run_name = f"{key['side']}-{key['imgsz']}px-{key['epochs']}epochs-{key['threads']}threads-seed{key['seed']}"
    predictions = kept / f"{run_name}.json"
    kept.mkdir(parents=True, exist_ok=True)
    if key["side"] == "peer":
        assert python is not None
        own = run_peer(key, options, python, predictions)
    else:
        own = run_ours(key, options, predictions)
    judged = judge(predictions, options.data, side=key["side"])
    return {**key, **own, **judged, "load_before": round(load, 2), "finished": time.strftime("%Y-%m-%d %H:%M:%S %Z")}


def run_peer(key: Record, options: argparse.Namespace, python: Path, predictions: Path) -> Record:
    """Run the peer's program; return what it reports."""
    settings = {name: key[name] for name in ("model", "seed", "epochs", "imgsz", "batch")}
    settings |= {"data": options.data.resolve(), "predictions": predictions.resolve()}
    if not options.peer_own_threads:
        settings["threads"] = options.threads
    command = [str(python), str(PEER_PROGRAM), *(f"--{name}={value}" for name, value in settings.items())]
    report = json.loads(checked(command, threads=settings.get("threads")).splitlines()[-1])
    if not options.peer_own_threads and report["threads"] != [options.threads]:
        raise SystemExit(f"the peer trained with {report['threads']} threads instead of {options.threads}")
    return {
        "program": report["program"],
        "trained_with_threads": report["threads"],
        **{name: report[name] for name in ("train_seconds", "map", "map50", "best_epoch", "checkpoint_map")},
    }


def run_ours(key: Record, options: argparse.Namespace, predictions: Path) -> Record:
    """Train and judge with our command line; return what it reports."""
    ullage = [sys.executable, "-c", RUN_ULLAGE]
    with tempfile.TemporaryDirectory(prefix="ours-bccd-") as folder:
        common = [f"data={options.data.resolve() / 'data.yaml'}", f"imgsz={key['imgsz']}", f"batch={key['batch']}",
                  "device=cpu", f"project={folder}", "plots=False"]  # fmt: skip
        began = time.perf_counter()
        checked([*ullage, "train", f"cfg={RECIPE}", *common, f"seed={key['seed']}", f"epochs={key['epochs']}",
                 "name=train"], threads=options.threads)  # fmt: skip
        train_seconds = time.perf_counter() - began
        best = best_row(Path(folder) / "train" / "results.csv")
        checked([*ullage, "val", f"model={folder}/train/weights/best.pt", *common, "save_json=True", "name=val"],
                threads=options.threads)  # fmt: skip
        (Path(folder) / "val" / "predictions.json").replace(predictions)
        environment = json.loads((Path(folder) / "train" / "environment.json").read_text(encoding="utf-8"))
    if environment["threads"] != options.threads:
        raise SystemExit(f"ours trained with {environment['threads']} threads instead of {options.threads}")
    torch_version = environment["packages"]["torch"]
    program = f"ullage {environment['ullage']}, torch {torch_version}, python {environment['python']}"
    return {
        "program": program,
        "trained_with_threads": [environment["threads"]],
        "train_seconds": train_seconds,
        **best,
    }


def checked(command: Sequence[str], *, threads: int | None) -> str:
    """Run a program with a number of threads (None: its own choice), its messages on our stderr; return its stdout.

    Raises:
        SystemExit: It failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"status {done.returncode} from: {' '.join(command)}\n{done.stdout[-2000:]}")
    return done.stdout


def best_row(results_csv: Path) -> Record:
    """Find the best epoch in a run's ``results.csv``."""
    with results_csv.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["metrics/mAP50-95(B)"]))
    return {
        "map": float(best["metrics/mAP50-95(B)"]),
        "map50": float(best["metrics/mAP50(B)"]),
        "best_epoch": int(float(best["epoch"])),
    }


def judge(predictions: Path, data: Path, *, side: str) -> Record:
    """Score a side's detections on the val split with COCO's protocol.

    Raises:
        SystemExit: Category ids are not those that this side is known to write.
    """
    truth = coco_ground_truth(data, "val")
    shift = truth["categories"][0]["id"] - FIRST_CATEGORY[side]
    found = json.loads(predictions.read_text(encoding="utf-8"))
    known = {category["id"] - shift for category in truth["categories"]}
    if strange := {entry["category_id"] for entry in found} - known:
        raise SystemExit(f"'{predictions}' holds category ids {sorted(strange)}; {side} should write {sorted(known)}")
    for entry in found:
        entry["category_id"] += shift
    with tempfile.TemporaryDirectory(prefix="judge-") as folder:
        files = {"truth": truth, "found": found}
        for name, content in files.items():
            (Path(folder) / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
        score = coco_metrics(*(Path(folder) / f"{name}.json" for name in files), max_det=100)
    return {"judged_map": score.ap, "judged_map50": score.ap50}


def run_line(record: Record) -> str:
    """Return one run in one line."""
    return (
        f"seed {record['seed']} {record['side']}: mAP50-95 {record['map']:.4f} (judged {record['judged_map']:.4f}), "
        f"mAP50 {record['map50']:.4f} (judged {record['judged_map50']:.4f}), {record['train_seconds']:.0f} s, "
        f"best epoch {record['best_epoch']} of {record['epochs']}, load before {record['load_before']}"
    )


def summary(records: Sequence[Record]) -> str:
    """Return means, standard deviations and ratios in one line; says what is missing when a side has no run."""
    by_side = {side: [record for record in records if record["side"] == side] for side in SIDES}
    parts = []
    for side, runs in by_side.items():
        if not runs:
            parts.append(f"{side}: no run yet")
            continue
        means = ", ".join(f"{name} {spread([run[name] for run in runs])}" for name in FIGURES)
        parts.append(f"{side} ({len(runs)} seeds): {means}")
    seeds = [{run["seed"] for run in runs} for runs in by_side.values()]
    if seeds[0] != seeds[1]:
        return "; ".join([*parts, "no ratio: the sides have not run the same seeds"])
    ours, peer = ({name: statistics.mean(run[name] for run in runs) for name in FIGURES} for runs in by_side.values())
    differences = ", ".join(f"{name} {ours[name] - peer[name]:+.4f}" for name in FIGURES[:4])
    ratio = ours["train_seconds"] / peer["train_seconds"]
    return "; ".join([*parts, f"ours against peer: {differences}, wall time x {ratio:.3f}"])


def spread(values: Sequence[float]) -> str:
    """Return mean and, from two values on, the sample's standard deviation."""
    digits = 1 if max(values) > 1 else 4
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
