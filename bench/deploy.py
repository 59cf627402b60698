"""Exported files in numbers: one line a combination, one line in all. What is in the results is not redone.

    python bench/deploy.py parity                    # every network, ONNX and OpenVINO, against PyTorch on real images
    python bench/deploy.py parity --networks yolov12n,yolo11n --formats onnx

A network's new weights are made lively first: BatchNorm takes its statistics from these images, the class branch is
spread out, so that every layer sees numbers of a trained one's size. The images must be photographs: of drawings on a
blank ground some lie so far from the statistics that PyTorch's own rounding shows (4e-3 of a probability against
float64, as much as the file's). Differences are over all anchors: of class probabilities,
and of boxes in pixels and as a part of the longer side.

A file is held to .001, or where the network itself is rougher, to twice its own rounding: how far PyTorch in float32 is
from float64 on the same images. Two computations that are each so far from the truth differ by no more. Both figures
are recorded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from records import Record, append, find, read_records
from ullage.config import ExportSettings
from ullage.data.decode import read_image
from ullage.data.source import open_dataset
from ullage.export.proof import letterboxed
from ullage.export.writers import FORMATS, Order
from ullage.nn.detector import Detector
from ullage.nn.outputs import RawDetections, decode_boxes, decode_scores
from ullage.runtime.file_info import FileInfo
from ullage.runtime.file_predictor import FilePredictor
from ullage.runtime.open_file import open_exported
from ullage.runtime.outputs import DecodedDetections
from ullage.runtime.predictor import TorchPredictor
from ullage.zoo.registry import MODELS, build

RESULTS = Path(__file__).parent / "results" / "deploy.jsonl"
LIMIT = 1e-3
DATA = "../shared/data/coco128/data.yaml"
SIZES_HW = ((320, 640), (640, 640))
BATCHES = (1, 8)
NAMES = tuple(f"class{number}" for number in range(80))


def combinations(networks: Sequence[str], formats: Sequence[str]) -> Iterator[Record]:
    for network in networks:
        for form in formats:
            for dynamic in (True, False):
                for size_hw in SIZES_HW:
                    for batch in BATCHES:
                        key = {"network": network, "format": form, "dynamic": dynamic}
                        yield {"table": "parity", **key, "size_hw": list(size_hw), "batch": batch}


@lru_cache(maxsize=8)
def images(size_hw: tuple[int, int], count: int) -> torch.Tensor:
    paths = open_dataset(DATA, split="train").paths[:count]
    return letterboxed([read_image(path) for path in paths], size_hw)


@lru_cache(maxsize=1)
def lively(name: str) -> Detector:
    torch.manual_seed(0)
    network = build(name).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        for branch in network.head.cv3:
            branch[-1].bias.zero_()  # pyright: ignore
            branch[-1].weight.normal_(std=0.1)  # pyright: ignore
        network(images(SIZES_HW[-1], max(BATCHES)).float() / 255)
    return network.eval()


@lru_cache(maxsize=4)
def expected(name: str, size_hw: tuple[int, int], batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    raw = TorchPredictor(lively(name), names=NAMES)(images(size_hw, batch))
    return decode_boxes(raw), decode_scores(raw)


@lru_cache(maxsize=8)
def rounding(name: str, size_hw: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, for each image, how far PyTorch's float32 is from float64: of probabilities, and of boxes in pixels."""
    exact = deepcopy(lively(name)).double()
    score_diffs, box_diffs = [], []
    for image_3HW in images(size_hw, max(BATCHES)):
        raw = TorchPredictor(lively(name), names=NAMES)(image_3HW[None])
        with torch.inference_mode():
            truth = exact(image_3HW[None].double() / 255)
        score_diffs.append((decode_scores(raw) - truth.logits_BAK.sigmoid()).abs().max())
        box_diffs.append((decode_boxes(raw) - _boxes_in_float64(truth)).abs().max())
    return torch.stack(score_diffs), torch.stack(box_diffs)


def _boxes_in_float64(raw: RawDetections) -> torch.Tensor:
    sides = raw.bins_BAR.unflatten(-1, (4, -1)).softmax(-1)
    left_top, right_bottom = (sides * torch.arange(sides.shape[-1])).sum(-1).split(2, -1)
    return torch.cat((raw.centres_A2 - left_top, raw.centres_A2 + right_bottom), -1) * raw.strides_A[:, None]


_written: dict[tuple[object, ...], tuple[TemporaryDirectory[str], FilePredictor]] = {}


def file_of(record: Record) -> FilePredictor:
    """Write and open the file of a combination; dynamic ones serve several in a row."""
    size_hw, batch = (record["size_hw"][0], record["size_hw"][1]), record["batch"]
    if record["dynamic"]:
        size_hw, batch = (640, 640), 1
    key = (record["network"], record["format"], record["dynamic"], size_hw, batch)
    if key not in _written:
        _written.clear()
        form = FORMATS[record["format"]]
        info = FileInfo(record["network"], NAMES, size_hw, batch=batch, dynamic=record["dynamic"])
        folder = TemporaryDirectory(prefix="ullage-bench-")
        path = Path(folder.name) / f"file{form.ending}"
        form.write(Order(lively(record["network"]), info, path, ExportSettings(), lambda: ()))
        _written[key] = folder, open_exported(path, device="cpu")
    return _written[key][1]


def measure(record: Record) -> Record:
    size_hw = (record["size_hw"][0], record["size_hw"][1])
    outputs = file_of(record)(images(size_hw, record["batch"]))
    assert isinstance(outputs, DecodedDetections)
    boxes, scores = expected(record["network"], size_hw, record["batch"])
    box_px = float((outputs.boxes_xyxy_px_BA4 - boxes).abs().max())
    own_scores, own_boxes = (part[: record["batch"]].max() for part in rounding(record["network"], size_hw))
    return {
        "own_score_diff": float(own_scores),
        "own_box_diff_unit": float(own_boxes) / max(size_hw),
        "score_diff": float((outputs.scores_BAK - scores).abs().max()),
        "box_diff_px": box_px,
        "box_diff_unit": box_px / max(size_hw),
        "score_spread": [float(scores.min()), float(scores.max())],
        "data": DATA,
        "torch": torch.__version__,
    }


def line(record: Record) -> str:
    kind = "dynamic" if record["dynamic"] else "static"
    height, width = record["size_hw"]
    where = f"{record['network']:<9} {record['format']:<9} {kind:<8} {height}x{width} batch {record['batch']}"
    boxes = f"{record['box_diff_px']:.1e} px ({record['box_diff_unit']:.1e} of a side)"
    own = ""
    if "own_score_diff" in record:
        own = f"; PyTorch from float64: {record['own_score_diff']:.1e}, {record['own_box_diff_unit']:.1e} of a side"
    return f"{where}: scores differ by {record['score_diff']:.1e}, boxes by {boxes}{own}"


def within(record: Record) -> bool:
    own = [2 * record.get(name, 0.0) for name in ("own_score_diff", "own_box_diff_unit")]
    found = (record["score_diff"], record["box_diff_unit"])
    return all(value <= max(LIMIT, limit) for value, limit in zip(found, own, strict=True))


def summary(records: Sequence[Record], asked: int) -> str:
    good = sum(within(record) for record in records)
    worst = {
        name: max((r[name] for r in records), default=0.0) for name in ("score_diff", "box_diff_px", "box_diff_unit")
    }
    plain = sum(record["score_diff"] <= LIMIT and record["box_diff_unit"] <= LIMIT for record in records)
    networks = len({record["network"] for record in records})
    return (
        f"{good} of {len(records)} combinations of {networks} networks within {LIMIT:g} or twice the network's own "
        f"rounding (asked: {asked}; within {LIMIT:g} alone: {plain}); worst: "
        f"scores {worst['score_diff']:.1e}, boxes {worst['box_diff_px']:.1e} px, {worst['box_diff_unit']:.1e} of a side"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("parity",))
    parser.add_argument("--networks", default=",".join(sorted(MODELS, key=lambda name: MODELS[name].gflops)))
    parser.add_argument("--formats", default="onnx,openvino")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what is in the results, too")
    arguments = parser.parse_args()
    asked = list(combinations(arguments.networks.split(","), arguments.formats.split(",")))
    done = [] if arguments.again else read_records(arguments.results)
    told: list[Record] = []
    for key in asked:
        record = find(done, key)
        if record is None:
            record = {**key, **measure(key)}
            append(arguments.results, record)
        told.append(record)
        print(line(record), flush=True)
    print(summary(told, len(asked)))


if __name__ == "__main__":
    main()
