"""What people point a detector at, as one stream of frames.

A source is a file, a folder (one level: its own files, not those of folders in it), a glob pattern (``**`` goes
deeper), a ``.txt`` list of those, an http(s) address of an image, an array, a PIL image, a tensor, or a list
of any of them. Cameras, live streams and the lines of a ``.streams`` file are read side by side, not one after the
other.
"""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ullage.data.decode import read_image
from ullage.data.spec import IMAGE_SUFFIXES
from ullage.errors import ConfigError, DataError
from ullage.runtime.download import download_image
from ullage.runtime.pixels import image_from_pil, images_from_array, images_from_tensor
from ullage.runtime.stream_address import SCHEMES, StreamAddress, camera, file_stream, network_stream, plays
from ullage.runtime.video import read_video

Array = np.ndarray[Any, Any]

VIDEO_SUFFIXES = (".asf", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
_SUFFIXES = frozenset(VIDEO_SUFFIXES) | IMAGE_SUFFIXES
_LOOKED_FOR = " ".join(suffix.removeprefix(".") for suffix in (*sorted(IMAGE_SUFFIXES), *VIDEO_SUFFIXES))


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image_HW3: uint8 RGB.
        path: The file or address; ``image0.jpg``, ``image1.jpg`` ... for what came from memory.
        index: Running number in the source.
        video_frame: 0-based number in its video; None for a picture.
        time_s: When the video shows it, from its start.
        fps: Frames a second of the video.
        stream: Number of the stream that it comes from; None of other sources.
        received_at: When a stream's frame was decoded, as ``time.time()``.
        arrived: The same as ``time.monotonic()``.
    """

    image_HW3: Array
    path: str
    index: int
    video_frame: int | None = None
    time_s: float | None = None
    fps: float | None = None
    stream: int | None = None
    received_at: float | None = None
    arrived: float | None = None


@dataclass(frozen=True)
class _Item:
    """A file, an address, a stream or an image in memory; ``named``: the user wrote it, no folder held it."""

    what: Path | str | Array | StreamAddress
    name: str
    named: bool = True

    @property
    def is_video(self) -> bool:
        return isinstance(self.what, Path) and self.what.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class LiveSource:
    """Streams that play side by side.

    Attributes:
        addresses: Where they are.
    """

    addresses: tuple[StreamAddress, ...]


class Source:
    """Iterates over the frames of what ``open_source`` found; may be iterated again.

    Args:
        items: What was found.
        description: How to call it in messages.
        stride: Of videos every how manieth frame is used.

    Attributes:
        skipped: One line for each unreadable file that the last iteration left out.
    """

    def __init__(self, items: Sequence[_Item], description: str, *, stride: int = 1) -> None:
        self._items, self._stride = tuple(items), stride
        self._description = description
        self.skipped: list[str] = []

    @property
    def has_video(self) -> bool:
        """Whether there is a video among the files, so that the number of frames is not known."""
        return any(item.is_video for item in self._items)

    @property
    def count(self) -> int | None:
        """Number of pictures; None when a video is among them."""
        return None if self.has_video else len(self._items)

    def __iter__(self) -> Iterator[Frame]:
        self.skipped = []
        index = 0
        for item in self._items:
            try:
                for frame in _frames(item, index, self._stride):
                    yield frame
                    index += 1
            except DataError as error:
                if item.named:
                    raise
                self.skipped.append(str(error))
                warnings.warn(f"skipped: {error}", stacklevel=2)
        if index == 0:
            raise DataError(
                f"none of the {len(self._items)} files of {self._description} can be read: {self.skipped[0]}"
            )


def open_source(source: Any, *, stride: int = 1) -> Source | LiveSource:
    """Find out what a source is, and that it is there; streams are called later.

    Files are read while iterating. An unreadable file that the user named is an error; in a folder, a glob or a list
    file it is skipped with a warning.

    Args:
        source: See the top of this file. Arrays are RGB (H, W), (H, W, 1 | 3 | 4) or (B, H, W, 3), uint8, uint16, bool
            or floats in [0, 1]; tensors are (B, 3, H, W), floats in [0, 1] or uint8.
        stride: Of videos every how manieth frame is used.

    Raises:
        DataError: Nothing is there, or it is neither an image nor a video.
        ConfigError: It is of a type that cannot be a source, or mixes streams with pictures.
    """
    try:
        items = list(_items(source, counter=[0]))
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise DataError(f"cannot look at the source: {error}") from None
    if not items:
        raise DataError("the source is an empty list: name at least one image, video or folder")
    if any(isinstance(item.what, StreamAddress) for item in items):
        return LiveSource(tuple(_as_stream(item) for item in items))
    return Source(items, f"'{source}'" if isinstance(source, str | Path) else "the source", stride=stride)


def _as_stream(item: _Item) -> StreamAddress:
    if isinstance(item.what, StreamAddress):
        return item.what
    if not item.is_video or not isinstance(item.what, Path):
        raise ConfigError(f"streams play side by side, and '{item.name}' is a picture: predict it in a call of its own")
    return file_stream(item.what)


def _frames(item: _Item, index: int, stride: int) -> Iterator[Frame]:
    if isinstance(item.what, np.ndarray):
        yield Frame(item.what, item.name, index)
    elif isinstance(item.what, str):
        yield Frame(download_image(item.what), item.name, index)
    elif isinstance(item.what, StreamAddress):
        raise ConfigError(f"'{item.name}' is a stream; streams are not read one after the other")
    elif item.is_video:
        for used, shot in enumerate(read_video(item.what, stride=stride)):
            yield Frame(shot.image_HW3, item.name, index + used, shot.number, shot.time_s, shot.fps)
    else:
        yield Frame(read_image(item.what), item.name, index)


def _items(source: Any, counter: list[int]) -> Iterator[_Item]:
    """Resolve one source; ``counter`` numbers the images in memory."""
    if isinstance(source, str | Path):
        yield from _from_text(source)
    elif isinstance(source, np.ndarray):
        yield from _in_memory(images_from_array(source), counter)
    elif isinstance(source, torch.Tensor):
        yield from _in_memory(images_from_tensor(source), counter)
    elif isinstance(source, Image.Image):
        file, image = getattr(source, "filename", ""), image_from_pil(source)
        yield from [_Item(image, str(file))] if file else _in_memory([image], counter)
    elif isinstance(source, list | tuple):
        for part in source:
            yield from _items(part, counter)
    elif isinstance(source, int) and not isinstance(source, bool):
        yield _Item(camera(source), f"camera {source}")
    elif source is None:
        raise ConfigError("predict needs a source: an image, video, folder, glob, address, array, or a list of those")
    else:
        raise ConfigError(
            f"a {type(source).__name__} cannot be a source; allowed: path, glob, address, number of a camera, numpy "
            "array, PIL image, torch tensor, or a list of those"
        )


def _in_memory(images: Iterable[Array], counter: list[int]) -> Iterator[_Item]:
    for image in images:
        yield _Item(image, f"image{counter[0]}.jpg")
        counter[0] += 1


def _from_text(source: str | Path, *, named: bool = True, in_list: bool = False) -> Iterator[_Item]:
    text = str(source)
    if not text.strip():
        raise ConfigError("the source is an empty text: name an image, video, folder, glob or address")
    if isinstance(source, str) and text.lower().startswith(SCHEMES):
        yield _Item(network_stream(text), text)
        return
    if isinstance(source, str) and re.match(r"https?://", text, re.IGNORECASE):
        moves = plays(text, image_suffixes=IMAGE_SUFFIXES)
        yield _Item(network_stream(text), text) if moves else _Item(text, text, named)
        return
    if isinstance(source, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text):
        raise ConfigError(f"'{text}': addresses must start with http:// https:// {' '.join(SCHEMES)}")
    path = Path(text).expanduser()
    if path.is_dir():
        yield from _from_folder(path)
    elif path.suffix.lower() in (".txt", ".streams") and path.is_file() and not in_list:
        yield from _from_list(path)
    elif path.is_char_device():
        yield _Item(camera(str(path)), str(path))
    elif path.is_file():
        yield _Item(_known(path), str(path), named)
    elif isinstance(source, str) and text.isdigit():
        yield _Item(camera(int(text)), f"camera {text}")
    elif glob.has_magic(text):
        yield from _from_glob(str(path))
    else:
        raise DataError(f"there is no file or folder '{path}' (looked from '{Path.cwd()}')")


def _from_folder(folder: Path) -> Iterator[_Item]:
    entries = sorted(folder.iterdir())
    files = [path for path in entries if path.suffix.lower() in _SUFFIXES and _visible_file(path)]
    if not files:
        inner = next((path.name for path in entries if path.is_dir()), None)
        hint = (
            f"; it holds folders: for what is in them, write '{folder}/**/*.jpg' or '{folder / inner}'" if inner else ""
        )
        raise DataError(
            f"the folder '{folder}' holds no images or videos among {len(entries)} entries; "
            f"looked for {_LOOKED_FOR}{hint}"
        )
    yield from (_Item(path, str(path), named=False) for path in files)


def _from_glob(pattern: str) -> Iterator[_Item]:
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in matches if path.suffix.lower() in _SUFFIXES and _visible_file(path)]
    if not files:
        raise DataError(
            f"the pattern '{pattern}' matches no images or videos ({len(matches)} other entries); "
            f"looked for {_LOOKED_FOR}"
        )
    yield from (_Item(path, str(path), named=False) for path in files)


def _from_list(file: Path) -> Iterator[_Item]:
    """Read a list file: one path, pattern or address a line, relative to the file; in ``.streams`` all are streams."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list '{file}': {error}") from None
    found = False
    for number, line in enumerate(lines, 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        found = True
        text = entry if "://" in entry or entry.isdigit() else str(file.parent / entry)
        try:
            for item in _from_text(text, named=False, in_list=True):
                yield _Item(_as_stream(item), item.name) if file.suffix.lower() == ".streams" else item
        except (ConfigError, DataError) as error:
            raise type(error)(f"{file}:{number}: {error}") from None
    if not found:
        raise DataError(f"the list '{file}' names no file: write one path, pattern or address a line")


def _visible_file(path: Path) -> bool:
    return not path.name.startswith(".") and path.is_file()  # .DS_Store, ._photo.jpg


def _known(path: Path) -> Path:
    """Accept a file by its suffix, or as an image by its first bytes."""
    if path.suffix.lower() not in _SUFFIXES:
        try:
            with Image.open(path):
                return path
        except (OSError, Image.DecompressionBombError):
            raise DataError(f"'{path}' is neither an image nor a video that is known; allowed: {_LOOKED_FOR}") from None
    return path
