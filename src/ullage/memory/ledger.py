"""Counts the bytes of live tensors through a step, real or fake, and says what they were at the peak.

Every storage that an operator returns is entered once and struck out when it is freed; saved tensors and gradients are
among them. Scratch memory inside an operator is not seen; on CPUs that of convolutions is known and counted.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ullage.memory.scratch import scratch_bytes
from ullage.memory.shapes import run

_DEVICE = torch.ops.prim.device.default

Phase = Literal["before", "forward", "loss", "backward", "optimizer"]


@dataclass
class Piece:
    """One storage.

    Attributes:
        nbytes: Its size.
        phase: When it was made.
        block: The block that was running.
        category: Set for what was there before, and for the gradients of parameters.
    """

    nbytes: int
    phase: Phase
    block: str
    category: str


class Ledger(TorchDispatchMode):
    """Enter and strike out storages while active; ``phase`` and ``block`` say what is going on.

    Args:
        on_cpu: The step is to run on a CPU: count what its convolutions take for themselves, too.
    """

    def __init__(self, *, on_cpu: bool = False) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.phase: Phase = "before"
        self.block = ""
        self.pieces: list[Piece] = []
        self.events: list[int] = []  # index of a piece that appears, or ~index of one that is freed
        self.current_bytes = 0
        self._live: dict[int, int] = {}
        self._standing: set[int] = set()
        self.on_cpu = on_cpu

    def enter(self, tensors: Iterable[torch.Tensor | None], category: str = "") -> None:
        """Count tensors that are not counted yet."""
        for tensor in tensors:
            if tensor is None:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata  # pyright: ignore[reportPrivateUsage]
            if key in self._live:
                continue
            index = self._live[key] = len(self.pieces)
            self.pieces.append(Piece(storage.nbytes(), self.phase, self.block, category))
            self.events.append(index)
            self.current_bytes += self.pieces[index].nbytes
            weakref.finalize(storage, self._strike_out, key)

    def stand(self, nbytes: int, category: str) -> int:
        """Count bytes that are there without being followed; return the handle for ``fall``."""
        index = len(self.pieces)
        self.pieces.append(Piece(nbytes, self.phase, self.block, category))
        self.events.append(index)
        self.current_bytes += nbytes
        self._standing.add(index)
        return index

    def fall(self, index: int) -> None:
        """Strike out what ``stand`` counted."""
        self._standing.discard(index)
        self.events.append(~index)
        self.current_bytes -= self.pieces[index].nbytes

    def name(self, tensors: Iterable[torch.Tensor | None], category: str) -> None:
        """Say what tensors are that are counted already."""
        for tensor in tensors:
            if tensor is not None:
                index = self._live.get(tensor.untyped_storage()._cdata)  # pyright: ignore[reportPrivateUsage]
                if index is not None:
                    self.pieces[index].category = category

    def _strike_out(self, key: int) -> None:
        index = self._live.pop(key, None)
        if index is not None:
            self.events.append(~index)
            self.current_bytes -= self.pieces[index].nbytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # half of what a trace dispatches, and it makes nothing
            return args[0].fake_device
        out = run(func, args, kwargs or {})
        if isinstance(out, torch.Tensor):
            self.enter((out,))
        elif out is not None:
            self.enter(t for t in tree_iter(out) if isinstance(t, torch.Tensor))
        if self.on_cpu and (scratch := scratch_bytes(func, args, out)):
            self.fall(self.stand(scratch, "workspace"))
        return out

    def alive(self) -> dict[int, Piece]:
        """Return what is alive now, by index."""
        return {index: self.pieces[index] for index in (*self._live.values(), *self._standing)}

    def index_of(self, tensor: torch.Tensor) -> int:
        """Return the index of the piece that a tensor lives in, -1 when it is not counted."""
        return self._live.get(tensor.untyped_storage()._cdata, -1)  # pyright: ignore[reportPrivateUsage]

    def peak(self) -> Peak:
        """Find the peak, and what was alive then."""
        level = best = when = 0
        for position, event in enumerate(self.events):
            level += self.pieces[event].nbytes if event >= 0 else -self.pieces[~event].nbytes
            if level > best:
                best, when = level, position
        alive: set[int] = set()
        for event in self.events[: when + 1]:
            if event >= 0:
                alive.add(event)
            else:
                alive.discard(~event)
        cause = self.pieces[self.events[when]] if self.events else Piece(0, "before", "", "")
        return Peak(best, cause.phase, cause.block, tuple(self.pieces[index] for index in sorted(alive)))


@dataclass(frozen=True)
class Peak:
    """The instant of the most bytes.

    Attributes:
        nbytes: Live bytes.
        phase: What the step was doing.
        block: The block that was running, forward or backward.
        alive: What was there.
    """

    nbytes: int
    phase: Phase
    block: str
    alive: tuple[Piece, ...]

    def by_category(self) -> dict[str, int]:
        """Bytes by what they are for, largest first."""
        sums: defaultdict[str, int] = defaultdict(int)
        for piece in self.alive:
            sums[piece.category or _DEFAULT_CATEGORY[piece.phase]] += piece.nbytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def by_block(self) -> dict[str, int]:
        """Bytes by the block that made them; what was there before is left out."""
        sums: defaultdict[str, int] = defaultdict(int)
        for piece in self.alive:
            if piece.phase != "before":
                sums[piece.block] += piece.nbytes
        return dict(sums)


_DEFAULT_CATEGORY: dict[Phase, str] = {
    "before": "inputs",
    "forward": "activations",
    "loss": "loss",
    "backward": "workspace",  # gradients of activations, and what was made again
    "optimizer": "optimizer",
}
