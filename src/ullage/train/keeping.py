"""What a run keeps on disk, and when: whole files only, never at the price of the run itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ullage.errors import StorageError
from ullage.train.events import Notice
from ullage.train.protocols import WriteCheckpoint
from ullage.train.ranks import Ranks
from ullage.train.state import TrainState


@dataclass(frozen=True)
class Keeping:
    """What is kept, and where.

    Attributes:
        folder: Of the weights.
        write: Writes a file whole.
        every_epochs: Keep a numbered file every so many epochs; below 1 never.
        every_seconds: Write ``last.pt`` within an epoch when the last one is this old; 0 only at its end.
    """

    folder: Path
    write: WriteCheckpoint
    every_epochs: int = -1
    every_seconds: float = 0.0

    @property
    def last(self) -> Path:
        """The checkpoint from which a run goes on."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The averaged weights of the best epoch."""
        return self.folder / "best.pt"


class Keeper:
    """Writes the files of a run, in the main process.

    A disk that is full, or gone, ends no run: the file that was there stays, the user is told, and the new one is
    written with the next that is due. Only the end of the run insists.

    Args:
        keeping: What is kept, and where.
        state: What is trained.
        ranks: The processes.
        tell: Hears what could not be written.
    """

    def __init__(self, keeping: Keeping, state: TrainState, ranks: Ranks, tell: Callable[[object], None]) -> None:
        self.keeping, self.state, self.ranks, self.tell = keeping, state, ranks, tell
        self._owed: dict[Path, Mapping[str, Any]] = {}
        self._problem: StorageError | None = None
        self._written = time.monotonic()

    def keep_epoch(self, epoch: int, *, is_best: bool) -> None:
        """Write what an epoch is worth, before its end is written into ``last.pt``."""
        every = self.keeping.every_epochs
        if is_best:
            self._write(self.keeping.best, resumable=False)
        if every > 0 and (epoch + 1) % every == 0:
            self._write(self.keeping.folder / f"epoch{epoch + 1}.pt", resumable=False)

    def keep_last(self, *, insist: bool = False) -> None:
        """Write the checkpoint from which the run goes on, and what is still owed.

        Args:
            insist: Return only when all is written.

        Raises:
            StorageError: ``insist``, and something could not be written.
        """
        for path in list(self._owed):
            self._write(path, resumable=False, payload=self._owed[path])
        self._write(self.keeping.last, resumable=True)
        self._written = time.monotonic()
        if insist:
            self.settle()

    def settle(self) -> None:
        """Insist that all is written.

        Raises:
            StorageError: Something could not be written.
        """
        if self._problem is not None:
            raise self._problem

    def keep_last_if_due(self) -> None:
        """Write ``last.pt`` when the last one is old enough."""
        every = self.keeping.every_seconds
        if every > 0 and time.monotonic() - self._written >= every:
            self.keep_last()

    def _write(self, path: Path, *, resumable: bool, payload: Mapping[str, Any] | None = None) -> None:
        if not self.ranks.is_main:
            return
        payload = payload if payload is not None else self.state.payload(resumable=resumable)
        try:
            self.keeping.write(path, payload)
            self._owed.pop(path, None)
            self._problem = None if not self._owed else self._problem
        except StorageError as error:
            self._problem = error
            if not resumable and path not in self._owed:
                self._owed[path] = _copied(payload)
            self.tell(Notice(f"{error}; training goes on, and tries again later"))


def _copied(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the weights of a file that is still to be written: training will change them."""
    weights: Mapping[str, torch.Tensor] = payload["weights"]
    return {**payload, "weights": {key: tensor.detach().cpu().clone() for key, tensor in weights.items()}}
