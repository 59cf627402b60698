"""Long lists of texts and numbers in a few bytes an entry, which loader processes can share.

A million Python strings take 100 MB in objects of their own, and every process that looks at one copies its page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

Array = np.ndarray[Any, Any]


class Texts(Sequence[str]):
    """Texts in one block of bytes, without the beginning that all of them have in common.

    Args:
        prefix: What every text begins with.
        data: The rest of all texts, UTF-8, one behind the other, uint8.
        ends: Where each text ends in ``data``, int64.
    """

    def __init__(self, prefix: str, data: Array, ends: Array) -> None:
        self.prefix, self.data, self.ends = prefix, data, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Pack texts."""
        if isinstance(texts, Texts):
            return texts
        listed = list(texts)
        least, most = min(listed, default=""), max(listed, default="")
        same = next((place for place, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), len(least))
        prefix = least[:same]
        encoded = [text[len(prefix) :].encode("utf-8", "surrogateescape") for text in listed]
        ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
        return cls(prefix, np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]
        start = int(self.ends[place - 1]) if place else 0
        return self.prefix + self.data[start : int(self.ends[place])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"<{len(self)} texts: {shown}{', ...' if len(self) > 3 else ''}>"

    def nbytes(self) -> int:
        """Return the memory that it takes."""
        return self.data.nbytes + self.ends.nbytes


class Numbers(Sequence[int]):
    """Whole numbers in eight bytes each; they come out as Python's own."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...
    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return tuple(self.values[index].tolist()) if isinstance(index, slice) else int(self.values[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{len(self)} numbers>"

    def nbytes(self) -> int:
        """Return the memory that it takes."""
        return self.values.nbytes


def pack_ids(ids: Sequence[int | str]) -> tuple[int | str, ...] | Texts | Numbers:
    """Pack identifiers that are all texts or all whole numbers; others stay as they are."""
    if isinstance(ids, (Texts, Numbers)):
        return ids
    if all(isinstance(each, str) for each in ids):
        return Texts.of(str(each) for each in ids)
    if all(isinstance(each, int) and -(2**63) <= each < 2**63 for each in ids):
        return Numbers(np.array(ids, np.int64))
    return tuple(ids)
