"""Tells, after every epoch, where the time of loading went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ullage.data.spent import Spent
from ullage.train.events import EpochDone, EpochLoaded
from ullage.train.protocols import Listener


class LoadingReport:
    """Adds an ``EpochLoaded`` to every ``EpochDone``.

    Args:
        spent: What a loader has spent since it was made.
        listeners: Who is told.
    """

    def __init__(self, spent: Callable[[], Spent], listeners: Sequence[Listener]) -> None:
        self._spent, self._listeners = spent, listeners
        self._before = spent()

    def __call__(self, event: Any) -> None:
        """Take note of an epoch's end."""
        if not isinstance(event, EpochDone):
            return
        now = self._spent()
        part, self._before = now - self._before, now
        report = EpochLoaded(
            event.epoch, part.images, part.decoded, round(part.decode_seconds, 3), round(part.augment_seconds, 3),
            round(part.collate_seconds, 3), round(part.wait_seconds, 3),
        )  # fmt: skip
        for listener in self._listeners:
            listener(report)
