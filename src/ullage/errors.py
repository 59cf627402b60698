"""What can go wrong, as a tree.

    UllageError
    ├── ConfigError          a setting is unknown, of the wrong type, out of range, or contradicts another
    ├── DataError            images or labels are missing, unreadable or inconsistent
    ├── WeightsError         a checkpoint is missing, damaged, unsafe, or does not fit the network
    ├── StorageError         a folder cannot be written, or the disk is full
    ├── TrainingError        training cannot go on (for example the loss became NaN)
    ├── MemoryBudgetError    nothing fits the memory that was granted
    ├── ExportParityError    an exported file does not compute what the network computes
    └── BackendUnavailable   a device, library or runtime that was asked for is not on this machine

Every message says what was asked, what was found, what is allowed and what to do; the command line prints it as one
line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UllageError(Exception):
    """Base of every error that Ullage raises on purpose."""


class ConfigError(UllageError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class DataError(UllageError):
    """Images or labels are missing, unreadable or inconsistent."""


class WeightsError(UllageError):
    """A checkpoint is missing, damaged, unsafe, or does not fit the network."""


class StorageError(UllageError):
    """A folder cannot be written, or the disk is full."""


class TrainingError(UllageError):
    """Training cannot go on."""


class MemoryBudgetError(UllageError):
    """Nothing fits the memory that was granted."""


class ExportParityError(UllageError):
    """An exported file does not compute what the network computes."""


class BackendUnavailable(UllageError):
    """A device, library or runtime that was asked for is not on this machine."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return the tail of an error message that names the allowed value closest to ``name``.

    Args:
        name: What the user wrote.
        allowed: What would have been right.

    Returns:
        ``" Did you mean 'x'?"``, or an empty string when nothing is close.
    """
    spelling = {word.lower(): word for word in allowed}
    close = difflib.get_close_matches(name.lower(), list(spelling), n=1, cutoff=0.6)
    return f" Did you mean '{spelling[close[0]]}'?" if close else ""
