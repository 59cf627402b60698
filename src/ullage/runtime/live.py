"""Results of streams, as long as they last."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence

from ullage.runtime.host_allocator import trim_host_memory
from ullage.runtime.passes import Pass, run_passes
from ullage.runtime.results import Results
from ullage.runtime.stream_hub import StreamHub
from ullage.runtime.stream_stats import StreamStats

_LIKELY_HW = (720, 1280)
_TRIM_EVERY_S = 10.0


class LiveResults(Iterator[Results]):
    """An iterator over the results of many streams, in the order in which their frames were taken.

    Readers start with the first result that is asked for, and stop at the end, with ``close()``, or when nobody holds
    the iterator any more.

    Args:
        hub: The streams.
        passes: One for each device.
    """

    def __init__(self, hub: StreamHub, passes: Sequence[Pass]) -> None:
        self._hub = hub
        self._results = _run(hub, passes)

    def __next__(self) -> Results:
        return next(self._results)

    def stats(self) -> tuple[StreamStats, ...]:
        """Return what happened on each stream so far."""
        return self._hub.stats()

    def close(self) -> None:
        """Stop."""
        self._results.close()


def _run(hub: StreamHub, passes: Sequence[Pass]) -> Generator[Results, None, None]:
    for one in passes:
        one.warm_up(_LIKELY_HW)
    hub.start()
    try:
        trimmed = time.monotonic()
        for result in run_passes(hub, passes):
            yield result
            if time.monotonic() - trimmed > _TRIM_EVERY_S:
                trim_host_memory()
                trimmed = time.monotonic()
    finally:
        hub.close()
