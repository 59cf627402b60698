"""Where images are: files, members of tar files, and what is on any file system that fsspec knows (``s3://...``).

A place is a text, so that a million of them pack well: a path, a URL, or, for a member of a tar file, the place of the
tar, where in it the content begins, how long it is, and the member's name: ``shard.tar/@1536+90210/000001.jpg``. Each
member is read by itself, in any order, without reading what lies before it.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from typing import Any

from ullage.errors import BackendUnavailable, DataError

_MEMBER = re.compile(r"(.+\.tar)/@(\d+)\+(\d+)/(.*)", re.DOTALL)


def is_url(place: str) -> bool:
    """Tell whether a place is not on this machine's own file system."""
    return "://" in place


def is_plain(place: str) -> bool:
    """Tell whether a place is a file of its own on this machine."""
    return not is_url(place) and _member(place) is None


def member_place(tar: str, *, offset: int, size: int, name: str) -> str:
    """Return the place of a member of a tar file."""
    return f"{tar}/@{offset}+{size}/{name}"


def file_of(place: str) -> str:
    """Return the place of the file that holds a place: its tar, or itself."""
    found = _member(place)
    return found[1] if found else place


def read_place(place: str) -> bytes:
    """Return the content of a place.

    Raises:
        OSError: It cannot be read.
    """
    found = _member(place)
    if found is None:
        return _read(place, None, None)
    start, size = int(found[2]), int(found[3])
    content = _read(found[1], start, start + size)
    if len(content) != size:
        raise OSError(0, f"'{found[1]}' is shorter than when it was indexed", place)
    return content


def read_ends(place: str, *, head: int, tail: int) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of a place.

    Raises:
        OSError: It cannot be read.
    """
    found = _member(place)
    if found is None:
        return _read(place, 0, head), _read(place, -tail, None)
    start, size = int(found[2]), int(found[3])
    return (
        _read(found[1], start, start + min(head, size)),
        _read(found[1], start + max(size - tail, 0), start + size),
    )


def state_of(place: str) -> bytes:
    """Return what changes when the file of a place changes: size, number and times, or what a remote store tells.

    Raises:
        OSError: There is no such file.
    """
    file = file_of(place)
    return state_of_url(file) if is_url(file) else state_of_file(file)


def state_of_url(url: str) -> bytes:
    """Return what a remote store tells about the version of a file, digested; see ``state_of``."""
    system, inner = file_system(url)
    return hashlib.blake2b(str(system.ukey(inner)).encode(), digest_size=16).digest()


def state_of_file(path: str | bytes) -> bytes:
    """Return what tells the version of a file of this machine; see ``state_of``."""
    state = os.stat(path)
    return struct.pack("<QQQQ", state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path there. A forked process gets one of its own.

    Raises:
        BackendUnavailable: fsspec, or what it needs for this kind of URL, is not installed.
        DataError: No such kind of URL is known.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise BackendUnavailable(f"reading {url} needs fsspec: pip install 'ullage[shards]'") from error
    try:
        system, inner = url_to_fs(url)
    except ImportError as error:
        raise BackendUnavailable(f"reading {url} needs another package: {error}") from error
    except ValueError as error:
        raise DataError(f"cannot read {url}: {error}") from error
    return system, inner


def _member(place: str) -> re.Match[str] | None:
    return _MEMBER.fullmatch(place) if ".tar/@" in place else None  # a million paths are asked about, few are members


def _read(file: str, start: int | None, stop: int | None) -> bytes:
    if is_url(file):
        system, inner = file_system(file)
        return bytes(system.cat_file(inner, start=start, end=stop))
    with open(file, "rb", buffering=0) as stream:
        if start:
            stream.seek(start, os.SEEK_SET if start > 0 else os.SEEK_END)
        return stream.read() if stop is None else stream.read(stop - (start or 0))
