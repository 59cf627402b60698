"""Video files, read and written one frame at a time through PyAV (FFmpeg's libraries)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import numpy as np

from ullage.errors import DataError, StorageError

Array = np.ndarray[Any, Any]

_CLOCK = Fraction(1, 60_000)  # exact for 24, 25, 30, 50, 60 and 29.97 frames a second; MPEG-4 allows up to 65,535
_DEFAULT_FPS = 25.0


@dataclass(frozen=True)
class VideoFrame:
    """One picture of a video.

    Attributes:
        image_HW3: uint8 RGB, upright.
        number: 0-based.
        time_s: When it is shown, from the start of the file.
        fps: Average frames a second of the video.
    """

    image_HW3: Array
    number: int
    time_s: float
    fps: float


def read_video(path: str | Path, *, stride: int = 1) -> Iterator[VideoFrame]:
    """Decode a video file; memory stays constant, and a rotation that the file states (phones do) is applied.

    Args:
        path: The file.
        stride: Every how manieth frame is given, from the first; ``fps`` is that of the frames given.

    Raises:
        DataError: The file is not a video, has no pictures, or is damaged before its end.
    """
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"'{path}' has no video track")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or stream.guessed_rate or _DEFAULT_FPS)
            for frame in container.decode(stream):
                number, count = count, count + 1
                if number % stride:
                    continue
                image = frame.to_ndarray(format="rgb24")
                turns = round(frame.rotation / 90) % 4  # stated counter-clockwise, as np.rot90 turns
                upright = np.ascontiguousarray(np.rot90(image, turns)) if turns else image
                time_s = number / fps if frame.time is None else float(frame.time)
                yield VideoFrame(upright, number, time_s, fps / stride)
    except av.error.FFmpegError as error:
        where = f"after frame {count - 1}" if count else "at its start"
        raise DataError(f"'{path}' cannot be decoded as a video {where}: {error.strerror}") from None
    if count == 0:
        raise DataError(f"'{path}' holds no pictures")


class VideoWriter:
    """Writes frames to an MP4 file: H.264 where the libraries have it, else MPEG-4.

    Use it in a ``with`` statement: the file is playable only after it was closed.

    Args:
        path: The file; its folder must exist.
        fps: Frames a second that the file states.
        fragmented: Write whole pieces of two seconds, so that what was written can be played even when the program is
            killed; for recordings without an end.
    """

    def __init__(self, path: str | Path, *, fps: float, fragmented: bool = False) -> None:
        self._path = Path(path)
        self._fragmented = fragmented
        self._fps = Fraction(fps).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None
        self._last_tick = -1

    def write(self, image_HW3: Array, *, time_s: float) -> None:
        """Append a frame.

        Args:
            image_HW3: uint8 RGB; every frame has the size of the first.
            time_s: When it is shown; later than the frame before.

        Raises:
            StorageError: The file cannot be written.
        """
        height, width = image_HW3.shape[:2]
        # The codecs store colour at half resolution: sides must be even.
        even = np.pad(image_HW3, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            if self._container is None:
                self._open(even.shape[0], even.shape[1])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            self._last_tick = max(round(time_s / _CLOCK), self._last_tick + 1)
            frame.pts, frame.time_base = self._last_tick, _CLOCK
            self._mux(frame)
        except (OSError, av.error.FFmpegError) as error:
            raise self._storage_error(error) from None

    def close(self) -> None:
        """Write what is pending and finish the file.

        Raises:
            StorageError: The file cannot be written.
        """
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
            container.close()
        except (OSError, av.error.FFmpegError) as error:
            raise self._storage_error(error) from None

    def _mux(self, frame: av.VideoFrame) -> None:
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        options = (
            {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"} if self._fragmented else {}
        )
        self._container = av.open(str(self._path), "w", format="mp4", options=options)
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(codec, rate=self._fps)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = _CLOCK
        if self._fragmented:
            self._stream.codec_context.gop_size = max(round(2 * self._fps), 1)
            self._stream.codec_context.max_b_frames = 0  # such a file cannot say that its first picture is later
        if codec == "libx264":
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        else:
            self._stream.bit_rate = max(width * height * 4, 1_000_000)  # it knows no constant quality

    def _storage_error(self, error: Exception) -> StorageError:
        # FFmpeg's libraries may crash when a container goes on after a failed write: let go of it unfinished.
        self._container = self._stream = None
        return StorageError(f"cannot write the video '{self._path}': {getattr(error, 'strerror', None) or error}")

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
