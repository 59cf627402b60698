"""Listeners that write a run down: ``results.csv``, ``events.jsonl``, TensorBoard files, ``results.png``."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ullage.errors import DataError, StorageError
from ullage.train.events import EpochDone, RunEnded, StepDone
from ullage.train.plots import draw_results
from ullage.train.protocols import Listener

STEP_SECONDS = 1.0
REDRAW_SECONDS = 300.0  # a long run has a fresh results.png while it lasts
Row = dict[str, float]


def record_listeners(folder: Path, *, first_epoch: int = 0, plots: bool = True) -> list[Listener]:
    """Return the listeners that write into a run folder.

    Args:
        folder: The run's folder; it exists.
        first_epoch: 0-based epoch from which the run goes on; what was noted of it and later ones is dropped.
        plots: Draw ``results.png``.

    Raises:
        StorageError: The folder cannot be written.
        DataError: ``results.csv`` of the run that goes on is damaged.
    """
    table = ResultsTable(folder / "results.csv", first_epoch=first_epoch)
    listeners: list[Listener] = [EventLog(folder / "events.jsonl"), table, TensorBoard(folder, first_epoch=first_epoch)]
    return [*listeners, ResultsPicture(table, folder / "results.png")] if plots else listeners


class ResultsTable:
    """``results.csv``: one row an epoch. ``rows`` holds what the file holds.

    Args:
        path: The file.
        first_epoch: 0-based; rows of this epoch and later ones are dropped, earlier ones are kept.
    """

    def __init__(self, path: Path, *, first_epoch: int = 0) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.columns: list[str] = []
        if path.exists() and first_epoch > 0:
            self.columns, rows = read_results(path)
            self.rows = [row for row in rows if row["epoch"] <= first_epoch]
        if path.exists():
            self._rewrite()

    def __call__(self, event: Any) -> None:
        """Add the row of an epoch."""
        if not isinstance(event, EpochDone):
            return
        row = results_row(event, earlier_seconds=self.rows[-1]["time"] if self.rows else 0.0)
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new:  # the first epoch, or a run that goes on with other figures than it began with
            self.columns += new
            self._rewrite()
            return
        with _storage(self.path), self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._lines([row], header=False))

    def _rewrite(self) -> None:
        """Replace the file in one piece, so that a kill leaves the old one or the new one."""
        partial = self.path.with_name(f".{self.path.name}.partial")
        with _storage(self.path):
            partial.write_text(self._lines(self.rows, header=True), encoding="utf-8")
            os.replace(partial, self.path)

    def _lines(self, rows: list[Row], *, header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if header and self.columns:
            writer.writeheader()
        writer.writerows({name: _number(value) for name, value in row.items()} for row in rows)
        return text.getvalue()


class EventLog:
    """``events.jsonl``: one line an event, on the disk before training goes on; of steps, at most one a second."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._step_at = -STEP_SECONDS
        with _storage(path), path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a kill left half a line
                    file.write(b"\n")

    def __call__(self, event: Any) -> None:
        """Write one line."""
        if isinstance(event, StepDone):
            now = time.monotonic()
            if now - self._step_at < STEP_SECONDS:
                return
            self._step_at = now
        line = {"event": type(event).__name__, "unix_time": round(time.time(), 3), **_plain(asdict(event))}
        with _storage(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n")


class TensorBoard:
    """Scalars of every epoch in TensorBoard's files; nothing of TensorFlow is needed.

    Args:
        folder: Where the files go.
        first_epoch: 0-based; later points of an earlier attempt are hidden.
    """

    def __init__(self, folder: Path, *, first_epoch: int = 0) -> None:
        self.folder, self.first_epoch = folder, first_epoch
        self._writer: Any = None

    def __call__(self, event: Any) -> None:
        """Write the scalars of an epoch; close at the end."""
        with _storage(self.folder):
            if isinstance(event, EpochDone):
                writer = self._open()
                for name, value in results_row(event).items():
                    if name not in ("epoch", "time"):
                        writer.add_scalar(name, value, event.epoch + 1)
                writer.flush()
            elif isinstance(event, RunEnded) and self._writer is not None:
                self._writer.close()
                self._writer = None

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter  # takes a second to import

            purge = self.first_epoch + 1 if self.first_epoch else None
            self._writer = SummaryWriter(str(self.folder), purge_step=purge)
        return self._writer


class ResultsPicture:
    """``results.png``: drawn at the end, and now and then in a long run."""

    def __init__(self, table: ResultsTable, path: Path) -> None:
        self.table, self.path = table, path
        self._drawn = time.monotonic()

    def __call__(self, event: Any) -> None:
        """Draw, when it is time; the table must have heard of the event before."""
        due = isinstance(event, EpochDone) and time.monotonic() - self._drawn > REDRAW_SECONDS
        if (due or isinstance(event, RunEnded)) and self.table.rows:
            with _storage(self.path):
                draw_results(self.table.rows, path=self.path)
            self._drawn = time.monotonic()


def results_row(event: EpochDone, *, earlier_seconds: float = 0.0) -> Row:
    """Return the row of an epoch; epochs are counted from 1, ``time`` is the seconds since the run began."""
    return {
        "epoch": event.epoch + 1,
        "time": earlier_seconds + event.seconds + event.eval_seconds,
        **{f"train/{name}_loss": value for name, value in event.losses.items()},
        **event.metrics,
        **{f"lr/{name}": value for name, value in event.lr.items()},
        "seconds": event.seconds,
        "eval_seconds": event.eval_seconds,
        "images_per_second": event.images_per_second,
        "peak_bytes_predicted": event.predicted_bytes,
        "peak_bytes_measured": event.memory_bytes,
    }


def read_results(path: Path) -> tuple[list[str], list[Row]]:
    """Read ``results.csv``: its columns, and its rows without what is empty.

    Raises:
        StorageError: The file cannot be read.
        DataError: It is not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            found = [{name: float(text) for name, text in row.items() if text} for row in reader]
            columns = list(reader.fieldnames or ())
    except OSError as error:
        raise StorageError(f"cannot read '{path}': {error.strerror or error}") from None
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"'{path}' is not a table of results: {error}; move it away to go on") from None
    if found and not all("epoch" in row and "time" in row for row in found):
        raise DataError(
            f"'{path}' is not a table of results: it needs the columns 'epoch' and 'time'; move it away to go on"
        )
    return columns, found


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write '{path}': {error.strerror or error}; free some space or choose another project="
        ) from None


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _plain(value: Any) -> Any:
    """Make a value fit for JSON: six digits, no NaN, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
