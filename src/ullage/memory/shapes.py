"""Shapes that were worked out once need not be worked out again: a memory of operators for traces on fake tensors.

A trace runs thousands of operators, most of them many times on tensors of the same shapes. PyTorch's fake tensors
remember what comes out, too, but spend several times as long on asking. Only operators are remembered that either
return new tensors and change nothing, or return exactly the tensors that they write to.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, TypeAlias

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

Made: TypeAlias = "tuple[Any, Any, Any] | None"  # shape, stride, dtype

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.memory_format, torch.layout, torch.device)
_MANY = 100_000  # entries; a long search starts anew beyond
_memory: dict[Any, tuple[bool, tuple[Made, ...]] | None] = {}


_VIEWS = frozenset(
    (torch.ops.aten.detach.default, torch.ops.aten.view.default, torch.ops.aten.transpose.int,
     torch.ops.aten.permute.default, torch.ops.aten.unsqueeze.default, torch.ops.aten.expand.default,
     torch.ops.aten.t.default, torch.ops.aten.slice.Tensor, torch.ops.aten.select.int, torch.ops.aten.split.Tensor)
)  # fmt: skip
_CPU = torch.device("cpu")
_TO_DTYPE = torch.ops.aten.to.dtype
_TO_COPY = torch.ops.aten._to_copy.default
_NORM = torch.ops.aten.native_batch_norm.default
_NORM_BACKWARD = torch.ops.aten.native_batch_norm_backward.default


class _NotKnown(Exception):
    """An argument of a kind that is not remembered."""


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call an operator, or make what it made the last time it was called with such arguments."""
    mode = _mode(args)
    if mode is None:
        return func(*args, **kwargs)
    if func in _VIEWS and not kwargs and type(args[0]) is FakeTensor:
        return _viewed(mode, func, args)
    if func is _TO_DTYPE and len(args) == 2 and not kwargs:
        return args[0] if args[0].dtype is args[1] else run(_TO_COPY, args[:1], {"dtype": args[1]})
    if not _returns_new(func):
        return _written(func, args, kwargs)
    try:
        key = (func, _signature(args), _signature(tuple(kwargs.items())) if kwargs else ())
        known = _memory.get(key, _memory)
    except (_NotKnown, TypeError):  # TypeError: something that cannot be looked up
        return func(*args, **kwargs)
    if known is _memory:
        out = _normalised(mode, func, args) or func(*args, **kwargs)
        if len(_memory) > _MANY:
            _memory.clear()
        _memory[key] = _described(out)
        return out
    if known is None:
        return func(*args, **kwargs)
    single, parts = known
    with torch._C._DisableTorchDispatch():  # pyright: ignore
        made = tuple(None if part is None else _make(mode, *part) for part in parts)
    return made[0] if single else made


def _normalised(mode: FakeTensorMode, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Make what batch normalisation returns. Fake tensors take a hundred operators to find out."""
    is_forward = func is _NORM
    if not (is_forward or func is _NORM_BACKWARD):
        return None
    maps, is_training = (args[:1], args[5]) if is_forward else (args[:2], args[7])
    if any(type(a) is not FakeTensor or a.dtype is not maps[0].dtype or a.stride() != maps[0].stride() for a in maps):
        return None
    weight = args[1 if is_forward else 2]
    dense = maps[0].is_contiguous() or maps[0].is_contiguous(memory_format=torch.channels_last)
    if type(weight) is not FakeTensor or maps[0].dim() != 4 or not dense:
        return None
    if not is_forward and (list(args[9]) != [True] * 3 or not is_training):
        return None
    channels = weight.shape if is_training else torch.Size([0])
    channel = (channels, (1,), weight.dtype)
    with torch._C._DisableTorchDispatch():  # pyright: ignore
        like = _make(mode, maps[0].shape, maps[0].stride(), maps[0].dtype)
        return like, _make(mode, *channel), _make(mode, *channel)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator that may write into its arguments; once its shapes are known to fit, nothing is left to do."""
    targets = _targets(func)
    if targets is None:
        return func(*args, **kwargs)
    results = [kwargs.get(t) if isinstance(t, str) else args[t] for t in targets]
    try:
        key = (func, _signature(args), _signature(tuple(kwargs.items())) if kwargs else ())
        known = key in _memory
    except (_NotKnown, TypeError):
        return func(*args, **kwargs)
    if not known:
        before = [(r.shape, r.stride()) if type(r) is FakeTensor else None for r in results]
        out = func(*args, **kwargs)
        after = [(r.shape, r.stride()) if type(r) is FakeTensor else None for r in results]
        if None not in before and before == after:
            _memory[key] = None
        return out
    return results[0] if len(results) == 1 else tuple(results)


@cache
def _targets(func: Any) -> tuple[int | str, ...] | None:
    """Return which arguments an operator returns, by position or name; None unless it returns just what it writes."""
    schema = func._schema
    written: dict[frozenset[str], int | str] = {
        frozenset(argument.alias_info.before_set): argument.name if argument.kwarg_only else position
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None
    }
    returned = [result.alias_info for result in schema.returns]
    if not returned or any(info is None or not info.is_write for info in returned):
        return None
    found = [written.get(frozenset(info.before_set)) for info in returned]
    if any(argument.alias_info is not None and not argument.alias_info.is_write for argument in schema.arguments):
        return None
    return None if None in found or len(found) != len(written) else tuple(t for t in found if t is not None)


def _mode(args: Any) -> FakeTensorMode | None:
    item: Any
    for item in args:
        if type(item) is FakeTensor:
            return item.fake_mode
        if isinstance(item, list) and item:
            return _mode(tuple(item[:1]))  # pyright: ignore[reportUnknownArgumentType]
    return None


@cache
def _returns_new(func: Any) -> bool:
    """Whether an operator's results share no memory with its arguments, and its arguments stay what they are."""
    schema = func._schema
    return (
        all(result.alias_info is None for result in schema.returns)
        and all(argument.alias_info is None for argument in schema.arguments)
        and len(schema.returns) > 0
    )


def _signature(items: Any) -> tuple[Any, ...]:
    signs: list[Any] = []
    kind: Any
    for item in items:
        kind = type(item)  # pyright: ignore[reportUnknownVariableType]
        if kind is FakeTensor:
            signs.append((item.shape, item.stride(), item.dtype, item.requires_grad))
        elif kind is list or kind is tuple or kind is torch.Size:
            signs.append((kind, _signature(item)))
        elif isinstance(item, _PLAIN):
            signs.append((kind, item))  # 1, 1.0 and True are equal, and not the same
        else:
            raise _NotKnown
    return tuple(signs)


def _described(out: Any) -> tuple[bool, tuple[Made, ...]] | None:
    if not isinstance(out, torch.Tensor | tuple):
        return None
    parts: Any = (out,) if isinstance(out, torch.Tensor) else out  # pyright: ignore[reportUnknownVariableType]
    made: list[Made] = []
    part: Any
    for part in parts:
        if part is None:
            made.append(None)
        elif type(part) is FakeTensor and part.storage_offset() == 0 and _is_dense(part):
            made.append((part.shape, part.stride(), part.dtype))
        else:
            return None
    return isinstance(out, torch.Tensor), tuple(made)


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.untyped_storage().nbytes() == tensor.nbytes


def _viewed(mode: FakeTensorMode, func: Any, args: tuple[Any, ...]) -> Any:
    """Run a view on the tensor without memory that a fake tensor is inside."""
    with in_kernel_invocation_manager(mode):
        view = func(*args)
    with torch._C._DisableTorchDispatch():  # pyright: ignore
        return _fake(mode, view) if isinstance(view, torch.Tensor) else [_fake(mode, one) for one in view]


def _make(mode: FakeTensorMode, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> FakeTensor:
    return _fake(mode, torch.empty_strided(shape, stride, dtype=dtype, device="meta"))


def _fake(mode: FakeTensorMode, meta: torch.Tensor) -> FakeTensor:
    """Wrap a tensor without memory as ``FakeTensor(mode, meta, cpu)`` does, in a seventh of its time."""
    made: Any = torch.Tensor._make_subclass(  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
        FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=_CPU
    )
    made.__dict__.update(_attributes(mode))
    return made


@lru_cache(maxsize=1)
def _attributes(mode: FakeTensorMode) -> dict[str, Any]:
    """Return what a fake tensor carries in this mode and this version of PyTorch."""
    return dict(FakeTensor(mode, torch.empty(1, device="meta"), _CPU).__dict__)
