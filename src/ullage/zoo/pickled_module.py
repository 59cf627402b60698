"""From the record of a pickled ``nn.Module`` to its state dict; no class is needed, the shape of the record is enough.

A module's record has a state with ``_parameters``, ``_buffers`` and ``_modules``; those names, dotted, are the keys
that ``state_dict()`` would have given. Cycles, deep nesting and repeated values are bounded by counting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ullage.errors import WeightsError
from ullage.zoo.restricted_pickle import GlobalName, Inert, TensorRef

_MAX_DEPTH = 64
_MAX_NAME = 200
_MAX_MEMBERS = 100
_MAX_VALUES = 500_000


def attributes(record: object) -> dict[Any, Any]:
    """What would have become the attributes of a record's object; empty when there are none."""
    state = record.state if isinstance(record, Inert) else None
    if isinstance(state, tuple) and state:
        state = state[0]  # (attributes, slots)
    return state if isinstance(state, dict) else {}


def is_module(record: object) -> bool:
    """Whether a record has the shape of a pickled ``nn.Module``."""
    state = attributes(record)
    return all(isinstance(state.get(key), dict) for key in ("_parameters", "_buffers", "_modules"))


def module_tensors(record: object) -> dict[str, TensorRef]:
    """List the tensors of a pickled module as ``state_dict()`` would: parameters, then lasting buffers, then children.

    Raises:
        WeightsError: The tree is no tree of modules, too deep, too large, or holds something else than tensors.
    """
    tensors: dict[str, TensorRef] = {}
    budget = _Budget()
    waiting: list[tuple[str, object, int]] = [("", record, 0)]
    while waiting:
        prefix, module, depth = waiting.pop()
        if not is_module(module):
            raise WeightsError(f"its module {prefix.rstrip('.')[:80]!a} is not a module")
        state = attributes(module)
        passing = _set_members(state.get("_non_persistent_buffers_set"))
        budget.spend(depth, sum(map(len, (state["_parameters"], state["_buffers"], state["_modules"], passing))) + 1)
        for name, value in _own_tensors(state, passing):
            key = _dotted(prefix, name)
            if not isinstance(value, TensorRef):
                made_by = f" (made by {str(value.made_by)[:80]!a})" if isinstance(value, Inert) else ""
                raise WeightsError(f"its weight {key[:120]!a} is not a plain tensor{made_by}")
            tensors[key] = value
        children = [(_dotted(prefix, name) + ".", child) for name, child in state["_modules"].items() if child]
        waiting.extend((name, child, depth + 1) for name, child in reversed(children))
    return tensors


def _dotted(prefix: str, name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise WeightsError(f"a part of its module {prefix.rstrip('.')[:80]!a} has no proper name")
    return prefix + name


def _own_tensors(state: dict[Any, Any], passing: set[str]) -> Iterator[tuple[object, object]]:
    """A module's parameters and those of its buffers that checkpoints keep."""
    for name, value in state["_parameters"].items():
        if value is not None:
            yield name, value
    for name, value in state["_buffers"].items():
        if value is not None and name not in passing:
            yield name, value


def _set_members(record: object) -> set[str]:
    """The members of a pickled set of names: protocol 2 calls set([...]), protocol 4 adds items."""
    if not isinstance(record, Inert):
        return set()
    called_with = record.args[0] if record.args and isinstance(record.args[0], list) else []
    members = [*called_with[:_MAX_MEMBERS], *record.items[:_MAX_MEMBERS]]
    return {member for member in members if isinstance(member, str)}


class _Budget:
    """Bounds the work on a value whose parts may repeat, be cyclic, or nest without end."""

    def __init__(self) -> None:
        self.values_left = _MAX_VALUES

    def spend(self, depth: int, values: int) -> None:
        self.values_left -= values
        if self.values_left < 0 or depth > _MAX_DEPTH:
            raise WeightsError("its structure is too large, nested too deeply or refers to itself")


class _Left:
    """Marks a value that `to_plain` leaves out."""


_LEFT = _Left()


def to_plain(value: object, *, read: Callable[[TensorRef], Any] | None = None) -> Any:
    """Copy plain data out of a pickled value: None, bool, int, float, str, bytes, lists, tuples and dicts of those.

    Args:
        value: What `read_pickle` gave.
        read: Reads a tensor. With it, anything but plain data and tensors is an error; without it, it is left out.

    Returns:
        The copy; None when nothing of the value is plain.

    Raises:
        WeightsError: The data is too large, too deep or cyclic; or, with ``read``, not plain.
    """
    plain = _Copier(read).copy(value, 0)
    return None if plain is _LEFT else plain


class _Copier:
    def __init__(self, read: Callable[[TensorRef], Any] | None) -> None:
        self.read = read
        self.budget = _Budget()

    def copy(self, value: object, depth: int) -> Any:
        self.budget.spend(depth, 1)
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        if isinstance(value, TensorRef) and self.read:
            return self.read(value)
        if isinstance(value, list | tuple):
            parts = [self.copy(part, depth + 1) for part in value]
            return type(value)(part for part in parts if part is not _LEFT)
        if isinstance(value, dict):
            pairs = [(key, self.copy(part, depth + 1)) for key, part in value.items() if self.keep_key(key)]
            return {key: part for key, part in pairs if part is not _LEFT}
        if self.read:
            raise WeightsError(f"it holds {_describe(value)}, which is neither plain data nor a tensor")
        return _LEFT

    def keep_key(self, key: object) -> bool:
        plain = isinstance(key, str | int | float | bool)
        if not plain and self.read:
            raise WeightsError(f"it has {_describe(key)} as a key, which is not plain data")
        return plain


def _describe(value: object) -> str:
    if isinstance(value, Inert):
        return f"an object of {str(value.made_by)[:80]!a}"
    return f"the name {str(value)[:80]!a}" if isinstance(value, GlobalName) else f"a {type(value).__name__}"
