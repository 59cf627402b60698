"""One process of a training in several: ``python -m ullage.api.worker FOLDER``, started by ``launch``."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
import traceback
from pathlib import Path

from ullage.api.launch import Call
from ullage.api.relay import Sender
from ullage.api.train import train
from ullage.config import TrainConfig
from ullage.errors import UllageError

INTERRUPTED = 130


def main(folder: Path) -> int:
    """Do this process's part of the call in a folder; leave the result, or the error, there."""
    rank, call = int(os.environ["RANK"]), Call.read(folder)
    sys.excepthook = lambda kind, error, trace: _leave(folder, rank, error)
    listeners = [Sender(call.address, call.key)] if call.address is not None and rank == 0 else []
    try:
        result = train(TrainConfig.load(call.settings), model=call.model(folder), listeners=listeners)
    except KeyboardInterrupt as error:
        _leave(folder, rank, error)
        return INTERRUPTED
    except UllageError as error:
        _leave(folder, rank, error)
        return 1
    if rank == 0:
        (folder / "result.pickle").write_bytes(pickle.dumps(result))
    return 0


def _leave(folder: Path, rank: int, error: BaseException) -> None:
    text = {
        "rank": rank,
        "when": time.time(),
        "kind": type(error).__name__,
        "message": str(error),
        "traceback": "" if isinstance(error, UllageError) else "".join(traceback.format_exception(error)),
    }
    (folder / f"error-{rank}.json").write_text(json.dumps(text), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
