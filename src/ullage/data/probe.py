"""Look at many image files at once, decoding only those that look cut off."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ullage.data.decode import probe_size_hw, read_image
from ullage.errors import DataError

Result = TypeVar("Result")

_TAIL_BYTES = 64
# What a whole file has in its last bytes; something may follow it, so its absence is only a suspicion.
_END_MARKS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}


def probe_images(paths: Sequence[str]) -> list[tuple[int, int] | str]:
    """Return the size (h, w) of each image, or in words why it cannot be read; ``"missing"`` when there is no file.

    Files that lack their format's end mark are decoded, to tell the cut-off ones.
    """
    return in_threads(_probe, paths)


def in_threads(work: Callable[[str], Result], paths: Sequence[str]) -> list[Result]:
    """Call ``work`` on every path, several at a time; results in order."""
    # Decoding sets warning filters, which threads share; the outer context puts back what was there before.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1))) as pool:
        return list(pool.map(work, paths))


def decode_problem(path: str) -> str | None:
    """Decode an image wholly; return in words what is wrong with it, None when nothing is."""
    try:
        read_image(path)
    except DataError as error:
        return str(error)
    return None


def _probe(path: str) -> tuple[int, int] | str:
    if not os.path.isfile(path):
        return "missing"
    try:
        size_hw = probe_size_hw(path)
        mark = _END_MARKS.get(Path(path).suffix.lower())
        if mark and mark not in _tail(path):
            read_image(path)
    except DataError as error:
        return str(error)
    return size_hw


def _tail(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            stream.seek(max(os.path.getsize(path) - _TAIL_BYTES, 0))
            return stream.read()
    except OSError as error:
        raise DataError(f"cannot read image {path}: {error.strerror or error}") from None
