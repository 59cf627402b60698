"""The most memory that this process ever had in use at once."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_bytes() -> int | None:
    """Return the most memory that this process had in use at once, libraries included; None where nothing tells."""
    status = Path("/proc/self/status")
    if status.is_file():  # of this program alone; getrusage would also count what ran here before it
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
