"""Many streams, one feed: a thread decodes each, and their frames are gathered into the groups that a pass takes.

Streams that waited longest are served first, one frame each, so that none starves. Every wait is bounded and every
queue is short: memory does not depend on how long it runs, nor on how slow the consumer is.
"""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

from ullage.errors import BackendUnavailable, DataError
from ullage.runtime.sources import Frame
from ullage.runtime.stream_address import StreamAddress
from ullage.runtime.stream_reader import Shot, StreamLost, read_stream
from ullage.runtime.stream_stats import PassClock, StreamRecord, StreamStats

Policy = Literal["oldest", "latest"]

_QUEUE = 4  # frames of a stream that wait in order
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 15.0
_FIRST_CONTACT_S = 10.0  # as long as no stream ever gave a picture
_PASS_SHARE = 0.5  # of the latency that one pass may take
_LATE, _IN_TIME, _MOST_CAUTION = 1.05, 0.999, 8.0  # in balance when 2 % are late
_JOIN_S = 2.0
_CONVERTERS = 8


@dataclass(frozen=True)
class StreamSettings:
    """How streams are read.

    Attributes:
        policy: ``latest`` keeps each stream's newest frame and drops the one before it; ``oldest`` keeps the order, and
            the reader waits. None: latest of live streams, oldest of files.
        latency_ms: From decoded to result: frames that would be later are dropped, and frames wait for company no
            longer than half of it. None: nothing is late, and nothing waits for company.
        reconnect_s: How long a lost stream is called again; None for ever.
        stride: Every how manieth frame is used.
        timeout_s: Silence after which a stream counts as lost.
    """

    policy: Policy | None = None
    latency_ms: float | None = None
    reconnect_s: float | None = None
    stride: int = 1
    timeout_s: float = 10.0


class Reader(Protocol):
    """Connects to a stream; see ``read_stream``."""

    def __call__(
        self,
        address: StreamAddress,
        *,
        on_damage: Callable[[], None],
        stopped: Callable[[], bool],
        timeout_s: float,
    ) -> Iterator[Shot]:
        """Yield pictures."""
        ...


@dataclass(frozen=True)
class _Waiting:
    shot: Shot
    number: int
    time_s: float
    arrived: float  # time.monotonic()
    received_at: float  # time.time()


class _Lane:
    """One stream: its queue, its record, when it was served last."""

    def __init__(self, address: StreamAddress, policy: Policy) -> None:
        self.address, self.policy = address, policy
        self.record = StreamRecord(address.name)
        self.queue: deque[_Waiting] = deque()
        self.served = 0.0

    @property
    def is_open(self) -> bool:
        return self.record.state not in ("ended", "failed")


class StreamHub:
    """Reads streams in threads and hands out groups of frames.

    Args:
        addresses: The streams.
        settings: How they are read.
        batch: Frames a group at most.
        read: Connects to one; replaced in simulations.
    """

    def __init__(
        self,
        addresses: Sequence[StreamAddress],
        *,
        settings: StreamSettings,
        batch: int,
        read: Reader = read_stream,
    ) -> None:
        self._settings, self._batch, self._read = settings, batch, read
        self._lanes = [
            _Lane(address, settings.policy or ("latest" if address.is_live else "oldest")) for address in addresses
        ]
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clock = PassClock()
        self._caution = 1.0
        self._failures: list[str] = []
        self._warned = 0
        self._pool = ThreadPoolExecutor(min(_CONVERTERS, os.cpu_count() or 1), thread_name_prefix="ullage-convert")

    def start(self) -> None:
        """Start reading."""
        for lane in self._lanes:
            thread = threading.Thread(target=self._feed, args=(lane,), name=f"ullage-{lane.record.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """Stop reading; a reader that waits for its network ends by itself within its timeout."""
        self._stop.set()
        self.wake()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self._pool.shutdown()

    def wake(self) -> None:
        """Let ``take`` look again whether it is interrupted."""
        with self._changed:
            self._changed.notify_all()

    def stats(self) -> tuple[StreamStats, ...]:
        """Return what happened so far, in the order of the streams."""
        return tuple(lane.record.stats() for lane in self._lanes)

    def take(self, interrupted: Callable[[], bool]) -> list[Frame] | None:
        """Wait for the next group.

        Args:
            interrupted: Asked whenever something changes; True ends the wait with an empty group.

        Returns:
            Frames; None when every stream has ended.

        Raises:
            DataError: No stream ever gave a picture, or they all failed.
            BackendUnavailable: The same, of cameras.
        """
        with self._changed:
            while True:
                self._warn()
                wait_s = self._wait_s()
                if wait_s == 0:
                    picked = self._pick()
                    break
                if wait_s is None and not any(lane.is_open for lane in self._lanes):
                    self._refuse_silence()
                    return None
                if interrupted():
                    return []
                self._changed.wait(wait_s)
        return list(self._pool.map(self._frame, picked)) if len(picked) > 1 else [self._frame(one) for one in picked]

    def finished(self, frames: Sequence[Frame], seconds: float) -> None:
        """Take note of a pass that is done."""
        now = time.monotonic()
        with self._changed:
            self._clock.learn(len(frames), seconds)
            for frame in frames:
                assert frame.stream is not None
                assert frame.arrived is not None
                self._lanes[frame.stream].record.count_done(now - frame.arrived)
                self._learn_caution(now - frame.arrived)

    def _learn_caution(self, latency_s: float) -> None:
        """Plan with longer passes after late results: on a busy machine, what a pass took before says little."""
        if self._settings.latency_ms is not None:
            late = latency_s * 1000 > self._settings.latency_ms
            self._caution = min(max(self._caution * (_LATE if late else _IN_TIME), 1.0), _MOST_CAUTION)

    def _expected_s(self, frames: int) -> float:
        return self._caution * self._clock.expected_s(frames)

    def _wait_s(self) -> float | None:
        """Return how long a group should still wait for company: 0 when it is ready, None when there is no frame."""
        waiting = [lane for lane in self._lanes if lane.queue]
        if not waiting:
            return None
        count = sum(len(lane.queue) for lane in waiting)
        everybody = all(lane.queue for lane in self._lanes if lane.record.state == "live")
        if self._settings.latency_ms is None or count >= self._most() or everybody:
            return 0
        oldest = min(lane.queue[0].arrived for lane in waiting)
        patience_s = (self._settings.latency_ms / 1000 - 2 * self._expected_s(count)) / 2
        return max(oldest + patience_s - time.monotonic(), 0)

    def _most(self) -> int:
        """Return the largest group whose pass leaves room within the latency."""
        if self._settings.latency_ms is None:
            return self._batch
        allowed_s = self._settings.latency_ms / 1000 * _PASS_SHARE
        most = self._batch
        while most > 1 and self._expected_s(most) > allowed_s:
            most -= 1
        return most

    def _pick(self) -> list[tuple[_Lane, _Waiting]]:
        """Take frames out of the queues: of the stream that was served longest ago first, one each, round by round."""
        most = self._most()
        self._drop_late(min(most, sum(len(lane.queue) for lane in self._lanes)))
        picked: list[tuple[_Lane, _Waiting]] = []
        while len(picked) < most:
            lanes = sorted((lane for lane in self._lanes if lane.queue), key=lambda lane: lane.served)
            if not lanes:
                break
            for lane in lanes[: most - len(picked)]:
                picked.append((lane, lane.queue.popleft()))
                lane.served = time.monotonic()
        self._changed.notify_all()  # readers that wait for room
        return picked

    def _drop_late(self, count: int) -> None:
        """Drop what would come too late; when all would, each stream that waited longest keeps its newest frame."""
        if self._settings.latency_ms is None:
            return
        horizon = time.monotonic() + self._expected_s(count) - self._settings.latency_ms / 1000
        if all(one.arrived < horizon for lane in self._lanes for one in lane.queue):
            keeper = min((lane for lane in self._lanes if lane.queue), key=lambda lane: lane.served)
        else:
            keeper = None
        for lane in self._lanes:
            least = 1 if lane is keeper else 0
            while len(lane.queue) > least and lane.queue[0].arrived < horizon:
                lane.queue.popleft()
                lane.record.dropped += 1

    def _frame(self, picked: tuple[_Lane, _Waiting]) -> Frame:
        lane, one = picked
        return Frame(
            one.shot.image(),
            lane.record.name,
            one.number,
            video_frame=one.number,
            time_s=one.time_s,
            fps=None if one.shot.fps is None else one.shot.fps / self._settings.stride,
            stream=self._lanes.index(lane),
            received_at=one.received_at,
            arrived=one.arrived,
        )

    def _warn(self) -> None:
        """Say once of each stream that it was given up, unless nothing is left and an error will say it."""
        if any(lane.is_open or lane.record.read for lane in self._lanes):
            for failure in self._failures[self._warned :]:
                warnings.warn(f"given up: {failure}", stacklevel=4)
            self._warned = len(self._failures)

    def _refuse_silence(self) -> None:
        """Raise when nothing ever came."""
        if any(lane.record.read for lane in self._lanes) or not self._failures:
            return
        error = BackendUnavailable if all(lane.address.kind == "camera" for lane in self._lanes) else DataError
        raise error(f"no stream gives pictures: {'; '.join(self._failures)}")

    def _feed(self, lane: _Lane) -> None:
        """Read one stream until it ends or is given up; the body of its thread."""
        call = _Calls(self._lanes, lane, self._settings.reconnect_s)
        try:
            while not self._stop.is_set():
                try:
                    self._read_once(lane, call)
                    lane.record.state = "ended"
                    return
                except StreamLost as lost:
                    lane.record.error = str(lost)
                    delay_s = call.delay_s(final=lost.final)
                if delay_s is None:
                    lane.record.state = "failed"
                    return
                lane.record.state = "lost"
                self.wake()
                self._stop.wait(delay_s)
        finally:
            with self._changed:
                if lane.is_open:  # stopped from outside, or by an error that nobody foresaw, which Python prints
                    lane.record.state = "ended" if self._stop.is_set() else "failed"
                if lane.record.state == "failed":
                    self._failures.append(f"'{lane.record.name}': {lane.record.error or 'its reader broke down'}")
                self._changed.notify_all()

    def _read_once(self, lane: _Lane, call: _Calls) -> None:
        """Read one connection to its end."""
        record, connected = lane.record, False

        def damaged() -> None:
            record.damaged += 1

        shots = self._read(
            lane.address, on_damage=damaged, stopped=self._stop.is_set, timeout_s=self._settings.timeout_s
        )
        for shot in shots:
            number, record.state = record.read, "live"
            if not connected:
                connected = True
                call.connected()
            record.count_read()
            call.picture()
            waiting = _Waiting(shot, number, call.time_s(shot), time.monotonic(), time.time())
            if number % self._settings.stride:
                record.skipped += 1
            else:
                self._offer(lane, waiting)
            if self._stop.is_set():
                return

    def _offer(self, lane: _Lane, one: _Waiting) -> None:
        with self._changed:
            if lane.policy == "latest":
                lane.record.dropped += len(lane.queue)
                lane.queue.clear()
            while len(lane.queue) >= _QUEUE and not self._stop.is_set():
                self._changed.wait()
            lane.queue.append(one)
            self._changed.notify_all()


class _Calls:
    """When a stream is called again, and how its time goes on after it was lost."""

    def __init__(self, lanes: Sequence[_Lane], lane: _Lane, reconnect_s: float | None) -> None:
        self._lanes, self._lane, self._reconnect_s = lanes, lane, reconnect_s
        self._delay_s = _FIRST_DELAY_S
        self._begun = self._picture_at = time.monotonic()
        self._first_picture_at: float | None = None
        self._base_s, self._last_s = 0.0, -1.0

    def connected(self) -> None:
        """Take note of the first picture of a connection."""
        now = time.monotonic()
        if self._first_picture_at is None:
            self._first_picture_at = now
        else:
            self._lane.record.reconnects += 1
        self._base_s = now - self._first_picture_at

    def picture(self) -> None:
        """Take note of a picture: the next loss is called back at once."""
        self._picture_at, self._delay_s = time.monotonic(), _FIRST_DELAY_S

    def time_s(self, shot: Shot) -> float:
        """Return the time of a picture from the stream's first one; it never goes back."""
        own_s = shot.time_s
        if own_s is None:
            own_s = time.monotonic() - (self._first_picture_at or 0.0) - self._base_s
        step_s = 1 / shot.fps if shot.fps else 1e-3
        if self._base_s + own_s <= self._last_s:  # the sender's clock was set back
            self._base_s = self._last_s + step_s - own_s
        self._last_s = self._base_s + own_s
        return self._last_s

    def delay_s(self, *, final: bool) -> float | None:
        """Return how long to wait before the next call, twice as long each time; None to give up."""
        new = self._first_picture_at is None
        patience_s = self._reconnect_s
        if not any(lane.record.read for lane in self._lanes):  # perhaps the address is wrong
            patience_s = min(_FIRST_CONTACT_S, _FIRST_CONTACT_S if patience_s is None else patience_s)
        since = self._begun if new else self._picture_at
        gone = patience_s is not None and time.monotonic() - since >= patience_s
        if gone or (final and new) or self._lane.address.kind == "file":
            return None
        delay_s, self._delay_s = self._delay_s, min(2 * self._delay_s, _LONGEST_DELAY_S)
        return delay_s * random.uniform(0.75, 1.25)  # many readers of one server do not call all at once
