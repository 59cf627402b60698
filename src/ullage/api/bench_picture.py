"""The table of a benchmark as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ullage.errors import StorageError

_NETWORK, _REST, _LINE = "#3b6ea5", "#c9d6e4", "#333333"


def draw_bench(rows: Sequence[Any], title: str, path: Path) -> None:
    """Draw a bar for each format: its median latency, the network's part of it, a line up to the 99th percentile.

    Args:
        rows: ``BenchRow``s; those without figures are named only.
        title: Above the picture.
        path: PNG to write.

    Raises:
        StorageError: It cannot be written.
    """
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    longest = max((row.latency_ms[2] for row in rows), default=0.0) or 1.0
    for place, row in enumerate(rows):
        if row.problem:
            axes.text(longest * 0.01, place, "not on this machine, see the table", va="center", color=_LINE, fontsize=9)
            continue
        median, p95, p99 = row.latency_ms
        axes.barh(place, median, color=_REST, height=0.6, label="before and after" if place == 0 else None)
        axes.barh(place, row.network_ms[0], color=_NETWORK, height=0.6, label="network" if place == 0 else None)
        axes.plot([median, p99], [place, place], color=_LINE, linewidth=1)
        for value in (p95, p99):
            axes.plot([value, value], [place - 0.15, place + 0.15], color=_LINE, linewidth=1)
        words = [f"{median:.1f} ms", f"{row.images_per_s:.1f} images/s"]
        words += [] if row.map is None else [f"mAP {row.map:.3f}"]
        axes.text(p99 + longest * 0.015, place, ", ".join(words), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row.format for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, longest * 1.55)
    axes.set_xlabel("ms a pass: median, with the 95th and 99th percentile")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if any(not row.problem for row in rows):
        figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"cannot write the picture '{path}': {error.strerror or error}") from None
