"""How a cheap result is made again: recipes, and the leaves in which they end.

Technique ``recompute`` keeps a ``Recipe`` where autograd would keep the result of a cheap operation. Autograd's graph is
not touched: every gradient is computed by the same operators on the same bits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ullage.memory.keeping import Exact, Held, Storage, hold, storage_bytes, storage_id

Function = Callable[..., Any]
Autocast = tuple[bool, torch.dtype]


class Leaf:
    """A tensor in which recipes end. It is held, once, as soon as autograd or a recipe in use needs it."""

    __slots__ = ("_held", "_tensor", "_version", "free", "nbytes", "storage")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._held: Held | Recipe | None = None
        self._tensor = weakref.ref(tensor)
        self._version = tensor._version  # pyright: ignore[reportPrivateUsage]
        self.storage = storage_id(tensor)
        self.nbytes = storage_bytes(tensor)
        self.free = tensor.is_leaf and tensor.requires_grad  # a parameter: it is there anyway

    @property
    def is_held(self) -> bool:
        """Whether the tensor is kept already."""
        return self._held is not None

    def can_be_held(self) -> bool:
        """Whether the tensor is still there, unchanged."""
        tensor = self._tensor()
        return self.is_held or (tensor is not None and tensor._version == self._version)  # pyright: ignore[reportPrivateUsage]

    def keep(self, storage: Storage, generator: torch.Generator | None) -> None:
        """Hold the tensor from now on."""
        tensor = self._tensor()
        if self._held is None and tensor is not None:
            self._held = Exact(tensor.detach()) if self.free else hold(tensor.detach(), storage, generator)

    def hold(self, held: Held) -> None:
        """Take over something that is held already."""
        self._held = held

    def become(self, recipe: Recipe) -> None:
        """Let go of the tensor: from now on it is made again when it is asked for."""
        recipe.expect()
        self._held = recipe

    def get(self) -> torch.Tensor:
        """Return the tensor."""
        assert self._held is not None, "a leaf was asked for before it was held"
        return self._held.get()


class Recipe:
    """How to make a tensor again.

    A result that several still wait for is kept from its first use to its last, but only inside the block (``scope``)
    that backward is passing: what another block makes on its way belongs to that block.

    Attributes:
        effort: Bytes that making it writes, its ingredients included.
        leaves: Where it ends.
    """

    __slots__ = (
        "_arguments",
        "_autocast",
        "_function",
        "_keywords",
        "_scope",
        "_value",
        "_waiting",
        "effort",
        "leaves",
    )

    def __init__(
        self,
        function: Function,
        arguments: Any,
        keywords: dict[str, Any],
        *,
        autocast: Autocast,
        scope: int,
        nbytes: int,
    ) -> None:
        self._function, self._arguments, self._keywords = function, arguments, keywords
        self._autocast, self._scope = autocast, scope
        self._value: Any = None
        self._waiting = 0
        self.effort = nbytes
        self.leaves: set[Leaf] = set()
        for item in ingredients(arguments):
            if isinstance(item, Recipe):
                self.effort += item.effort
                self.leaves |= item.leaves
            else:
                self.leaves.add(item)

    def expect(self) -> None:
        """Announce that the result will be asked for once more."""
        self._waiting += 1
        if self._waiting == 1:
            for item in ingredients(self._arguments):
                if isinstance(item, Recipe):
                    item.expect()

    def release(self) -> None:
        """Take an announcement back."""
        if self._waiting == 0:  # a second backward through a retained graph: nothing was announced
            return
        self._waiting -= 1
        if self._waiting == 0:
            self._value = None
            for item in ingredients(self._arguments):
                if isinstance(item, Recipe):
                    item.release()

    def get(self) -> torch.Tensor:
        """Return the result to one who announced it."""
        value = self._make(self._scope)
        self.release()
        return value

    def _make(self, scope: int) -> Any:
        if self._value is not None:
            return self._value
        arguments = _made(self._arguments, scope)
        enabled, dtype = self._autocast
        if enabled:
            with torch.autocast(_device_type(arguments), dtype=dtype):
                value = self._function(*arguments, **self._keywords)
        else:
            value = self._function(*arguments, **self._keywords)
        if self._waiting > 1 and scope == self._scope:
            self._value = value
        return value


def ingredients(arguments: Any) -> Iterator[Recipe | Leaf]:
    """Walk through the recipes and leaves among arguments, lists and tuples included."""
    for item in arguments:
        if isinstance(item, Recipe | Leaf):
            yield item
        elif isinstance(item, list | tuple):
            yield from ingredients(item)


def _made(arguments: Any, scope: int) -> list[Any]:
    made: list[Any] = []
    for item in arguments:
        if isinstance(item, Recipe):
            made.append(item._make(scope))  # pyright: ignore[reportPrivateUsage]
        elif isinstance(item, Leaf):
            made.append(item.get())
        elif isinstance(item, list | tuple):
            made.append(type(item)(_made(item, scope)))  # pyright: ignore[reportUnknownArgumentType]
        else:
            made.append(item)
    return made


def _device_type(arguments: list[Any]) -> str:
    for item in arguments:
        if isinstance(item, torch.Tensor):
            return item.device.type
        if isinstance(item, list | tuple) and item:
            return _device_type(list(item))  # pyright: ignore[reportUnknownArgumentType]
    return "cpu"
