"""What happened on each stream: frames, drops, rates, latency. Memory stays constant however long it runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

State = Literal["connecting", "live", "lost", "ended", "failed"]
_KEPT = 1000  # latencies
_RATED = 100  # frames that a rate is taken over


@dataclass(frozen=True)
class StreamStats:
    """One stream at one instant.

    Attributes:
        name: The stream, without a password.
        state: ``lost`` is called again, ``failed`` is not.
        read: Pictures decoded.
        done: Pictures with a result.
        skipped: Left out by ``vid_stride``.
        dropped: Given up because a newer one came, or because it would have come too late.
        damaged: Pieces that could not be decoded.
        reconnects: Connections after the first.
        fps_in: Pictures decoded a second, over the last hundred.
        fps_out: Results a second, over the last hundred.
        latency_ms: Median, 95th and 99th percentile of the last thousand, from decoded to result; None without any.
        error: Why it was lost the last time.
    """

    name: str
    state: State
    read: int
    done: int
    skipped: int
    dropped: int
    damaged: int
    reconnects: int
    fps_in: float
    fps_out: float
    latency_ms: tuple[float, float, float] | None
    error: str | None

    def __str__(self) -> str:
        latency = "" if self.latency_ms is None else ", latency {:.0f} / {:.0f} / {:.0f} ms".format(*self.latency_ms)
        rest = [
            f"{count} {word}"
            for count, word in (
                (self.skipped, "skipped"), (self.damaged, "damaged"), (self.reconnects, "reconnects"),
            )
            if count
        ]  # fmt: skip
        why = f" ({self.error})" if self.error and self.state in ("lost", "failed") else ""
        return (
            f"{self.name}: {self.state}{why}, {self.done} of {self.read} frames, {self.dropped} dropped, "
            f"{self.fps_out:.1f} of {self.fps_in:.1f} a second{latency}{''.join(f', {part}' for part in rest)}"
        )


@dataclass
class StreamRecord:
    """Counts one stream; its reader and the passes write here."""

    name: str
    state: State = "connecting"
    read: int = 0
    done: int = 0
    skipped: int = 0
    dropped: int = 0
    damaged: int = 0
    reconnects: int = 0
    error: str | None = None
    _latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _read_at: deque[float] = field(default_factory=lambda: deque(maxlen=_RATED))
    _done_at: deque[float] = field(default_factory=lambda: deque(maxlen=_RATED))

    def count_read(self) -> None:
        """Count a decoded picture."""
        self.read += 1
        self._read_at.append(time.monotonic())

    def count_done(self, latency_s: float) -> None:
        """Count a result."""
        self.done += 1
        self._done_at.append(time.monotonic())
        self._latencies_ms.append(latency_s * 1000)

    def stats(self) -> StreamStats:
        """Return the counts so far."""
        latencies = list(self._latencies_ms)
        median, p95, p99 = np.percentile(latencies, (50, 95, 99)).tolist() if latencies else (0.0, 0.0, 0.0)
        return StreamStats(
            name=self.name,
            state=self.state,
            read=self.read,
            done=self.done,
            skipped=self.skipped,
            dropped=self.dropped,
            damaged=self.damaged,
            reconnects=self.reconnects,
            fps_in=_rate(list(self._read_at)),
            fps_out=_rate(list(self._done_at)),
            latency_ms=(median, p95, p99) if latencies else None,
            error=self.error,
        )


def _rate(moments: Sequence[float]) -> float:
    spent = moments[-1] - moments[0] if len(moments) > 1 else 0.0
    return (len(moments) - 1) / spent if spent > 0 else 0.0


class PassClock:
    """Learns how long a pass of so many frames takes: the mean and twice the spread, recent ones weighing more.

    The first pass of each size pays for what later ones reuse, and is not counted. A pass is assumed to take no longer
    than a larger one, nor than several smaller ones of as many frames: a size that was slow once is tried again.
    """

    _WEIGHT = 0.2

    def __init__(self) -> None:
        self._seen: dict[int, tuple[float, float] | None] = {}

    def learn(self, frames: int, seconds: float) -> None:
        """Take in one pass."""
        if frames not in self._seen:
            self._seen[frames] = None
            return
        mean, spread = self._seen[frames] or (seconds, 0.0)
        spread += self._WEIGHT * (abs(seconds - mean) - spread)
        self._seen[frames] = (mean + self._WEIGHT * (seconds - mean), spread)

    def expected_s(self, frames: int) -> float:
        """Return what a pass will take; 0 before anything is known."""
        known = ((count, seen[0] + 2 * seen[1]) for count, seen in self._seen.items() if seen is not None)
        return min((cost * max(frames / count, 1.0) for count, cost in known), default=0.0)
