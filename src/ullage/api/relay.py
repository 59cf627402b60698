"""Events of a run on their way from its main process to the listeners of the process that started it."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from types import TracebackType
from typing import Any, Self

from ullage.train import protocols


class Relay:
    """The end where the listeners are. Only a process that knows the key is heard.

    Args:
        listeners: Called with every event, from a thread of their own.

    Attributes:
        address: Where the other end connects; None when nobody listens.
        key: What it proves itself with.
    """

    def __init__(self, listeners: Sequence[protocols.Listener]) -> None:
        self.listeners = listeners
        self.key = secrets.token_hex(16)
        self._door = Listener(authkey=self.key.encode()) if listeners else None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str | None:
        """Where the other end connects."""
        return None if self._door is None else str(self._door.address)

    def __enter__(self) -> Self:
        if self._door is not None:
            self._thread = threading.Thread(target=self._serve, args=(self._door,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._door is None or self._thread is None:
            return
        with contextlib.suppress(OSError), Client(str(self._door.address), authkey=self.key.encode()) as farewell:
            farewell.send(None)
        self._thread.join()

    def _serve(self, door: Listener) -> None:
        try:
            while True:
                with contextlib.suppress(OSError, EOFError, AuthenticationError), door.accept() as connection:
                    if not self._hear(connection):  # else a process that died, or was none of ours
                        return
        finally:
            door.close()  # also when a listener failed: nobody shall wait at it

    def _hear(self, connection: Connection) -> bool:
        """Hand events over until the connection ends; return False at the farewell."""
        while True:
            try:
                event = connection.recv()
            except EOFError:
                return True
            if event is None:
                return False
            for listener in self.listeners:
                listener(event)


class Sender:
    """The other end: a listener that sends what it hears."""

    def __init__(self, address: str, key: str) -> None:
        self._connection: Connection | None = Client(address, authkey=key.encode())

    def __call__(self, event: Any) -> None:
        """Send an event; when nobody hears any more, the run goes on."""
        if self._connection is None:
            return
        try:
            self._connection.send(event)
        except OSError:
            self._connection = None
