"""How a cheap result is made again: recipes, and the leaves in which they end.

Technique ``recompute`` keeps a ``Recipe`` where autograd would keep the result of a cheap operation. Autograd's graph
is not touched: every gradient is computed by the same operators on the same bits.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from ullage.memory.keeping import Exact, Held, Noise, Storage, hold, storage_bytes, without_graph
from ullage.memory.lowering import lowered_dtype
from ullage.memory.rules import MAY_ALIAS

OUTSIDE = -1  # the scope of no block

Function = Callable[..., Any]
Context = Callable[[], contextlib.AbstractContextManager[Any]]


class Leaf:
    """A tensor in which recipes end. It is held, once, as soon as autograd or a recipe in use needs it.

    Attributes:
        storage: Identity of its memory.
        nbytes: Bytes of its memory.
        free: It is a parameter, so it is there anyway.
    """

    __slots__ = ("_held", "_tensor", "_version", "free", "nbytes", "storage")

    def __init__(self, tensor: torch.Tensor, storage: int) -> None:
        self._held: Held | Recipe | None = None
        self._tensor = weakref.ref(tensor)
        self._version = tensor._version  # pyright: ignore[reportPrivateUsage]
        self.storage = storage
        self.nbytes = storage_bytes(tensor)
        self.free = tensor.requires_grad and tensor.is_leaf

    @property
    def is_held(self) -> bool:
        """Whether the tensor is kept already."""
        return self._held is not None

    def can_be_had(self) -> bool:
        """Whether the tensor is held, or still there to be held, and unchanged."""
        if self._held is not None:
            return not isinstance(self._held, Exact) or self._held.is_unchanged()
        tensor = self._tensor()
        return tensor is not None and tensor._version == self._version  # pyright: ignore[reportPrivateUsage]

    def meet(self, tensor: torch.Tensor) -> None:
        """See the same tensor again: the Python object that was seen before may be gone."""
        if self._held is None and self._tensor() is None:
            self._tensor = weakref.ref(tensor)

    def keep(self, storage: Storage, noise: Noise) -> None:
        """Hold the tensor from now on."""
        if self._held is None:
            tensor = self._tensor()
            assert tensor is not None, "a tensor is held while it is there, or not at all"
            detached = without_graph(tensor)
            self._held = Exact(detached) if self.free else hold(detached, storage, noise)

    def become(self, recipe: Recipe) -> None:
        """Let go of the tensor: from now on it is made again when it is asked for."""
        recipe.expect()
        self._held = recipe

    def get(self) -> torch.Tensor:
        """Return the tensor."""
        assert self._held is not None, "a leaf was asked for before it was held"
        return self._held.get()

    def take(self) -> tuple[torch.Tensor, bool]:
        """Return the tensor; it stays here, unless it has to be made."""
        assert self._held is not None, "a leaf was asked for before it was held"
        return self._held.take()


class Recipe:
    """How to make a tensor again.

    A result that several still wait for is kept from its first use to its last, but only inside the block (``scope``)
    that backward is passing: what another block makes on its way belongs to that block.

    Args:
        function: Makes the tensor.
        arguments: Its positional arguments, with origins in place of tensors.
        keywords: Its named arguments; no tensors.
        autocast: Brings back the types of that time; None where autocast was off.
        scope: Number of the block it was made in.
        nbytes: Bytes that it writes.

    Attributes:
        effort: Bytes that making it writes, its ingredients included.
        leaves: Where it ends.
    """

    __slots__ = (
        "_arguments",
        "_autocast",
        "_function",
        "_ingredients",
        "_is_new",
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
        arguments: list[Any],
        keywords: dict[str, Any],
        *,
        autocast: Context | None,
        scope: int,
        nbytes: int,
    ) -> None:
        self._function, self._arguments, self._keywords = function, arguments, keywords
        self._autocast, self._scope = autocast, scope
        self._value: Any = None
        self._waiting = 0
        self._ingredients: list[Recipe] = []
        self._is_new = nbytes > 0 and function not in MAY_ALIAS
        self.effort = nbytes
        self.leaves: frozenset[Leaf] = frozenset()
        self._find_ingredients(arguments)

    def _find_ingredients(self, arguments: Any) -> None:
        for item in arguments:
            kind: Any = item.__class__
            if kind is Recipe:
                self._ingredients.append(item)
                self.effort += item.effort
                self.leaves = self.leaves | item.leaves if self.leaves else item.leaves
            elif kind is Leaf:
                self.leaves = self.leaves | {item}
            elif kind is list or kind is tuple:
                self._find_ingredients(item)

    def expect(self) -> None:
        """Announce that the result will be asked for once more."""
        self._waiting += 1
        if self._waiting == 1:
            for item in self._ingredients:
                item.expect()

    def release(self) -> None:
        """Take an announcement back."""
        if self._waiting == 0:  # a second backward through a retained graph: nothing was announced
            return
        self._waiting -= 1
        if self._waiting == 0:
            self._value = None
            for item in self._ingredients:
                item.release()

    def get(self) -> torch.Tensor:
        """Return the result to one who announced it."""
        return self.take()[0]

    def take(self) -> tuple[torch.Tensor, bool]:
        """Return the result to one who announced it, and whether nobody waits for it any more."""
        value = self._make(self._scope)
        self.release()
        return value, self._is_new and self._value is None

    def make(self) -> torch.Tensor:
        """Return the result to one who will ask again; nothing is kept on the way."""
        return self._make(OUTSIDE)

    def _make(self, scope: int) -> Any:
        if self._value is not None:
            return self._value
        arguments = _made(self._arguments, scope)
        with self._types_of_then(arguments):
            value = self._function(*arguments, **self._keywords)
        if self._waiting > 1 and scope == self._scope:
            self._value = value
        return value

    def _types_of_then(self, arguments: Any) -> contextlib.AbstractContextManager[Any]:
        """Return autocast as it was in forward; backward may be called inside or outside of it."""
        if self._autocast is not None:
            return self._autocast()
        kind = _device_type(arguments)
        return _AS_IT_IS if lowered_dtype(kind) is None else torch.autocast(kind, enabled=False)


_AS_IT_IS = contextlib.nullcontext()
Origin: TypeAlias = Recipe | Leaf | Exact


def _made(arguments: Any, scope: int) -> list[Any]:
    made: list[Any] = []
    for item in arguments:
        kind: Any = item.__class__
        if kind is Recipe:
            made.append(item._make(scope))
        elif kind is Leaf or kind is Exact:
            made.append(item.get())
        elif kind is list or kind is tuple:
            made.append(kind(_made(item, scope)))
        else:
            made.append(item)
    return made


def _device_type(arguments: Any) -> str:
    for item in arguments:
        if isinstance(item, torch.Tensor):
            return item.device.type
        if type(item) in (list, tuple) and item:
            return _device_type(item)
    return "cpu"
