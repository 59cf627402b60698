"""Look at many files at once: the headers of images, decoding only those that look cut off or unusual."""

from __future__ import annotations

import os
import stat
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ullage.data.decode import probe_size_hw, read_image
from ullage.data.headers import HEAD_BYTES, quick_size_hw
from ullage.data.places import is_plain, read_ends
from ullage.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
Watch = Callable[[str, int, int], None]  # what is being done, how many are done, how many there are

TAIL_BYTES, _SMALL_BYTES = 64, 16384
_FIRST_SHARE, _SHARE = 8, 64  # files at a time: handing over a single one costs more than looking at it
_LONG_SECONDS = 0.0003  # a file that takes so long is decoded, or comes from a slow disk
# A named pipe must not be waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
# What a whole file has in its last bytes; something may follow it, so its absence is only a suspicion.
_END_MARKS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}


def probe_images(paths: Sequence[str], *, watch: Watch | None = None) -> list[tuple[int, int] | str]:
    """Return the size (h, w) of each image, or in words why it cannot be read; ``"missing"`` when there is no file.

    Files that lack their format's end mark are decoded, to tell the cut-off ones.

    Args:
        paths: The files.
        watch: Hears how far it is.
    """
    return in_threads(_probe, paths, watch=watch, what="image headers")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], *, watch: Watch | None = None, what: str = ""
) -> list[Result]:
    """Call ``work`` on every item, in threads where it takes long; results in order.

    What takes microseconds is done here: threads would only wait for each other. Where a share of the items takes
    longer, because images are decoded or the disk is slow, the rest goes to threads.

    Args:
        work: What to do.
        items: With what.
        watch: Hears how far it is.
        what: What it hears that is being done.
    """
    results: list[Result] = []
    tell = watch or (lambda what, done, count: None)
    # Decoding sets warning filters, which threads share; the outer context puts back what was there before.
    with warnings.catch_warnings():
        seconds, share = 0.0, _FIRST_SHARE
        while len(results) < len(items) and seconds <= _LONG_SECONDS:
            began = time.perf_counter()
            part = [work(item) for item in items[len(results) : len(results) + share]]
            seconds, share = (time.perf_counter() - began) / len(part), _SHARE
            results += part
            tell(what, len(results), len(items))
        rest = items[len(results) :]
        threads = min(16, 4 * (os.cpu_count() or 1))
        share = min(max(len(rest) // (4 * threads), 1), _SHARE)
        shares = [rest[start : start + share] for start in range(0, len(rest), share)]
        with ThreadPoolExecutor(threads) as pool:
            try:
                for part in pool.map(lambda part: [work(item) for item in part], shares):
                    results += part
                    tell(what, len(results), len(items))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return results


def read_bytes(path: str) -> bytes:
    """Read a small file with as few calls to the system as possible; a named pipe is empty.

    Raises:
        OSError: It cannot be read.
    """
    file = os.open(path, _FLAGS)
    try:
        data = os.read(file, _SMALL_BYTES)
        if len(data) == _SMALL_BYTES:
            parts = [data]
            while part := os.read(file, 16 * _SMALL_BYTES):
                parts.append(part)
            data = b"".join(parts)
        return data
    finally:
        os.close(file)


def _probe(path: str) -> tuple[int, int] | str:
    plain = is_plain(path)
    try:
        head, tail = _ends(path) if plain else read_ends(path, head=HEAD_BYTES, tail=TAIL_BYTES)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        gone = plain and not os.path.isfile(path)
        return "missing" if gone else f"cannot read image {path}: {error.strerror or error}"
    return judge_ends(head, tail, path)


def judge_ends(head: bytes, tail: bytes, path: str) -> tuple[int, int] | str:
    """Return the size (h, w) of an image whose first and last bytes are known, or in words why it cannot be read."""
    size_hw = quick_size_hw(head)
    try:
        if size_hw is None:
            size_hw = probe_size_hw(path)
        mark = _END_MARKS.get(os.path.splitext(path)[1].lower())
        if mark and mark not in tail:
            read_image(path)
    except DataError as error:
        return str(error)
    return size_hw


def _ends(path: str) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of a file."""
    file = os.open(path, _FLAGS)
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise FileNotFoundError(path)
        head = os.read(file, HEAD_BYTES)
        if state.st_size <= len(head):
            return head, head[-TAIL_BYTES:]
        if hasattr(os, "pread"):
            return head, os.pread(file, TAIL_BYTES, state.st_size - TAIL_BYTES)
        os.lseek(file, state.st_size - TAIL_BYTES, os.SEEK_SET)
        return head, os.read(file, TAIL_BYTES)
    finally:
        os.close(file)
