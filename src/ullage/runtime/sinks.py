"""Results to disk: annotated pictures, annotated videos, YOLO text files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

from ullage.errors import StorageError
from ullage.runtime.image_file import WRITABLE_SUFFIXES, write_image
from ullage.runtime.results import Array, Results
from ullage.runtime.video import VideoWriter

_DEFAULT_FPS = 25.0


class Sink(Protocol):
    """Takes results as they are made."""

    def write(self, result: Results) -> object:
        """Take one result."""
        ...

    def close(self) -> None:
        """Finish what is open."""
        ...


@dataclass
class _Track:
    """One video that is being written: its first file, and the writer and size of the current one."""

    first: Path
    target: Path
    writer: VideoWriter | None = None
    shape: tuple[int, ...] = ()


class ResultSink:
    """Writes results into a folder; use it in a ``with`` statement, since a video is whole only when closed.

    ``a/cat.jpg`` becomes ``cat.jpg``; a second ``b/cat.jpg`` becomes ``cat-2.jpg``. A video or stream becomes one MP4
    file; where its size changes, another one begins. Text files go to ``labels/``, for videos one a frame. A source
    file is never overwritten.

    Args:
        folder: Made when missing.
        pictures: Save annotated pictures and videos.
        frames: Save every annotated frame of a video as a picture, in ``NAME_frames/``.
        text: Save YOLO rows.
        text_scores: Add the score to each row.

    Raises:
        StorageError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        pictures: bool = True,
        frames: bool = False,
        text: bool = False,
        text_scores: bool = False,
    ) -> None:
        self._folder = Path(folder)
        self._pictures, self._frames, self._text, self._text_scores = pictures, frames, text, text_scores
        self._taken: set[str] = set()
        self._tracks: dict[int | None, _Track] = {}  # by stream; the one video that is read at a time has none
        make_folder(self._folder)

    def write(self, result: Results) -> Path:
        """Write one result.

        Returns:
            Where its picture, or its video, is or would be.

        Raises:
            StorageError: A file cannot be written, or the disk is full.
        """
        picture = result.plot() if self._pictures or (self._frames and result.video_frame is not None) else None
        if result.video_frame is None:
            self._close_video(None)
            target = self._target(result.path)
            if picture is not None:
                write_image(target, picture)
            label = target.stem
        else:
            track = self._track(result)
            if picture is not None and self._pictures:
                self._write_frame(result, picture, track)
            if picture is not None and self._frames:
                write_image(self._folder / f"{track.first.stem}_frames" / f"{result.video_frame}.jpg", picture)
            target, label = track.target, f"{track.first.stem}_{result.video_frame}"
        if self._text:
            result.save_txt(self._folder / "labels" / f"{label}.txt", save_conf=self._text_scores)
        return target

    def close(self) -> None:
        """Finish the videos that are being written.

        Raises:
            StorageError: One cannot be written.
        """
        for key in tuple(self._tracks):
            self._close_video(key)

    def _track(self, result: Results) -> _Track:
        another = result.stream is None and result.video_frame == 0  # another video, or the same once more
        if another or result.stream not in self._tracks:
            self._close_video(result.stream)
            target = self._target(result.path, suffix=".mp4")
            self._tracks[result.stream] = _Track(target, target)
        return self._tracks[result.stream]

    def _write_frame(self, result: Results, picture: Array, track: _Track) -> None:
        fps = result.fps or _DEFAULT_FPS
        if track.writer is not None and track.shape != picture.shape:
            track.writer.close()
            track.writer, track.target = None, self._target(result.path, suffix=".mp4")
        if track.writer is None:
            track.writer = VideoWriter(track.target, fps=fps, fragmented=result.stream is not None)
            track.shape = picture.shape
        time_s = (result.video_frame or 0) / fps if result.time_s is None else result.time_s
        track.writer.write(picture, time_s=time_s)

    def _close_video(self, key: int | None) -> None:
        track = self._tracks.pop(key, None)
        if track is not None and track.writer is not None:
            track.writer.close()

    def _target(self, source: str, *, suffix: str | None = None) -> Path:
        """Choose a file name that this sink has not used and that is not the source itself."""
        parts = urlsplit(source) if "://" in source else None
        name = PurePath(source) if parts is None else PurePosixPath(parts.path.strip("/") or parts.hostname or "")
        if suffix is None:
            suffix = name.suffix if name.suffix.lower() in WRITABLE_SUFFIXES else ".jpg"
        stem, number = name.stem or "image", 1
        candidate = f"{stem}{suffix}"
        # Stems, not names: a text file belongs to each.
        while _key(candidate) in self._taken or _same_file(self._folder / candidate, source):
            number += 1
            candidate = f"{stem}-{number}{suffix}"
        self._taken.add(_key(candidate))
        return self._folder / candidate

    def __enter__(self) -> ResultSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_folder(folder: Path) -> None:
    """Make a folder where it is missing.

    Raises:
        StorageError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder '{folder}': {error.strerror or error}") from None


def _key(name: str) -> str:
    """Return what two output files may not share: the name without suffix, letters' case ignored as some systems do."""
    return PurePath(name).stem.casefold()


def _same_file(target: Path, source: str) -> bool:
    return "://" not in source and target.exists() and Path(source).exists() and target.samefile(source)
