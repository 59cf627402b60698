"""What happens during one forward pass under the engine: what was made from what, and what autograd gets to keep.

A ``Session`` lives as long as the outermost forward call. Inside it, ``Recording`` (technique ``recompute``) notes cheap
results; ``Replay`` (technique ``block``) keeps what enters a block and runs the block again in backward, with a session
of its own when the block is nested.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ullage.memory.keeping import Storage, storage_bytes, storage_id
from ullage.memory.lowering import LOWERED, lowered_dtype
from ullage.memory.recipes import Autocast, Leaf, Recipe
from ullage.memory.rules import CHEAP, normalise, normalise_again, out_of_place, works_in_place

# Bytes that a recipe may write for each byte of its result. It bounds the time where residual sums form long chains.
MAX_EFFORT = 16

Key = tuple[Any, ...]


def key_of(tensor: torch.Tensor) -> Key:
    """Identify a tensor among all views of living storages."""
    return storage_id(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


class Session:
    """The tensors of one forward pass that can be made again, and those that are held."""

    def __init__(self, storage: Storage) -> None:
        self.storage: Storage = storage
        self.scope = 0
        self.generator: torch.Generator | None = None
        self._known: dict[Key, tuple[weakref.ref[Any], int, Recipe | Leaf]] = {}
        self._held: dict[int, weakref.ref[Any]] = {}

    def close(self) -> None:
        """Forget everything: from now on autograd alone decides how long something is held."""
        self._known.clear()
        self._held.clear()

    def note(self, tensor: torch.Tensor, origin: Recipe | Leaf) -> None:
        """Remember where a tensor comes from."""
        self._known[key_of(tensor)] = weakref.ref(tensor.untyped_storage()), tensor._version, origin  # pyright: ignore[reportPrivateUsage]

    def origin(self, tensor: torch.Tensor) -> Recipe | Leaf | None:
        """Return where a tensor comes from, unless it is unknown or was changed in place since."""
        entry = self._known.get(key_of(tensor))
        if entry is None or entry[0]() is None or entry[1] != tensor._version:  # pyright: ignore[reportPrivateUsage]
            return None
        return entry[2]

    def origin_or_leaf(self, tensor: torch.Tensor) -> Recipe | Leaf:
        """Return where a tensor comes from; one of unknown origin becomes a leaf."""
        known = self.origin(tensor)
        if known is None:
            known = Leaf(tensor)
            self.note(tensor, known)
        return known

    def keep(self, tensor: torch.Tensor) -> Recipe | Leaf:
        """Choose what autograd holds in place of a tensor that it wants to keep."""
        known = self.origin(tensor)
        if isinstance(known, Recipe):
            if self.is_worth_it(known, tensor):
                self._hold_leaves(known)
                known.expect()
                return known
            known = None
        if known is None:
            known = Leaf(tensor)
            self.note(tensor, known)
        self._hold(known, tensor)
        return known

    def is_worth_it(self, recipe: Recipe, tensor: torch.Tensor) -> bool:
        """Whether the recipe needs less memory than the tensor that it makes, and not too much time."""
        nbytes = storage_bytes(tensor)
        if recipe.effort > MAX_EFFORT * nbytes or not all(leaf.can_be_held() for leaf in recipe.leaves):
            return False
        more = {leaf.storage: leaf.nbytes for leaf in recipe.leaves if not self._is_held(leaf)}
        return sum(more.values()) < nbytes

    def _is_held(self, leaf: Leaf) -> bool:
        if leaf.free or leaf.is_held:
            return True
        storage = self._held.get(leaf.storage)
        return self.storage == "exact" and storage is not None and storage() is not None

    def _hold_leaves(self, recipe: Recipe) -> None:
        for leaf in recipe.leaves:
            leaf.keep(self.storage, self.generator)

    def _hold(self, leaf: Leaf, tensor: torch.Tensor) -> None:
        leaf.keep(self.storage, self.generator)
        self._held[leaf.storage] = weakref.ref(tensor.untyped_storage())


class Recording(TorchFunctionMode):
    """Notes how cheap results are made, while it is active.

    Args:
        session: Where it notes.
        notes: Whether it does at the moment; ``scope`` changes it for a while.
    """

    def __init__(self, session: Session, *, notes: bool) -> None:
        super().__init__()
        self.session, self.notes = session, notes
        self._kept_now: list[tuple[int, Leaf]] = []

    def pack(self, tensor: torch.Tensor) -> Recipe | Leaf:
        """Autograd wants to keep a tensor."""
        held = self.session.keep(tensor)
        if isinstance(held, Leaf):
            self._kept_now.append((storage_id(tensor), held))
        return held

    @contextlib.contextmanager
    def scope(self, storage: Storage, *, notes: bool) -> Generator[None]:
        """Enter a block."""
        session = self.session
        before = self.notes, session.storage
        self.notes, session.storage = notes, storage
        session.scope += 1
        try:
            yield
        finally:
            self.notes, session.storage = before
            session.scope += 1

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.session.close()
        self._kept_now.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if not self.notes or not torch.is_grad_enabled():
            return func(*args, **keywords)
        if func in LOWERED:
            return func(*self._lowered(args), **keywords)
        if func is F.batch_norm:
            return self._batch_norm(*args, **keywords)
        if func not in CHEAP or "out" in keywords:
            return func(*args, **keywords)
        return self._cheap(func, args, keywords)

    def _cheap(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        in_place = works_in_place(func, args, keywords)
        session = self.session
        origins = [self._origin(item) for item in args]
        if in_place and not isinstance(origins[0], Recipe):
            return func(*args, **keywords)  # what it overwrites cannot be had again
        named = {name: self._origin(item) for name, item in keywords.items()}
        if any(isinstance(item, Recipe | Leaf) for item in named.values()):
            return func(*args, **keywords)
        self._kept_now.clear()
        out = func(*args, **keywords)
        if in_place:
            origins, named = out_of_place(func, tuple(origins), named)
            origins = list(origins)
        self._note(func, origins, named, out, session)
        return out

    def _origin(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return self.session.origin_or_leaf(item)
        if type(item) in (list, tuple) and any(isinstance(x, torch.Tensor) for x in item):
            return type(item)([self._origin(x) for x in item])
        return item

    def _note(self, func: Any, origins: Any, named: dict[str, Any], out: Any, session: Session) -> None:
        autocast = _autocast_of(out)
        if isinstance(out, torch.Tensor):
            self._note_one(Recipe(func, origins, named, autocast=autocast, scope=session.scope,
                                  nbytes=self._written(out, origins)), out)  # fmt: skip
        elif isinstance(out, list | tuple):
            whole = Recipe(func, origins, named, autocast=autocast, scope=session.scope, nbytes=0)
            for index, item in enumerate(out):
                if isinstance(item, torch.Tensor):
                    self._note_one(Recipe(_item, [whole, index], {}, autocast=autocast, scope=session.scope, nbytes=0),
                                   item)  # fmt: skip

    def _note_one(self, recipe: Recipe, out: torch.Tensor) -> None:
        before = self.session.origin(out)
        if before is not None and not any(leaf is before for _, leaf in self._kept_now):
            return  # the call returned its argument
        self.session.note(out, recipe)
        own = storage_id(out)
        for storage, leaf in self._kept_now:  # operators like relu keep their own result
            if storage == own and leaf not in recipe.leaves and self.session.is_worth_it(recipe, out):
                self.session._hold_leaves(recipe)
                leaf.become(recipe)
        self._kept_now.clear()

    @staticmethod
    def _written(out: torch.Tensor, origins: Any) -> int:
        own = storage_id(out)
        leaves = [x for x in origins if isinstance(x, Leaf)]
        if out._is_view() or any(leaf.storage == own for leaf in leaves):
            return 0
        return out.numel() * out.element_size()

    def _lowered(self, args: Any) -> Any:
        dtype = lowered_dtype(args[0].device.type)
        if dtype is None:
            return args
        return tuple(
            self._cheap(torch.Tensor.to, (item, dtype), {})
            if isinstance(item, torch.Tensor) and item.dtype is torch.float32 and not item.is_leaf
            else item
            for item in args
        )

    def _batch_norm(
        self,
        x: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        session = self.session
        if not training:
            out = F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
            fixed = [
                session.origin_or_leaf(t) if t is not None else None
                for t in (x, running_mean, running_var, weight, bias)
            ]
            self._note(F.batch_norm, [*fixed, False, momentum, eps], {}, out, session)
            return out
        origins = [session.origin_or_leaf(t) if t is not None else None for t in (x, weight, bias)]
        if x.device.type == "cpu" and x.dim() > 2:
            out, mean_C, scale_C = torch.native_batch_norm(
                x, weight, bias, running_mean, running_var, True, momentum, eps
            )
            self._note(normalise, [*origins, mean_C, scale_C], {}, out, session)
            return out
        out = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
        self._note(normalise_again, [*origins, momentum, eps], {}, out, session)
        return out


def _item(items: Any, index: int) -> torch.Tensor:
    return items[index]


def _autocast_of(out: Any) -> Autocast:
    first = out if isinstance(out, torch.Tensor) else out[0]
    kind = first.device.type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
