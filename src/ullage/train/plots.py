"""``results.png``: losses, rate and metrics against epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MARKED_EPOCHS = 30  # fewer points than this are marked one by one
_TRAIN, _VAL, _GREY = "#1f5fbf", "#d9622b", "#777777"
_RATE_COLOURS = ("#1f5fbf", "#e0a030", "#2e8b57", "#b07aa1")


def draw_results(rows: Sequence[Mapping[str, float]], *, path: Path) -> None:
    """Draw losses, learning rates and metrics against the epochs; training and validation share a panel.

    Args:
        rows: Rows of ``results.csv``, at least one.
        path: The picture; its suffix chooses the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: it keeps global state
    from matplotlib.figure import Figure

    panels = _panels(rows)
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * lines), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    best = _best_epoch(rows)
    for place, (title, curves) in enumerate(panels):
        axes = figure.add_subplot(lines, columns, place + 1)
        _draw_panel(axes, rows, title=title, curves=curves, best=best)
    if best is not None:
        figure.supxlabel(f"epoch (dotted: best, {best:g})", fontsize=9, color=_GREY)
    else:
        figure.supxlabel("epoch", fontsize=9, color=_GREY)
    figure.savefig(path)


def _panels(rows: Sequence[Mapping[str, float]]) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Group the columns: (title, [(column, label, colour), ...]) a panel: losses, rates, metrics."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    losses: dict[str, list[tuple[str, str, str]]] = {}
    for prefix, colour in (("train/", _TRAIN), ("val/", _VAL)):
        for name in names:
            if name.startswith(prefix):
                losses.setdefault(name.removeprefix(prefix), []).append((name, prefix[:-1], colour))
    metrics = [name for name in names if name.startswith("metrics/")]
    rates = [name for name in names if name.startswith("lr/")]
    panels = [(title.replace("_", " "), curves) for title, curves in losses.items()]
    if rates:
        curves = [(name, name.removeprefix("lr/"), _RATE_COLOURS[i % 4]) for i, name in enumerate(rates)]
        panels.append(("learning rate", curves))
    return panels + [(name.removeprefix("metrics/").removesuffix("(B)"), [(name, "", _VAL)]) for name in metrics]


def _draw_panel(
    axes: Any,
    rows: Sequence[Mapping[str, float]],
    *,
    title: str,
    curves: list[tuple[str, str, str]],
    best: float | None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    few = len(rows) < _MARKED_EPOCHS
    for place, (name, label, colour) in enumerate(curves):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        under = len(curves) - 1 - place if name.startswith("lr/") else 0  # equal rates lie on each other: all show
        style = {"marker": "o", "markersize": 3.5} if few else {}
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4 + 1.2 * under, label=label, **style)
    first, last = rows[0]["epoch"], rows[-1]["epoch"]
    margin = max((last - first) * 0.03, 0.5)
    axes.set_xlim(first - margin, last + margin)
    if best is not None:
        axes.axvline(best, color=_GREY, linewidth=0.8, linestyle=":")
    if all(name.startswith("metrics/") for name, _, _ in curves):
        axes.set_ylim(0, max(axes.get_ylim()[1], 0.1))  # shares: a run that found nothing shows a flat zero
    axes.set_title(title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=8)
    axes.grid(True, linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axes.legend(fontsize=8, frameon=False)


def _best_epoch(rows: Sequence[Mapping[str, float]]) -> float | None:
    judged = [row for row in rows if "fitness" in row]
    return max(judged, key=lambda row: row["fitness"])["epoch"] if judged else None
