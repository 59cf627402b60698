"""What every peer program does before it imports the peer: no network, no settings in the home folder, clean output.

Imported by the peer programs alone. It must run before the peer's package is imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import TextIO


def prepare(settings: Path, *, threads: int | None) -> TextIO:
    """Set up this process; return the stream for answers.

    The peer's own output goes to stderr, so that stdout holds our answers only. Errors show their message without a
    traceback, because a traceback quotes the peer's source.

    Args:
        settings: Folder for the peer's settings file.
        threads: Threads of a tensor operation; None leaves them to the peer.
    """
    os.environ["YOLO_OFFLINE"] = "true"
    os.environ["YOLO_CONFIG_DIR"] = str(settings)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.excepthook = _say_error
    return answers


def _say_error(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    print(f"{kind.__name__}: {error}", file=sys.stderr)
