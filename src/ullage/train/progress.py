"""Progress on the console: a live line a step in a terminal, a few plain lines an epoch in a log."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ullage.train.events import EpochDone, Notice, OutOfMemory, RunEnded, RunStarted, StepDone
from ullage.units import format_bytes, format_duration

REFRESH_SECONDS = 0.1
LOG_SECONDS = 60.0  # in a log, long epochs speak up at most this often ...
LOG_PARTS = 4  # ... and at most this often an epoch, its end included
WIDE = 96  # characters that the live line needs with all columns
_NAMES = {"precision": "P", "recall": "R"}
_SHOWN = ("P", "R", "mAP50", "mAP50-95")


class ConsoleProgress:
    """Shows how a run gets on: epoch, memory, the plan's, losses, instances, size, images/s, time left; then the mAP.

    Args:
        console: Where to write; None is standard output. Terminals get a live line; logs and notebooks get plain ones.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = _PipedConsole(highlight=False, soft_wrap=True) if console is None else console
        self.is_live = self.console.is_terminal and not self.console.is_jupyter and not self.console.is_dumb_terminal
        self._live: Live | None = None
        self._run = RunStarted(epochs=1, first_epoch=0, batches=1, loss_names=())
        self._step: StepDone | None = None
        self._clock = _Clock()
        self._shown_at = self._logged_at = 0.0
        self._logged_parts = 0

    def __call__(self, event: Any) -> None:
        """Show one event."""
        if isinstance(event, Notice):
            self._print(event.message)
        elif isinstance(event, OutOfMemory):
            reason = textwrap.shorten(event.reason, 80, placeholder=" ...")
            text = f"out of memory in {event.where} ({reason}); nothing is lost, from now on {event.plan}"
            self._print(text, style="yellow")
        elif isinstance(event, RunStarted):
            self._run, self._clock = event, _Clock()
            self._print(self._header(), style="bold")
        elif isinstance(event, StepDone):
            self._on_step(event)
        elif isinstance(event, EpochDone):
            self._on_epoch(event)
        elif isinstance(event, RunEnded):
            self._on_end(event)

    def close(self) -> None:
        """Leave the terminal as it was found; a run that fails is not followed by ``RunEnded``."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _on_step(self, event: StepDone) -> None:
        now = time.monotonic()
        if self._step is None or self._step.epoch != event.epoch:
            self._logged_parts, self._logged_at = 0, now
        self._step = event
        self._clock.step(event, now)
        ended = event.batch >= self._run.batches
        if self.is_live:
            if ended or now - self._shown_at >= REFRESH_SECONDS:
                self._shown_at = now
                self._show(self._live_line(event, ended))
            return
        part = event.batch * LOG_PARTS // self._run.batches
        if not ended and part > self._logged_parts and now - self._logged_at >= LOG_SECONDS:
            self._logged_parts, self._logged_at = part, now
            self._print(f"{self._row(event)}   {self._share(event)} {self._time_left(event)}")

    def _on_epoch(self, event: EpochDone) -> None:
        self.close()
        self._clock.epoch(event)
        step = self._step
        if step is not None and step.epoch == event.epoch:
            row = self._row(step, losses=event.losses, speed=event.images_per_second, memory=event.memory_bytes)
            self._print(f"{row}   {format_duration(_whole(event.seconds))}")
        figures = _figures(event.metrics)
        if figures:
            best = "   best so far" if event.is_best else ""
            took = f"   (judged in {format_duration(_whole(event.eval_seconds))})"
            text = "   ".join(f"{name} {value:.3f}" for name, value in figures.items())
            self._print(f"{'':>8}   {text}{best}{took}", style="green" if event.is_best else "")

    def _on_end(self, event: RunEnded) -> None:
        self.close()
        best = f", the best was epoch {event.best_epoch + 1}" if event.best_epoch >= 0 else ""
        count = f"{event.epochs_done} epoch{'' if event.epochs_done == 1 else 's'}"
        self._print(f"{count} in {format_duration(_whole(event.seconds))} ({event.reason}){best}", style="bold")
        for name, path in event.files.items():
            if path.exists():
                self._print(f"  {name}: {path} ({format_bytes(path.stat().st_size)})")

    def _header(self) -> str:
        losses = "".join(f"{name:>7}" for name in self._run.loss_names)
        return f"{'Epoch':>8}{'Memory':>8}{self._planned('Planned')}{losses}{'Instances':>10}{'Size':>8}{'Images/s':>9}"

    def _row(
        self,
        event: StepDone,
        *,
        losses: Mapping[str, float] | None = None,
        speed: float | None = None,
        memory: int | None = None,
    ) -> str:
        limited = self._run.seconds_limit is not None
        epoch = f"{event.epoch + 1}" if limited else f"{event.epoch + 1}/{self._run.epochs}"
        height, width = event.size_hw
        size = f"{width}" if height == width else f"{height}x{width}"
        # four digits of a loss below .1 would fill its column
        parts = "".join(f"{v:>7.4g}" if v >= 0.1 else f"{v:>7.3f}" for v in (losses or event.losses).values())
        used = format_bytes(event.memory_bytes if memory is None else memory)
        rate = event.images_per_second if speed is None else speed
        planned = self._planned(format_bytes(event.predicted_bytes) if event.predicted_bytes else "-")
        return f"{epoch:>8}{used:>8}{planned}{parts}{event.boxes:>10,}{size:>8}{rate:>9.1f}"

    def _planned(self, text: str) -> str:
        """Fill the column that a narrow terminal has no room for."""
        return f"{text:>8}" if not self.is_live or self.console.width >= WIDE else ""

    def _live_line(self, event: StepDone, ended: bool) -> Text:
        row = self._row(event)
        tail = f"{self._share(event)} judging ..." if ended else f"{self._share(event)} {self._time_left(event)}"
        if len(row) + len(tail) + 2 > self.console.width:
            tail = tail.split(",")[0].removesuffix(" left")  # a narrow terminal shows the epoch's time only
        room = min(self.console.width - len(row) - len(tail) - 4, 30)
        line = Text(f"{row} ", no_wrap=True, overflow="ellipsis")
        if room >= 6:
            full, empty = ("━", "─") if (self.console.encoding or "").lower().startswith("utf") else ("#", ".")
            done = min(round(room * event.batch / self._run.batches), room)
            line.append(full * done, style="cyan").append(empty * (room - done), style="dim").append(" ")
        return line.append(tail)

    def _share(self, event: StepDone) -> str:
        return f"{min(event.batch / self._run.batches, 1.0):>4.0%}"

    def _time_left(self, event: StepDone) -> str:
        epoch, run = self._clock.left(event, self._run)
        if epoch is None:
            return ""
        return f"{_clock_text(epoch)} left" + (f", run {_clock_text(run)}" if run is not None else "")

    def _show(self, line: Text) -> None:
        if self._live is None:
            # no refresh thread: a line changes only between two steps
            self._live = Live(line, console=self.console, auto_refresh=False, transient=True, redirect_stderr=False)
            self._live.start()
        self._live.update(line, refresh=True)

    def _print(self, text: str, *, style: str = "") -> None:
        self.console.print(Text(text, style=style if self.is_live else ""), soft_wrap=True)


class _PipedConsole(Console):
    """A console that says when its reader has gone; rich's own would end the process without a word."""

    def on_broken_pipe(self) -> None:
        """Let the error that is being handled go on."""
        raise


class _Clock:
    """Estimates of the time left, from this session alone: a resumed epoch began before it."""

    def __init__(self) -> None:
        self._first: tuple[int, int, float] | None = None
        self._seconds_a_batch = 0.0
        self._epoch_seconds: float | None = None
        self._began = time.monotonic()

    def step(self, event: StepDone, now: float) -> None:
        if self._first is None or self._first[0] != event.epoch:
            self._first = (event.epoch, event.batch, now)
        elif event.batch > self._first[1]:
            self._seconds_a_batch = (now - self._first[2]) / (event.batch - self._first[1])

    def epoch(self, event: EpochDone) -> None:
        self._epoch_seconds = event.seconds + event.eval_seconds

    def left(self, event: StepDone, run: RunStarted) -> tuple[float | None, float | None]:
        """Return the seconds left of the epoch and of the run, as far as known."""
        if self._seconds_a_batch == 0.0:
            return None, None
        epoch = self._seconds_a_batch * max(run.batches - event.batch, 0)
        if run.seconds_limit is not None:
            return epoch, None
        whole = self._epoch_seconds or self._seconds_a_batch * run.batches
        return epoch, epoch + whole * (run.epochs - event.epoch - 1)


def _figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Pick P, R and the two mAPs from the names of the evaluation."""
    bare = {name.removeprefix("metrics/").removesuffix("(B)"): value for name, value in metrics.items()}
    named = {_NAMES.get(name, name): value for name, value in bare.items()}
    return {name: named[name] for name in _SHOWN if name in named}


def _whole(seconds: float) -> float:
    return seconds if seconds < 10 else float(round(seconds))


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
