"""Pictures of an evaluation: curves and confusion matrix, drawn without pyplot, so safe in threads and servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ullage.errors import StorageError
from ullage.metrics.columns import Array
from ullage.metrics.curves import Curve
from ullage.metrics.result import ConfusionMatrix, Metrics

_DPI = 150
_MEAN_COLOUR = "#0b2545"
_CROWD_COLOUR = "#6f93b8"
_LINES_WITH_NAMES = 20  # beyond that a legend is longer than the picture
_CELLS_WITH_NUMBERS = 30
_TICKS_WITH_NAMES = 100
_LONGEST_NAME = 24
_FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
    "Microsoft YaHei", "SimHei", "PingFang SC", "Hiragino Sans GB", "Malgun Gothic", "Noto Sans", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True)
class _Labels:
    """Class names as matplotlib can draw them, and the fonts to draw them with."""

    texts: tuple[str, ...]
    fonts: tuple[str, ...]


def plot_all(metrics: Metrics, folder: Path) -> list[Path]:
    """Draw every picture.

    Args:
        metrics: What to draw.
        folder: Where the files go; made when missing.

    Returns:
        The files: PR_curve.png, F1_curve.png, P_curve.png, R_curve.png, confusion_matrix.png and
        confusion_matrix_normalized.png.

    Raises:
        StorageError: The folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        matrix, curves = metrics.confusion_matrix, metrics.curves
        return [
            plot_precision_recall(metrics, folder / "PR_curve.png"),
            _plot_over_confidence(metrics, curves.f1, folder / "F1_curve.png"),
            _plot_over_confidence(metrics, curves.precision, folder / "P_curve.png"),
            _plot_over_confidence(metrics, curves.recall, folder / "R_curve.png"),
            plot_confusion_matrix(matrix, folder / "confusion_matrix.png"),
            plot_confusion_matrix(matrix, folder / "confusion_matrix_normalized.png", normalise=True),
        ]
    except OSError as problem:
        raise StorageError(
            f"cannot write pictures to {folder}: {problem.strerror or problem}; "
            "free some space or choose another folder"
        ) from problem


def plot_precision_recall(metrics: Metrics, path: Path) -> Path:
    """Draw precision over recall with the AP50 of each class."""
    box = metrics.box
    return _plot_curve(
        metrics,
        metrics.curves.precision_recall,
        path,
        notes=[f"{value:.3f}" for value in box.ap50],
        mean_note=f"{box.map50:.3f} mAP50",
    )


def _plot_over_confidence(metrics: Metrics, curve: Curve, path: Path) -> Path:
    """Draw a curve over confidence and mark where the mean F1 is best: the figures of the table."""
    best = int(np.argmin(np.abs(curve.x_X - metrics.box.best_conf)))
    value = float(curve.mean_X[best])
    note = f"{value:.2f} at confidence {curve.x_X[best]:.3f},\nwhere mean F1 is best"
    return _plot_curve(metrics, curve, path, notes=None, mean_note=note, marker=(float(curve.x_X[best]), value))


def _plot_curve(
    metrics: Metrics,
    curve: Curve,
    path: Path,
    *,
    notes: Sequence[str] | None,
    mean_note: str,
    marker: tuple[float, float] | None = None,
) -> Path:
    labels = _drawable(tuple(metrics.names.values()))
    figure = Figure(figsize=(8.6, 5.6), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    handles, texts = _class_lines(axes, curve, labels, notes)
    if len(curve.class_ids_C):
        (mean,) = axes.plot(curve.x_X, curve.mean_X, color=_MEAN_COLOUR, lw=3.0, solid_capstyle="round")
        who = "all classes" if len(metrics.names) > 1 else labels.texts[0]
        handles, texts = [mean, *handles], [f"{who}\n{mean_note}", *texts]
        if marker:
            axes.plot(*marker, "o", color=_MEAN_COLOUR, mec="white", mew=1.2, ms=8, zorder=5, clip_on=False)
        fonts = {"family": list(labels.fonts), "size": 9}
        figure.legend(handles, texts, loc="outside right upper", frameon=False, prop=fonts, labelspacing=0.6)
    else:
        axes.text(0.5, 0.5, "no ground truth", ha="center", va="center", color="0.5", fontsize=14)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=curve.x_label, ylabel=curve.y_label)
    axes.set_title(f"{curve.name} curve, IoU 0.50", loc="left", fontsize=12)
    axes.grid(color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


def _class_lines(
    axes: Axes, curve: Curve, labels: _Labels, notes: Sequence[str] | None
) -> tuple[list[Line2D], list[str]]:
    """Draw a thin line per class: coloured and named while that is legible, else all alike with one legend entry."""
    class_ids = curve.class_ids_C.tolist()
    if len(labels.texts) == 1:
        return [], []  # the thick line says it all
    if len(class_ids) > _LINES_WITH_NAMES:
        axes.plot(curve.x_X, curve.y_CX.T, color=_CROWD_COLOUR, lw=0.6, alpha=0.55)
        return [Line2D([], [], color=_CROWD_COLOUR, lw=1.3)], [f"each of {len(class_ids)} classes"]
    palette = matplotlib.colormaps["tab10" if len(class_ids) <= 10 else "tab20"]
    handles, texts = [], []
    for place, class_id in enumerate(class_ids):
        handles += axes.plot(curve.x_X, curve.y_CX[place], color=palette(place), lw=1.3, alpha=0.9)
        texts.append(labels.texts[class_id] + (f"  {notes[place]}" if notes else ""))
    return handles, texts


def plot_confusion_matrix(matrix: ConfusionMatrix, path: Path, *, normalise: bool = False) -> Path:
    """Draw what was taken for what.

    Args:
        matrix: The counts.
        path: The file.
        normalise: Show shares of each true class instead of counts.
    """
    shown = matrix.normalised() if normalise else matrix.matrix.astype(np.float64)
    count = len(shown)
    labels = _drawable(matrix.names)
    side = float(np.clip(0.42 * count, 5.0, 14.0))
    figure = Figure(figsize=(side + 2.6, side + 1.6), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    masked = np.ma.masked_equal(shown, 0)
    # the square root keeps rare confusions visible next to counts in the thousands
    norm = PowerNorm(1.0 if normalise else 0.5, vmin=0, vmax=1.0 if normalise else max(float(shown.max()), 1.0))
    picture = axes.imshow(masked, cmap="Blues", norm=norm, interpolation="nearest")
    ticks = None if normalise else MaxNLocator(integer=True)
    bar = figure.colorbar(picture, ax=axes, shrink=0.75, aspect=30, ticks=ticks)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if count <= _CELLS_WITH_NUMBERS:
        _write_numbers(axes, shown, norm, normalise=normalise)
    _label_axes(axes, labels, count)
    what = "share of each true class" if normalise else "counts"
    axes.set_title(
        f"Confusion matrix, {what} (confidence {matrix.conf:g}, IoU {matrix.iou:g})",
        loc="left",
        fontsize=float(np.clip(side * 1.6, 11, 20)),
        pad=10,
    )
    return _save(figure, path)


def _write_numbers(axes: Axes, shown: Array, norm: PowerNorm, *, normalise: bool) -> None:
    size = float(np.clip(150 / len(shown), 7, 12))
    for row, column in np.argwhere(shown > 0).tolist():
        value = shown[row, column]
        text = _share(value) if normalise else _count(value)
        dark = float(norm(value)) > 0.55
        axes.text(column, row, text, ha="center", va="center", size=size, color="white" if dark else "#20304a")


def _share(value: float) -> str:
    return "<.01" if value < 0.005 else "1.0" if value >= 0.995 else f"{value:.2f}".lstrip("0")


def _count(value: float) -> str:
    return f"{value:.0f}" if value < 10_000 else f"{value / 1000:.0f}k"


def _label_axes(axes: Axes, labels: _Labels, count: int) -> None:
    size = float(np.clip(330 / count, 6.0, 10.0)) if count > 20 else 10.0
    step = 1 if count <= _TICKS_WITH_NAMES else -(-count // _TICKS_WITH_NAMES)
    ticks = list(range(0, count, step))
    names = [labels.texts[tick] for tick in ticks]
    upright = len(names) * max(len(name) for name in names) > 66  # the longest must fit between two ticks
    axes.set_xticks(ticks, names, rotation=90 if upright else 0, fontsize=size, family=list(labels.fonts))
    axes.set_yticks(ticks, names, fontsize=size, family=list(labels.fonts))
    axes.set_xlabel("True", fontsize=max(size, 10) * 1.15)
    axes.set_ylabel("Predicted", fontsize=max(size, 10) * 1.15)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.88" if count <= _CELLS_WITH_NUMBERS else "0.94", lw=0.5)
    # the background's row and column are of another kind than the classes
    for line in (axes.axhline, axes.axvline):
        line(count - 1.5, color="0.45", lw=1.0)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("0.7")


def _drawable(names: tuple[str, ...]) -> _Labels:
    """Shorten names, keep them from being read as formulas, and find a font that has their characters."""
    own = "DejaVu Sans"
    texts = [" ".join(name.split()) or "(no name)" for name in names]
    missing = _missing(set("".join(texts)), font_manager.findfont(own))
    fonts = (own,)
    if missing:
        installed = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
        left = {font: _missing(missing, installed[font]) for font in _FALLBACK_FONTS if font in installed}
        if left:
            helper = min(left, key=lambda font: len(left[font]))
            fonts, missing = (own, helper), left[helper]
        # boxes in place of characters tell nothing, numbers do
        texts = [f"class {i}" if missing & set(text) else text for i, text in enumerate(texts)]
    return _Labels(tuple(_escape(text) for text in texts), fonts)


def _missing(characters: set[str], font_file: str) -> set[str]:
    font = FT2Font(font_file)
    return {character for character in characters if not font.get_char_index(ord(character))}


def _escape(name: str) -> str:
    half = _LONGEST_NAME // 2  # names that are long often differ at the end
    short = name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
    # matplotlib reads $...$ as a formula and hides legend entries that start with an underscore
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure).print_png(path)
    return path
