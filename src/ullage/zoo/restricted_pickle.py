"""Pickles read as data: a stack machine of our own that builds records and never runs what is pickled.

Python's unpickler imports the names it meets and calls them. This one has no way to do either: it knows the opcodes of
pickle protocols 2 to 5, turns every imported name into a `GlobalName` (two strings) and every call into an `Inert`
record of what would have been called with what. The few names that torch.save needs are understood, by functions of
this file (`_BUILDERS`): tensors as views of a storage, parameters, ordered dictionaries, sizes and bytes. Storages
stay references (`StorageRef`); `torch_file` reads their bytes, after checking bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ullage.errors import WeightsError

MAX_OPCODES = 2_000_000  # the largest official checkpoint has about 150,000
MAX_PICKLE_BYTES = 64 * 1024 * 1024
_MAX_NAME_BYTES = 512
_MAX_INTEGER_BYTES = 64
_MAX_COPIED = 4_000_000  # letters and elements that calls may copy: the memo can repeat a long text at no cost
_MAX_KEY_PARTS = 16
_MAX_SIDES = 64
_MAX_KEY_INTEGER = 2**60  # larger ones can be made to share one hash, and a dictionary of those never ends
_PROTOCOLS = range(2, 6)


@dataclass(frozen=True, slots=True)
class GlobalName:
    """A name that the pickle wanted imported; only ever these two strings."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False, repr=False)  # it may hold itself
class Inert:
    """Record of an object that the pickle wanted made.

    Attributes:
        made_by: The class or function that would have been called.
        args: The positional arguments of that call.
        state: What would have become its attributes, usually a dict.
        items: What would have been appended or added to it.
        pairs: What would have been set by key.
    """

    made_by: GlobalName
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class StorageRef:
    """A run of numbers stored beside the pickle: its torch storage class, its key in the file, how many numbers."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorRef:
    """A view of a storage, in elements; not yet checked against the storage's real size."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a pickle says.

    Attributes:
        value: Plain Python values, `Inert`, `GlobalName`, `StorageRef` and `TensorRef`, nested.
        end: Position of the first byte after the pickle.
        storages: Every storage that it refers to, by key.
    """

    value: Any
    end: int
    storages: dict[str, StorageRef]


def read_pickle(data: bytes, *, start: int = 0) -> Pickled:
    """Read one pickle as data.

    Args:
        data: The bytes that hold it.
        start: Where it starts.

    Returns:
        The value, where the pickle ends, and the storages that it refers to.

    Raises:
        WeightsError: The pickle is damaged, too large, or uses what a checkpoint has no use for.
    """
    machine = _Machine(data, start)
    value = machine.run()
    return Pickled(value, machine.position, machine.storages)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _tensor(args: tuple[Any, ...]) -> TensorRef:
    """torch._utils._rebuild_tensor(_v2): storage, offset, size, stride, and four things that weights do without."""
    match args:
        case (StorageRef() as storage, offset, tuple(size), tuple(stride), *_) if len(size) == len(
            stride
        ) <= _MAX_SIDES and all(map(_is_count, (offset, *size, *stride))):
            return TensorRef(storage, offset, size, stride)
    raise WeightsError("it describes a tensor without a proper storage, offset, size and stride")


def _parameter(args: tuple[Any, ...]) -> TensorRef:
    """torch._utils._rebuild_parameter: the tensor itself, then flags that weights do without."""
    match args:
        case (TensorRef() as tensor, *_):
            return tensor
    raise WeightsError("it describes a parameter that is not a tensor")


def _ordered_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    match args:
        case ():
            return {}
        case (list(pairs),) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return {_key(key): value for key, value in pairs}
    raise WeightsError("it describes an ordered dictionary that is not made of pairs")


def _size(args: tuple[Any, ...]) -> tuple[int, ...]:
    match args:
        case ((list(size) | tuple(size)),) if len(size) <= _MAX_SIDES and all(map(_is_count, size)):
            return tuple(size)
    raise WeightsError("it describes a size that is not a row of counts")


def _latin1_bytes(args: tuple[Any, ...]) -> bytes:
    """_codecs.encode and an empty bytes(): how protocol 2 writes bytes."""
    match args:
        case ():
            return b""
        case (str(text), "latin1" | "latin-1") if text.isascii() or max(map(ord, text)) < 256:
            return text.encode("latin-1")
    raise WeightsError("it describes bytes in an encoding other than latin1")


_BUILDERS: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
    ("_codecs", "encode"): _latin1_bytes,
    ("__builtin__", "bytes"): _latin1_bytes,
}


def _call(target: object, args: object) -> Any:
    """What stands for ``target(*args)``: a builder of this file for the few known names, else a record."""
    if not isinstance(args, tuple):
        raise WeightsError("it calls something with arguments that are not a tuple")
    if isinstance(target, Inert):  # calling what a call returned: name the innermost callable
        return Inert(target.made_by, args)
    if not isinstance(target, GlobalName):
        raise WeightsError(f"it calls a value of type {type(target).__name__}")
    builder = _BUILDERS.get((target.module, target.name))
    return builder(args) if builder else Inert(target, args)


def _key(value: object) -> Any:
    """A dictionary key whose hash is cheap: nested tuples could exhaust the C stack, so only flat ones pass."""
    parts = value if isinstance(value, tuple) and len(value) <= _MAX_KEY_PARTS else (value,)
    for part in parts:
        too_large = isinstance(part, int) and abs(part) > _MAX_KEY_INTEGER
        if too_large or not isinstance(part, str | int | float | bytes | None | GlobalName | Inert):
            raise WeightsError(f"it uses a value of type {type(part).__name__} as a dictionary key")
    return value


def _persistent(identity: object) -> Any:
    """What a reference of torch means: storages, and in the old format a class with its source text (dropped)."""
    match identity:
        case ("storage", GlobalName("torch", kind), str(key), str(), int(numel)) if _is_count(numel):
            return StorageRef(kind, key, numel)
        case ("storage", GlobalName("torch", kind), str(key), str(), int(numel), None) if _is_count(numel):
            return StorageRef(kind, key, numel)
        case ("module", GlobalName() as name, *_):
            return name
    raise WeightsError("it refers to something other than a plain torch storage")


class _Machine:
    """The stack, the marks, the memo and the reading position of one pickle."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data = data
        self.position = start
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, StorageRef] = {}
        self.copied = 0

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self.take(1)[0]
            if code == 0x2E:  # STOP
                return self.pop()
            handler = _HANDLERS.get(code)
            if handler is None:
                raise WeightsError(
                    f"byte {self.position - 1} of its pickle is opcode {code:#04x}, "
                    "which is damaged or of no use in a checkpoint (protocols 2 to 5 are read)"
                )
            handler(self)
        raise WeightsError(f"its pickle has more than {MAX_OPCODES:,} steps, which no checkpoint needs")

    def take(self, count: int) -> bytes:
        piece = self.data[self.position : self.position + count]
        if len(piece) != count:
            raise WeightsError("its pickle ends too early; the file is truncated or damaged")
        self.position += count
        return piece

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, length: int, encoding: str = "utf-8") -> str:
        try:
            return self.take(length).decode(encoding)
        except UnicodeDecodeError:
            raise WeightsError("a text in its pickle is not valid UTF-8; the file is damaged") from None

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + _MAX_NAME_BYTES)
        if end < 0:
            raise WeightsError("a name in its pickle has no end; the file is damaged")
        text = self.text(end - self.position)
        self.position = end + 1
        return text

    def integer(self, length: int) -> int:
        if length > _MAX_INTEGER_BYTES:
            raise WeightsError(f"its pickle has an integer of {length} bytes")
        return int.from_bytes(self.take(length), "little", signed=True)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise WeightsError("its pickle takes from an empty stack; the file is damaged")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise WeightsError("its pickle looks at an empty stack; the file is damaged")
        return self.stack[-1]

    def pop_last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise WeightsError("its pickle takes from an empty stack; the file is damaged")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise WeightsError("its pickle closes a group that it never opened; the file is damaged")
        taken, self.stack = self.stack, self.marks.pop()
        return taken

    def drop(self) -> None:
        self.pop()

    def drop_to_mark(self) -> None:
        self.pop_to_mark()

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise WeightsError("its pickle recalls a value that it never stored; the file is damaged")
        self.push(self.memo[index])

    def protocol(self) -> None:
        version = self.take(1)[0]
        if version not in _PROTOCOLS:
            raise WeightsError(f"its pickle protocol is {version}; 2 to 5 are read")

    def frame(self) -> None:
        self.take(8)  # a hint for buffered readers; what follows carries its own lengths

    def global_name(self) -> None:
        self.push(GlobalName(self.line(), self.line()))

    def stack_global(self) -> None:
        module, name = self.pop_last(2)
        if not (isinstance(module, str) and isinstance(name, str)) or len(module) + len(name) > _MAX_NAME_BYTES:
            raise WeightsError("its pickle names a class by something other than two short texts")
        self.push(GlobalName(module, name))

    def reduce(self) -> None:
        self.call(*self.pop_last(2))

    def call(self, target: Any, args: Any) -> None:
        if isinstance(args, tuple) and isinstance(target, GlobalName):
            self.copied += sum(len(arg) for arg in args[:2] if isinstance(arg, str | list | tuple))
        if self.copied > _MAX_COPIED:
            raise WeightsError("its pickle copies the same values over and over")
        self.push(_call(target, args))

    def new_object_with_keywords(self) -> None:
        target, args, _keywords = self.pop_last(3)
        self.call(target, args)

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):  # an ordered dict carries attributes (versions) that weights do without
            raise WeightsError(f"its pickle sets attributes on a {type(target).__name__}")

    def persistent(self) -> None:
        value = _persistent(self.pop())
        if isinstance(value, StorageRef):
            first = self.storages.setdefault(value.key, value)
            if (first.kind, first.numel) != (value.kind, value.numel):
                raise WeightsError("it describes one storage in two ways")
            value = first
        self.push(value)

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Inert):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise WeightsError(f"its pickle appends to a {type(target).__name__}")

    def set_items(self, flat: list[Any]) -> None:
        target = self.top()
        pairs = _pairs(flat)
        if isinstance(target, Inert):
            target.pairs.extend(pairs)
        elif isinstance(target, dict):
            target.update((_key(key), value) for key, value in pairs)
        else:
            raise WeightsError(f"its pickle sets items of a {type(target).__name__}")

    def new_set(self, items: list[Any]) -> None:
        self.push(Inert(GlobalName("builtins", "set"), items=items))  # not a real set: hashes could be made costly


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    if len(flat) % 2:
        raise WeightsError("its pickle has a dictionary key without a value; the file is damaged")
    return list(zip(flat[::2], flat[1::2], strict=True))


_HANDLERS: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("0"): _Machine.drop,
    ord("1"): _Machine.drop_to_mark,
    ord("2"): lambda m: m.push(m.top()),
    # constants and numbers
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    ord("G"): lambda m: m.push(m.number(">d")),
    0x8A: lambda m: m.push(m.integer(m.number("<B"))),
    0x8B: lambda m: m.push(m.integer(m.number("<I"))),
    # texts and bytes
    ord("X"): lambda m: m.push(m.text(m.number("<I"))),
    0x8C: lambda m: m.push(m.text(m.number("<B"))),
    0x8D: lambda m: m.push(m.text(m.number("<Q"))),
    ord("U"): lambda m: m.push(m.text(m.number("<B"), "latin-1")),
    ord("T"): lambda m: m.push(m.text(m.number("<I"), "latin-1")),
    ord("C"): lambda m: m.push(m.take(m.number("<B"))),
    ord("B"): lambda m: m.push(m.take(m.number("<I"))),
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),
    0x96: lambda m: m.push(m.take(m.number("<Q"))),
    # containers
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.pop_to_mark()),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.pop_to_mark()),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.pop_to_mark())),
    0x85: lambda m: m.push(tuple(m.pop_last(1))),
    0x86: lambda m: m.push(tuple(m.pop_last(2))),
    0x87: lambda m: m.push(tuple(m.pop_last(3))),
    ord("}"): lambda m: m.push({}),
    ord("d"): lambda m: m.push({_key(key): value for key, value in _pairs(m.pop_to_mark())}),
    ord("s"): lambda m: m.set_items(m.pop_last(2)),
    ord("u"): lambda m: m.set_items(m.pop_to_mark()),
    0x8F: lambda m: m.new_set([]),
    0x90: lambda m: m.extend(m.pop_to_mark()),
    0x91: lambda m: m.new_set(m.pop_to_mark()),
    # memo
    ord("h"): lambda m: m.recall(m.number("<B")),
    ord("j"): lambda m: m.recall(m.number("<I")),
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    # names, calls and references, all inert
    ord("c"): _Machine.global_name,
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,
    0x92: _Machine.new_object_with_keywords,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
}
