"""Results to disk: annotated pictures, annotated videos, YOLO text files."""

from __future__ import annotations

from pathlib import Path, PurePath, PurePosixPath
from types import TracebackType
from urllib.parse import urlsplit

from ullage.errors import StorageError
from ullage.runtime.image_file import WRITABLE_SUFFIXES, write_image
from ullage.runtime.results import Results
from ullage.runtime.video import VideoWriter

_DEFAULT_FPS = 25.0


class ResultSink:
    """Writes results into a folder; use it in a ``with`` statement, since a video is whole only when closed.

    ``a/cat.jpg`` becomes ``cat.jpg``; a second ``b/cat.jpg`` becomes ``cat-2.jpg``. A video becomes one MP4 file. Text
    files go to ``labels/``, for videos one a frame. A source file is never overwritten.

    Args:
        folder: Made when missing.
        pictures: Save annotated pictures and videos.
        text: Save YOLO rows.
        text_scores: Add the score to each row.

    Raises:
        StorageError: The folder cannot be made.
    """

    def __init__(
        self, folder: str | Path, *, pictures: bool = True, text: bool = False, text_scores: bool = False
    ) -> None:
        self._folder = Path(folder)
        self._pictures, self._text, self._text_scores = pictures, text, text_scores
        self._taken: set[str] = set()
        self._video: VideoWriter | None = None
        self._video_target: Path | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder '{self._folder}': {error.strerror or error}") from None

    def write(self, result: Results) -> Path:
        """Write one result.

        Returns:
            Where its picture, or its video, is or would be.

        Raises:
            StorageError: A file cannot be written, or the disk is full.
        """
        if result.video_frame is None:
            self._close_video()
            target = self._target(result.path)
            if self._pictures:
                write_image(target, result.plot())
            label = target.stem
        else:
            target = self._video_path(result)
            if self._pictures:
                self._write_frame(result, target)
            label = f"{target.stem}_{result.video_frame}"
        if self._text:
            result.save_txt(self._folder / "labels" / f"{label}.txt", save_conf=self._text_scores)
        return target

    def close(self) -> None:
        """Finish a video that is being written.

        Raises:
            StorageError: It cannot be written.
        """
        self._close_video()

    def _video_path(self, result: Results) -> Path:
        if self._video_target is None or result.video_frame == 0:  # frame 0: another video, or the same once more
            self._close_video()
            self._video_target = self._target(result.path, suffix=".mp4")
        return self._video_target

    def _write_frame(self, result: Results, target: Path) -> None:
        fps = result.fps or _DEFAULT_FPS
        if self._video is None:
            self._video = VideoWriter(target, fps=fps)
        time_s = (result.video_frame or 0) / fps if result.time_s is None else result.time_s
        self._video.write(result.plot(), time_s=time_s)

    def _close_video(self) -> None:
        video, self._video, self._video_target = self._video, None, None
        if video is not None:
            video.close()

    def _target(self, source: str, *, suffix: str | None = None) -> Path:
        """Choose a file name that this sink has not used and that is not the source itself."""
        name = PurePosixPath(urlsplit(source).path) if "://" in source else PurePath(source)
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


def _key(name: str) -> str:
    """Return what two output files may not share: the name without suffix, letters' case ignored as some systems do."""
    return PurePath(name).stem.casefold()


def _same_file(target: Path, source: str) -> bool:
    return "://" not in source and target.exists() and Path(source).exists() and target.samefile(source)
