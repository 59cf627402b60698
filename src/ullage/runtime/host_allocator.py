"""Host memory of work on a CPU: freed blocks serve what comes next instead of going back to the system.

A training step, or a pass of inference, allocates and frees the same large tensors again and again. The C library
returns such blocks to the system at once and gets them back page by page, zeroed: a fifth of a small detector's pass.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Generator

import torch

# glibc, malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM_BYTES, _DEFAULT_MMAP_MAX = 128 * 1024, 65_536
_NEVER = -1

_lock = threading.Lock()
_holders = 0


def keep_host_memory() -> None:
    """Keep freed memory in the process until ``release_host_memory`` was called as often as this.

    Only where the C library is glibc; elsewhere it does nothing. Peak memory stays what it is, up to a few percent of
    fragmentation.
    """
    global _holders
    library = _glibc()
    with _lock:
        _holders += 1
        if library is not None and _holders == 1:
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, _NEVER)


def release_host_memory() -> None:
    """Take back one ``keep_host_memory``; the last one gives to the system what is free."""
    global _holders
    library = _glibc()
    with _lock:
        _holders -= 1
        if library is not None and _holders == 0:
            library.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
            library.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM_BYTES)
            library.malloc_trim(0)


def trim_host_memory() -> None:
    """Give to the system what is free now: blocks of many sizes leave gaps, which add up over hours."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@contextlib.contextmanager
def reusing_host_memory(device: torch.device) -> Generator[None]:
    """Keep freed memory in the process while the block lasts, if the work is on a CPU."""
    if device.type != "cpu":
        yield
        return
    keep_host_memory()
    try:
        yield
    finally:
        release_host_memory()


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    is_glibc = all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim"))
    return library if is_glibc else None
