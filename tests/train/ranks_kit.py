"""Runs a function of a test module in several processes that know each other by gloo, and returns what each gave."""

from __future__ import annotations

import io
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing as mp

from ullage.train.ranks import joined


def run_ranks(function: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """Return ``function(ranks_object, *arguments)`` of every process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    answers: Any = context.Queue()
    processes = [
        context.Process(target=_one, args=(function, rank, ranks, port, arguments, answers)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    for _ in processes:
        rank, value, error = answers.get(timeout=120)
        assert error is None, f"process {rank}:\n{error}"
        found[rank] = torch.load(io.BytesIO(value), weights_only=False)
    for process in processes:
        process.join(30)
    return [found[rank] for rank in range(ranks)]


def _one(function: Callable[..., Any], rank: int, ranks: int, port: int, arguments: Any, answers: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(ranks),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    torch.set_num_threads(1)
    try:
        with joined(torch.device("cpu")) as together:
            value = io.BytesIO()  # whole: a tensor in shared memory would be gone with its process
            torch.save(function(together, *arguments), value)
            answers.put((rank, value.getvalue(), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise
