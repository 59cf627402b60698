"""What happens during one forward pass under the engine: what was made from what, and what autograd gets to keep.

A ``Session`` lives as long as the outermost forward call. Inside it, ``Recording`` (technique ``recompute``) notes
cheap results; ``Replay`` (technique ``block``) keeps what enters a block and runs the block again in backward, with a
session of its own when the block is nested.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import torch
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode,  # pyright: ignore[reportPrivateUsage]
    _pop_mode_temporarily,  # pyright: ignore[reportPrivateUsage]
)

from ullage.memory.activations import call
from ullage.memory.keeping import TINY_BYTES, Exact, Held, Noise, Storage, exactly, storage_bytes, without_graph
from ullage.memory.lowering import autocast_now, lowered_dtype
from ullage.memory.recipes import Context, Leaf, Origin, Recipe
from ullage.memory.rules import NORMS, ROLES, out_of_place, weight_shape, works_in_place

# Bytes that a recipe may write for each byte of its result. It bounds the time where residual sums form long chains.
MAX_EFFORT = 16

Key: TypeAlias = tuple[Any, ...]
_functorch_is_active: Any = torch._C._are_functorch_transforms_active  # pyright: ignore[reportPrivateUsage]


class _NotKnowable(Exception):
    """A call that cannot be noted: a tensor without plain memory, or a tensor in a named argument."""


def key_of(tensor: torch.Tensor) -> Key:
    """Identify a tensor among all views of living storages."""
    return (
        tensor.untyped_storage()._cdata,  # pyright: ignore[reportPrivateUsage]
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.is_neg(),
        tensor.is_conj(),
    )


def has_plain_memory(tensor: torch.Tensor) -> bool:
    """Whether a tensor is what its storage and strides say: not sparse, not nested."""
    return tensor.layout is torch.strided


def is_tiny(tensor: torch.Tensor) -> bool:
    """Whether a tensor is kept without asking where it comes from."""
    return tensor.untyped_storage().nbytes() <= TINY_BYTES


class Session:
    """The tensors of one forward pass that can be made again, and those that are held."""

    def __init__(self, storage: Storage, noise: Noise) -> None:
        self.storage: Storage = storage
        self.noise = noise
        self.scope = 0
        self._known: dict[Key, tuple[weakref.ref[Any], int, Recipe | Leaf]] = {}
        self._held: dict[int, weakref.ref[Any]] = {}

    def close(self) -> None:
        """Forget everything: from now on autograd alone decides how long something is held."""
        self._known.clear()
        self._held.clear()

    def note(self, key: Key, tensor: torch.Tensor, origin: Recipe | Leaf) -> None:
        """Remember where a tensor comes from."""
        version = tensor._version  # pyright: ignore[reportPrivateUsage]
        self._known[key] = weakref.ref(tensor.untyped_storage()), version, origin

    def note_entered(self, tensor: torch.Tensor, recipe: Recipe) -> None:
        """Remember that a tensor need not be held: it was made by a recipe of an earlier session, and can be again."""
        if not has_plain_memory(tensor) or is_tiny(tensor):
            return
        key = key_of(tensor)
        leaf = Leaf(tensor, key[0])
        leaf.become(recipe)
        self.note(key, tensor, leaf)

    def find(self, key: Key, tensor: torch.Tensor) -> Recipe | Leaf | None:
        """Return where a tensor comes from, unless it is unknown or was changed in place since."""
        entry = self._known.get(key)
        if entry is None or entry[1] != tensor._version or entry[0]() is None:  # pyright: ignore[reportPrivateUsage]
            return None
        return entry[2]

    def origin(self, tensor: torch.Tensor) -> Origin:
        """Return where an argument comes from. One of unknown origin becomes a leaf; a tiny one is copied."""
        if is_tiny(tensor):
            own = tensor.is_leaf and tensor.requires_grad  # parameters do not change between forward and backward
            return Exact(tensor if own else tensor.detach().clone())
        key = key_of(tensor)
        known = self.find(key, tensor)
        if known is None:
            known = Leaf(tensor, key[0])
            self.note(key, tensor, known)
        elif type(known) is Leaf:
            known.meet(tensor)
        return known

    def keep(self, tensor: torch.Tensor) -> Recipe | Leaf | Exact:
        """Choose what is held in place of a tensor."""
        if not has_plain_memory(tensor) or is_tiny(tensor):
            return Exact(without_graph(tensor))
        key = key_of(tensor)
        known = self.find(key, tensor)
        if type(known) is Recipe and self.is_worth_it(known, tensor):
            self._hold_leaves(known)
            known.expect()
            return known
        if type(known) is Leaf:
            known.meet(tensor)
        else:
            known = Leaf(tensor, key[0])
            self.note(key, tensor, known)
        known.keep(self.storage, self.noise)
        self._held[key[0]] = weakref.ref(tensor.untyped_storage())
        return known

    def can_be_overwritten(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor could be made again, with the same strides, after it was overwritten."""
        if not has_plain_memory(tensor) or is_tiny(tensor):
            return False
        return type(self.find(key_of(tensor), tensor)) is Recipe and _is_dense(tensor)

    def is_worth_it(self, recipe: Recipe, tensor: torch.Tensor) -> bool:
        """Whether the recipe needs less memory than the tensor that it makes, and not too much time."""
        nbytes = storage_bytes(tensor)
        if recipe.effort > MAX_EFFORT * nbytes:
            return False
        more: dict[int, int] = {}
        for leaf in recipe.leaves:
            if not leaf.can_be_had():
                return False
            if not self._is_there(leaf):
                more[leaf.storage] = leaf.nbytes
        return sum(more.values()) < nbytes

    def _is_there(self, leaf: Leaf) -> bool:
        if leaf.free or leaf.is_held:
            return True
        storage = self._held.get(leaf.storage)
        return self.storage == "exact" and storage is not None and storage() is not None

    def let_go(self, leaf: Leaf, recipe: Recipe) -> None:
        """Put a recipe in place of a result that is held."""
        self._hold_leaves(recipe)
        leaf.become(recipe)
        self._held.pop(leaf.storage, None)

    def _hold_leaves(self, recipe: Recipe) -> None:
        for leaf in recipe.leaves:
            leaf.keep(self.storage, self.noise)


class Recording(TorchFunctionMode):
    """Notes how cheap results are made, while it is active.

    Args:
        session: Where it notes.
        notes: Whether it does at the moment; ``scope`` changes it for a while.
    """

    def __init__(self, session: Session, *, notes: bool) -> None:
        super().__init__()
        self.session, self.notes = session, notes
        self._results: list[Leaf] | None = None  # what autograd keeps during the call that is being noted
        self._weight: Sequence[int] | None = None

    def pack(self, tensor: torch.Tensor) -> Held:
        """Autograd wants to keep a tensor."""
        if self._weight is not None and tensor.shape == self._weight:
            return Exact(without_graph(tensor))
        held = self.session.keep(tensor)
        if self._results is not None and type(held) is Leaf:
            self._results.append(held)
        return held

    @contextlib.contextmanager
    def scope(self, storage: Storage, *, notes: bool) -> Generator[None]:
        """Enter a block."""
        session = self.session
        before = self.notes, session.storage
        self.notes, session.storage = notes, storage
        session.scope += 1
        try:
            with contextlib.nullcontext() if notes or storage != "exact" else self.aside():
                yield
        finally:
            self.notes, session.storage = before
            session.scope += 1

    @contextlib.contextmanager
    def aside(self) -> Generator[None]:
        """Leave the stack of function modes where that is possible: calls that nobody watches cost nothing."""
        if _get_current_function_mode() is not self:
            yield
            return
        with _pop_mode_temporarily():
            yield

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # pyright: ignore[reportUnknownMemberType]
        self.session.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords: dict[str, Any] = kwargs or {}
        if torch.compiler.is_compiling():  # a compiled part keeps what its compiler chose
            return func(*args, **keywords)
        role = ROLES.get(func)
        if role is None or not torch.is_grad_enabled() or _functorch_is_active():
            return func(*args, **keywords)
        if role == "product":
            return self._product(func, args, keywords)
        if not self.notes:
            return func(*args, **keywords)
        if role == "norm":
            return self._norm(func, *args, **keywords)
        return self._cheap(func, args, keywords)

    def _product(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """Call a convolution or matrix product; its weight is kept as it is, however maps are held."""
        if self.notes:
            args = self._lowered(args)
        if self.session.storage == "exact":
            return func(*args, **keywords)
        self._weight = weight_shape(func, args)
        try:
            return func(*args, **keywords)
        finally:
            self._weight = None

    def _lowered(self, args: Any) -> Any:
        """Make autocast's copies before the call: they are known then, and can be made again."""
        first = next((item for item in args if isinstance(item, torch.Tensor)), None)
        dtype = None if first is None else lowered_dtype(_device_type(first))
        if dtype is None:
            return args
        return tuple(
            self._cheap(torch.Tensor.to, (item, dtype), {})
            if isinstance(item, torch.Tensor) and item.dtype is torch.float32 and not item.is_leaf
            else item
            for item in args
        )

    def _cheap(self, func: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """Call a cheap function and note how its result was made."""
        if _is_alone(args) and has_plain_memory(args[0]) and is_tiny(args[0]):
            return func(*args, **keywords)
        in_place = works_in_place(func, args, keywords)
        if in_place and not self.session.can_be_overwritten(args[0]):
            return func(*args, **keywords)
        try:
            origins: list[Any] = [self._origin(item) for item in args]
            for item in keywords.values():
                _refuse_tensors(item)
        except _NotKnowable:
            return func(*args, **keywords)
        self._results = []
        try:
            out = call(func, args, keywords)
            if in_place:
                func, origins, keywords = out_of_place(func, origins, keywords)
            self._note(func, origins, keywords, out)
        finally:
            self._results = None
        return out

    def _origin(self, item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if not has_plain_memory(item):
                raise _NotKnowable
            return self.session.origin(item)
        if type(item) in (list, tuple) and any(isinstance(x, torch.Tensor) for x in item):
            return type(item)([self._origin(x) for x in item])
        return item

    def _note(self, func: Any, origins: list[Any], keywords: dict[str, Any], out: Any) -> None:
        scope = self.session.scope
        if isinstance(out, torch.Tensor):
            key = self._key_of_new(out)
            if key is not None:
                written = 0 if out._is_view() or _shares(key[0], origins) else out.nbytes
                recipe = Recipe(func, origins, keywords, autocast=autocast_of(out), scope=scope, nbytes=written)
                self._note_one(recipe, key, out)
        elif type(out) in (list, tuple) and out and isinstance(out[0], torch.Tensor):
            autocast = autocast_of(out[0])
            whole = Recipe(func, origins, keywords, autocast=autocast, scope=scope, nbytes=0)
            for index, item in enumerate(out):
                key = self._key_of_new(item) if isinstance(item, torch.Tensor) else None
                if key is not None:
                    recipe = Recipe(_item, [whole, index], {}, autocast=autocast, scope=scope, nbytes=0)
                    self._note_one(recipe, key, item)

    def _key_of_new(self, out: torch.Tensor) -> Key | None:
        """Return the key of a result that is worth noting: not tiny, and not one of the arguments."""
        if not has_plain_memory(out) or is_tiny(out):
            return None
        key = key_of(out)
        before = self.session.find(key, out)
        new = before is None or any(leaf is before for leaf in self._results or ())
        return key if new else None

    def _note_one(self, recipe: Recipe, key: Key, out: torch.Tensor) -> None:
        session = self.session
        for leaf in self._results or ():  # operators like relu keep their own result
            if leaf.storage == key[0] and leaf not in recipe.leaves:
                if not session.is_worth_it(recipe, out):
                    return
                session.let_go(leaf, recipe)
        session.note(key, out, recipe)

    def _norm(self, func: Any, x: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        try:
            origin = self._origin(x)
        except _NotKnowable:
            return func(x, *arguments, **keywords)
        out, again, others = NORMS[func](x, *arguments, **keywords)
        self._note(again, [origin, *exactly(others)], {}, out)
        return out


def _is_alone(args: Any) -> bool:
    first, *others = args or (None,)
    return isinstance(first, torch.Tensor) and not any(isinstance(x, torch.Tensor) for x in others)


def _refuse_tensors(item: Any) -> None:
    if isinstance(item, torch.Tensor):
        raise _NotKnowable
    if type(item) in (list, tuple):
        for one in item:
            _refuse_tensors(one)


def _is_dense(tensor: torch.Tensor) -> bool:
    formats = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
    dims = {torch.channels_last: 4, torch.channels_last_3d: 5}
    return any(tensor.is_contiguous(memory_format=f) for f in formats if dims.get(f, tensor.dim()) == tensor.dim())


def _shares(storage: int, origins: list[Any]) -> bool:
    return any(type(item) is Leaf and item.storage == storage for item in origins)


def _item(items: Any, index: int) -> torch.Tensor:
    return items[index]


def _device_type(tensor: torch.Tensor) -> str:
    return "cpu" if tensor.is_cpu else tensor.device.type


def autocast_of(out: torch.Tensor) -> Context | None:
    """Return what brings back the types of now for a tensor's device, None when autocast is off."""
    kind = _device_type(out)
    return None if lowered_dtype(kind) is None else autocast_now(kind)
