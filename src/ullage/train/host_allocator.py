"""Host memory while training on a CPU: freed blocks serve the next step instead of going back to the system.

Each training step allocates and frees the same large tensors. The C library returns such blocks to the system at once
and gets them back page by page, zeroed: a noticeable part of a step on a CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Generator

import torch

# glibc, malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULT_TRIM_BYTES, _DEFAULT_MMAP_MAX = 128 * 1024, 65_536
_NEVER = -1


@contextlib.contextmanager
def reusing_host_memory(device: torch.device) -> Generator[None]:
    """Keep freed memory in the process while the block lasts, then give it back.

    Only on CPUs, and only where the C library is glibc; elsewhere it does nothing. Peak memory stays what it is, up to
    a few percent of fragmentation.
    """
    library = _glibc() if device.type == "cpu" else None
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        library.mallopt(_TRIM_THRESHOLD, _DEFAULT_TRIM_BYTES)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    is_glibc = all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim"))
    return library if is_glibc else None
