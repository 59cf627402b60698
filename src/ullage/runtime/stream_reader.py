"""One connection to one stream: pictures until it ends, breaks or is told to stop.

Network streams and files are read through PyAV (FFmpeg's libraries), cameras through OpenCV, since PyAV's packages
bring no camera drivers for Linux.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import av.container
import av.error
import cv2
import numpy as np

from ullage.runtime.stream_address import StreamAddress

Array = np.ndarray[Any, Any]

_OPEN_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 10.0
# RTSP over TCP where the server can: over UDP single packets are lost, and with them whole pictures.
_NETWORK_OPTIONS = {"rtsp_flags": "prefer_tcp", "analyzeduration": "1000000"}
_REFUSALS = (av.error.HTTPClientError, av.error.ProtocolNotFoundError, av.error.DemuxerNotFoundError)
_SHORT_OF_THE_END_S = 1.0


class StreamLost(Exception):
    """A stream cannot be opened, broke off or fell silent.

    Args:
        reason: In words.
        final: Whether calling again is useless.
    """

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True)
class Shot:
    """One picture as it was decoded; ``image()`` makes pixels of it, which those that are dropped need not.

    Attributes:
        decoded: FFmpeg's frame, or OpenCV's BGR array.
        time_s: The stream's own time, from the first picture of the connection; None when it states none.
        fps: Pictures a second as stated; None when unknown.
    """

    decoded: Any
    time_s: float | None
    fps: float | None

    def image(self) -> Array:
        """Return uint8 RGB (H, W, 3), upright."""
        if isinstance(self.decoded, np.ndarray):
            return np.ascontiguousarray(self.decoded[..., ::-1])
        pixels = self.decoded.to_ndarray(format="rgb24")
        turns = round(self.decoded.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def read_stream(
    address: StreamAddress,
    *,
    on_damage: Callable[[], None],
    stopped: Callable[[], bool],
    timeout_s: float = _READ_TIMEOUT_S,
) -> Iterator[Shot]:
    """Connect and decode.

    Args:
        address: What to open.
        on_damage: Called for each piece that cannot be decoded; it is left out.
        stopped: Asked after each piece; True ends the iteration.
        timeout_s: Silence after which the stream counts as lost.

    Returns:
        An iterator that ends where a recording ends.

    Raises:
        StreamLost: It cannot be opened, breaks off, falls silent, or (live) ends.
    """
    if address.kind == "camera":
        return _read_camera(address, stopped)
    return _read_container(address, on_damage, stopped, timeout_s)


def _read_container(
    address: StreamAddress, on_damage: Callable[[], None], stopped: Callable[[], bool], timeout_s: float
) -> Iterator[Shot]:
    options = _NETWORK_OPTIONS if address.kind == "network" else {}
    opening = _OPEN_TIMEOUT_S if timeout_s == _READ_TIMEOUT_S else timeout_s
    try:
        with av.open(str(address.where), options=options, timeout=(opening, timeout_s)) as container:
            yield from _decode(container, address, on_damage, stopped, timeout_s)
    except av.error.FFmpegError as error:
        raise StreamLost(error.strerror or str(error), final=isinstance(error, _REFUSALS)) from None
    except OSError as error:  # PyAV raises some of the system's own
        raise StreamLost(error.strerror or str(error)) from None


def _decode(
    container: av.container.InputContainer,
    address: StreamAddress,
    on_damage: Callable[[], None],
    stopped: Callable[[], bool],
    timeout_s: float,
) -> Iterator[Shot]:
    if not container.streams.video:
        raise StreamLost("it has no pictures", final=True)
    stream = container.streams.video[0]
    # One thread decodes each stream: many threads would hold pictures back, and there are many streams.
    stream.codec_context.thread_count = 1
    fps = float(stream.average_rate or stream.guessed_rate or 0) or None
    first = last = None
    picture_at = time.monotonic()
    for packet in container.demux(stream):
        if stopped():
            return
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            on_damage()
            frames = []
        for frame in frames:
            if frame.is_corrupt:
                on_damage()
                continue
            picture_at = time.monotonic()
            last = None if frame.time is None else float(frame.time)
            first = last if first is None else first
            yield Shot(frame, None if last is None or first is None else last - first, fps)
        if time.monotonic() - picture_at > timeout_s:
            raise StreamLost(f"no picture could be decoded for {timeout_s:g} s")
    if not _at_its_end(container, address, last):
        raise StreamLost("it ended")


def _at_its_end(container: av.container.InputContainer, address: StreamAddress, last: float | None) -> bool:
    """Tell the end of a recording from a live stream that breaks off."""
    if address.kind == "file":
        return True
    if not str(address.where).lower().startswith(("http://", "https://")) or container.duration is None:
        return False
    end = (container.duration + max(container.start_time or 0, 0)) / av.time_base
    return last is not None and last >= end - _SHORT_OF_THE_END_S


def _read_camera(address: StreamAddress, stopped: Callable[[], bool]) -> Iterator[Shot]:
    capture = cv2.VideoCapture(address.where)
    try:
        if not capture.isOpened():
            raise StreamLost("there is no such camera, or another program uses it", final=True)
        fps = float(capture.get(cv2.CAP_PROP_FPS)) or None
        start = time.monotonic()
        while not stopped():
            got, image = capture.read()
            if not got:
                raise StreamLost("the camera gives no more pictures")
            yield Shot(image, time.monotonic() - start, fps)
    finally:
        capture.release()
