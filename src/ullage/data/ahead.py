"""Read what comes next from far away, many images at a time: asked one by one, a network is only waited for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from ullage.data.decode import read_file

THREADS = 16


class ReadAhead:
    """The contents of remote images, fetched by threads. What was expected and not taken goes with the next batch."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0
        self._coming: dict[str, Future[bytes]] = {}

    def expect(self, places: Iterable[str]) -> None:
        """Start fetching places, which will be asked for soon, in this order."""
        if self._pool is None or self._owner != os.getpid():
            # Threads do not survive a fork: each process starts its own.
            self._pool, self._owner, self._coming = ThreadPoolExecutor(THREADS), os.getpid(), {}
        before, self._coming = self._coming, {}
        for place in places:
            if place not in self._coming:
                self._coming[place] = before.pop(place, None) or self._pool.submit(read_file, place)
        for left in before.values():
            left.cancel()

    def take(self, place: str) -> bytes:
        """Return the content of a place, fetched already or now.

        Raises:
            DataError: It cannot be read.
        """
        coming = self._coming.pop(place, None) if self._owner == os.getpid() else None
        return read_file(place) if coming is None else coming.result()

    def __getstate__(self) -> dict[str, object]:
        """Travel to another process without threads and what they fetch."""
        return {"_pool": None, "_owner": 0, "_coming": {}}
