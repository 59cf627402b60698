"""The cores that a program may use; shared by both sides of a comparison."""

from __future__ import annotations

import os


def only_cores(count: int) -> None:
    """Leave this process so many cores: other runtimes take as many threads as there are."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
