"""Makers of hostile and of ordinary checkpoint files, shared by the tests of this folder."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import torch
from torch import nn


class Call:
    """Pickles as a call of any importable function; unpickling it with Python's own unpickler makes the call."""

    def __init__(self, function, *args) -> None:
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args

    def __call__(self) -> None:
        """Only here because pickle wants what it records as called to be callable."""


class Named:
    """Stands for an object with a state that is not known where the file is read."""

    def __init__(self, **state) -> None:
        self.__dict__.update(state)


class Block(nn.Module):
    """A small module with every kind of tensor: shared and own parameters, lasting and passing buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.arange(4.0))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("lasting", torch.arange(3))
        self.register_parameter("nothing", None)


class Network(nn.Module):
    """A pickled module as official checkpoints hold one: numbered blocks, names, plain settings."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.model = nn.Sequential(Block(), nn.Identity(), Block())
        self.names = {index: f"class {index}" for index in range(classes)}
        self.yaml = {"scale": "n", "nc": classes}


def zip_of(pickled: bytes, storages: dict[str, bytes] | None = None, *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of the form torch.save writes, around any pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", b"little")
        archive.writestr("x/version", b"3\n")
        for key, data in (storages or {}).items():
            archive.writestr(f"x/data/{key}", data)
    return buffer.getvalue()


def saved(value: object, *, legacy: bool = False, protocol: int = 2) -> bytes:
    """The bytes of torch.save."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return buffer.getvalue()


def pickled_part(path_or_bytes: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the storages of a zip of torch.save, to be changed and put together again."""
    with zipfile.ZipFile(io.BytesIO(path_or_bytes)) as archive:
        names = archive.namelist()
        root = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")
        storages = {n.removeprefix(root + "data/"): archive.read(n) for n in names if n.startswith(root + "data/")}
        return archive.read(root + "data.pkl"), storages


def text(value: str) -> bytes:
    """Opcode of a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    """Opcode of an integer of any size."""
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    """Opcodes of a tuple of integers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(*, kind: str = "FloatStorage", key: str = "0", numel: int = 4) -> bytes:
    """Opcodes of a reference to a storage."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integer(numel) + b"tQ"


def tensor(
    *,
    offset: int = 0,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    kind: str = "FloatStorage",
    key: str = "0",
    numel: int = 4,
) -> bytes:
    """Opcodes of a tensor, right or wrong in any part."""
    view = storage(kind=kind, key=key, numel=numel) + integer(offset) + numbers(size) + numbers(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"\x89ccollections\nOrderedDict\n)RtR"


def state_of(*tensors: bytes) -> bytes:
    """A whole pickle: a dict from 'a', 'b', … to those tensors."""
    pairs = b"".join(text(chr(ord("a") + index)) + opcodes for index, opcodes in enumerate(tensors))
    return b"\x80\x02}(" + pairs + b"u."


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def python_pickle(value: object, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol=protocol)
