"""Results as lines of JSON: what was measured is not measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(results: Path) -> list[Record]:
    """Read the results so far; none when there is no file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line.strip()]


def find(records: Sequence[Record], key: Mapping[str, Any]) -> Record | None:
    """Return the last record with that key."""
    matching = [record for record in records if all(record.get(name) == value for name, value in key.items())]
    return matching[-1] if matching else None


def append(results: Path, record: Record) -> None:
    """Add one line to the results."""
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
