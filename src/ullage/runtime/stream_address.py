"""What a stream is called: an address, a camera or a video file that plays beside others."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from ullage._version import __version__

SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "rtp://", "udp://", "tcp://", "srt://", "mms://")
_PLAYED = (".m3u8", ".mpd", ".mjpg", ".mjpeg", ".flv", ".ts", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg")
_PEEK_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class StreamAddress:
    """One stream.

    Attributes:
        where: Address or file; of a camera its number, or its device file.
        name: How it is called in results and messages: without a password.
        kind: ``network``, ``camera``, or ``file``.
    """

    where: str | int
    name: str
    kind: Literal["network", "camera", "file"]

    @property
    def is_live(self) -> bool:
        """Whether time passes there whether or not anybody looks."""
        return self.kind != "file"


def network_stream(address: str) -> StreamAddress:
    """Name a stream on the network."""
    return StreamAddress(address, re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", address), "network")


def camera(number_or_device: int | str) -> StreamAddress:
    """Name a camera of this machine by its number or device file."""
    name = f"camera{number_or_device}" if isinstance(number_or_device, int) else number_or_device
    return StreamAddress(number_or_device, name, "camera")


def file_stream(path: Path) -> StreamAddress:
    """Name a video file that plays beside other streams."""
    return StreamAddress(str(path), str(path), "file")


def plays(address: str, *, image_suffixes: frozenset[str], timeout_s: float = _PEEK_TIMEOUT_S) -> bool:
    """Say whether an http(s) address is one of moving pictures: by its ending, else by what the server calls it.

    An address that does not answer counts as one of an image; whoever fetches it will say what is wrong.
    """
    try:
        suffix = PurePosixPath(urlsplit(address).path).suffix.lower()
    except ValueError:
        return False
    if suffix in _PLAYED or suffix in image_suffixes:
        return suffix in _PLAYED
    try:
        request = urllib.request.Request(address, headers={"User-Agent": f"ullage/{__version__}"})
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            kind = answer.headers.get_content_type()
    except (OSError, ValueError):  # URLError and HTTPError are OSErrors
        return False
    return kind.startswith(("video/", "multipart/x-mixed-replace")) or "mpegurl" in kind or kind.endswith("dash+xml")
