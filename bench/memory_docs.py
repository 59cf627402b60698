"""Draw the picture and print the table of docs/memory.md, from traces: no GPU, no data, about three minutes.

python bench/memory_docs.py picture docs/images/memory_timeline.png
python bench/memory_docs.py cards
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from ullage.api.plan import estimate, network_of, tracing_images, tracing_step
from ullage.memory.apply import block_names
from ullage.memory.technique import Technique
from ullage.memory.trace import Setting, trace_step

TECHNIQUES = ("none", "recompute", "block", "nested")
CARDS_GB = (6, 8, 12, 24)
DISPLAY_BYTES = 300 * 10**6  # what a desktop takes of a card that also drives a screen; assumed
GB = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    drawing = verbs.add_parser("picture")
    drawing.add_argument("path", type=Path)
    drawing.add_argument("--model", default="yolov12s")
    drawing.add_argument("--batch", type=int, default=16)
    drawing.add_argument("--imgsz", type=int, default=640)
    table = verbs.add_parser("cards")
    table.add_argument(
        "--models", nargs="+", default=[f"{family}{s}" for family in ("yolov12", "yolo11") for s in "nsmlx"]
    )
    options = parser.parse_args()
    if options.verb == "picture":
        draw(options.path, options.model, options.batch, options.imgsz)
    else:
        cards(options.models)


def draw(path: Path, model: str, batch: int, imgsz: int) -> None:
    """Draw live tensor bytes through one step under each technique."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    network, images = network_of(model, num_classes=80), tracing_images(batch, imgsz)
    for name in TECHNIQUES:
        techniques = dict.fromkeys(block_names(network), Technique.parse(name)) if name != "none" else {}
        trace = trace_step(
            tracing_step(100 * batch, batch), network, images, techniques=techniques,
            setting=Setting("float32", "cpu", "SGD", average=True),
        )  # fmt: skip
        level, levels, start = 0, [], 0
        for position, event in enumerate(trace.ledger.events):
            piece = trace.ledger.pieces[event if event >= 0 else ~event]
            level += piece.nbytes if event >= 0 else -piece.nbytes
            levels.append(level / GB)
            start = position if piece.phase == "before" and event >= 0 else start
        levels = levels[start:]
        forward, total = trace.forward_end - start, len(levels)
        x = [i / forward if i < forward else 1 + (i - forward) / (total - forward) for i in range(total)]
        axes.plot(x, levels, label=f"{name}: peak {max(levels):.2f} GB", linewidth=1.4)
    axes.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xticks([0.5, 1.5], ["forward", "loss and backward"])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(0, 2)
    axes.set_ylim(0)
    axes.set_ylabel("live tensors, GB")
    axes.set_title(f"One training step of {model}, batch {batch}, {imgsz} px, float32", fontsize=11)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"{path}: {model}, batch {batch}, {imgsz} px")


def cards(models: list[str]) -> None:
    """Print the largest batch in one pass that each card holds, plain and nested, at 640 px in fp16."""
    print("| model | " + " | ".join(f"{size} GB" for size in CARDS_GB) + " |")
    print("|---|" + "---|" * len(CARDS_GB))
    for model in models:
        cells: list[list[str]] = [[] for _ in CARDS_GB]
        for technique in ("none", "recompute", "nested"):
            few, many = (
                estimate(model=model, batch=batch, imgsz=640, technique=technique, boxes_per_image=100).process_bytes
                for batch in (2, 10)
            )
            image = (many - few) / 8
            for cell, size in zip(cells, CARDS_GB, strict=True):
                cell.append(f"{max(int((size * GB - DISPLAY_BYTES - (few - 2 * image)) / image), 0)}")
        print(f"| {model} | " + " | ".join(" / ".join(cell) for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
