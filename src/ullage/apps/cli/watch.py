"""What the command line remembers of a run, to say how to go on when it is cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class RunWatch:
    """Hears the events of a run and keeps where its last checkpoint lies. Imports no torch."""

    def __init__(self) -> None:
        self.last: Path | None = None

    def __call__(self, event: Any) -> None:
        """Note the checkpoint of a run that is cut short."""
        if getattr(event, "reason", None) == "interrupted":
            self.last = event.files.get("last")

    def advice(self) -> str:
        """Return the words that follow ``interrupted``."""
        if self.last is None or not self.last.exists():
            return ""
        return f"; go on with: ullage train resume model={self.last}"
