"""The names of the techniques, what they combine, and how faithful each is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ullage.errors import ConfigError, nearest

Fidelity = Literal["bitwise", "reassociated", "approximate"]
Part = Literal["none", "recompute", "block", "int8", "fp8", "offload"]

ALIASES = {"nested": "block+recompute"}


@dataclass(frozen=True)
class Technique:
    """What is done with the tensors that a part of the network keeps for backward.

    Attributes:
        recompute: Results of cheap operations are made again.
        block: Only what enters the block is kept, and the block is run again.
        storage: How the tensors are held that are kept all the same.
    """

    recompute: bool = False
    block: bool = False
    storage: Literal["exact", "int8", "fp8", "offload"] = "exact"

    @property
    def fidelity(self) -> Fidelity:
        """``bitwise``: the same bits; ``approximate``: gradients are rounded."""
        return "approximate" if self.storage in ("int8", "fp8") else "bitwise"

    @property
    def is_none(self) -> bool:
        """Whether nothing is done at all."""
        return self == Technique()

    def __str__(self) -> str:
        parts = [name for name, on in (("block", self.block), ("recompute", self.recompute)) if on]
        if self.storage != "exact":
            parts.append(self.storage)
        return "+".join(parts) or "none"

    @classmethod
    def parse(cls, name: str) -> Technique:
        """Read a name such as ``"recompute"``, ``"block+recompute"`` (or ``"nested"``) or ``"recompute+int8"``.

        Raises:
            ConfigError: Not a technique, or two ways of holding at once.
        """
        parts = ALIASES.get(name, name).split("+")
        for part in parts:
            if part not in get_args(Part):
                allowed = (*get_args(Part), *ALIASES)
                raise ConfigError(
                    f"technique={name!r}: {part!r} is not one of {', '.join(allowed)}, or several joined by '+'."
                    f"{nearest(part, allowed)}"
                )
        storages = [part for part in parts if part in ("int8", "fp8", "offload")]
        if len(storages) > 1 or ("none" in parts and len(parts) > 1):
            raise ConfigError(f"technique={name!r}: {' and '.join(parts)} exclude each other; name one of them")
        return cls("recompute" in parts, "block" in parts, storages[0] if storages else "exact")  # type: ignore[arg-type]
