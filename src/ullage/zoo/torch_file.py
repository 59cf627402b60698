"""The files of torch.save, opened without torch.load: the zip of today and the plain stream of before PyTorch 1.6.

Both hold a pickle (read by `restricted_pickle`) and storages, raw little-endian numbers that the pickle refers to.
Nothing is allocated on the word of a file: entries must be stored uncompressed and fit in the file, storages must have
the bytes that they claim, and views must lie inside their storage.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import torch

from ullage.errors import WeightsError
from ullage.zoo.restricted_pickle import MAX_PICKLE_BYTES, StorageRef, TensorRef, read_pickle

_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_ENTRIES = 100_000
_MAX_DIMENSIONS = 16
_MAX_SIDE = 2**31
_READ_FACTOR = 8  # tensors may share a storage, but not so that a small file fills the memory
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError, struct.error)


class _Source(Protocol):
    """A container format: its pickled value, and the bytes of a storage."""

    root: Any

    def read(self, storage: StorageRef, byte_count: int) -> bytes: ...


class TorchFile:
    """An open checkpoint: ``root`` is its pickled value, `tensor` reads what a reference in it stands for.

    Use as a context manager. Raises `WeightsError`, without the path in front, for every way a file can be wrong.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._last: tuple[StorageRef, torch.Tensor] | None = None
        try:
            file_bytes = path.stat().st_size
            self._bytes_left = _READ_FACTOR * file_bytes
            self._source = _open_source(self._file, file_bytes)
        except BaseException:
            self._file.close()
            raise
        self.root = self._source.root

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def tensor(self, reference: TensorRef) -> torch.Tensor:
        """Read one tensor.

        Args:
            reference: A view of a storage, as the pickle states it.

        Returns:
            A contiguous CPU tensor with its own memory, in the dtype of the file.

        Raises:
            WeightsError: The storage is missing, too short or of an unknown type, or the view leaves it.
        """
        storage = reference.storage
        _check_view(reference)
        dtype = _dtype(storage)
        self._spend(math.prod(reference.size) * dtype.itemsize)
        if 0 in reference.size:
            return torch.empty(reference.size, dtype=dtype)
        flat = self._flat(storage, dtype).as_strided(reference.size, reference.stride, reference.offset)
        return flat.clone(memory_format=torch.contiguous_format)

    def _flat(self, storage: StorageRef, dtype: torch.dtype) -> torch.Tensor:
        """The whole storage; the last one is kept, because tensors that share one tend to follow each other."""
        if self._last is None or self._last[0] is not storage:
            byte_count = storage.numel * dtype.itemsize
            self._spend(byte_count)
            raw = bytearray(self._source.read(storage, byte_count))
            is_bool = dtype == torch.bool  # any byte but 0 and 1 is no valid bool in memory
            flat = torch.frombuffer(raw, dtype=torch.uint8).ne(0) if is_bool else torch.frombuffer(raw, dtype=dtype)
            self._last = (storage, flat)
        return self._last[1]

    def _spend(self, byte_count: int) -> None:
        self._bytes_left -= byte_count
        if self._bytes_left < 0:
            raise WeightsError(f"its tensors unfold to more than {_READ_FACTOR} times the size of the file")


def _open_source(file: BinaryIO, file_bytes: int) -> _Source:
    start = file.read(4)
    if start == b"PK\x03\x04":
        return _ZipSource(file, file_bytes)
    if start[:1] == b"\x80":
        return _LegacySource(file, file_bytes)
    if not start:
        raise WeightsError("the file is empty; download or save it again")
    raise WeightsError(f"it is not a file of torch.save (it starts with {start!r}); was it saved or downloaded whole?")


class _ZipSource:
    """``NAME/data.pkl`` and ``NAME/data/KEY``, stored uncompressed, each with a CRC."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
        except _ZIP_ERRORS as error:
            raise WeightsError(f"its zip directory is damaged or truncated ({str(error)[:200]!a})") from None
        if any(name.endswith("/constants.pkl") for name in self._zip.namelist()):
            raise WeightsError("it is a TorchScript program, not a checkpoint; rename it to .torchscript to run it")
        self._entries = _checked_entries(self._zip.infolist(), file_bytes)
        pickles = [name for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise WeightsError("it is a zip file, but not one of torch.save: it has no single data.pkl")
        self._prefix = pickles[0].removesuffix("data.pkl")
        if self._prefix + "byteorder" in self._entries and self._read("byteorder") != b"little":
            raise WeightsError("its numbers are not in little-endian order; save it again on a little-endian machine")
        size = self._entries[pickles[0]].file_size
        if size > MAX_PICKLE_BYTES:
            raise WeightsError(f"its pickle has {size:,} bytes; at most {MAX_PICKLE_BYTES:,} are read")
        self.root = read_pickle(self._read("data.pkl")).value

    def read(self, storage: StorageRef, byte_count: int) -> bytes:
        entry = self._entries.get(f"{self._prefix}data/{storage.key}")
        if entry is None:
            raise WeightsError(f"its storage {_short(storage.key)} is missing")
        if entry.file_size != byte_count:
            raise WeightsError(
                f"its storage {_short(storage.key)} has {entry.file_size:,} bytes, its pickle says {byte_count:,}"
            )
        return self._read(f"data/{storage.key}")

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._prefix + name)  # checks the CRC
        except _ZIP_ERRORS as error:
            raise WeightsError(f"its entry {_short(name)} is damaged ({str(error)[:200]!a})") from None


def _checked_entries(entries: list[zipfile.ZipInfo], file_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Refuse what torch.save never writes: compressed entries (zip bombs), twins, more bytes than there are."""
    if len(entries) > _MAX_ENTRIES:
        raise WeightsError(f"it has {len(entries):,} entries; at most {_MAX_ENTRIES:,} are read")
    by_name: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise WeightsError(f"its entry {_short(entry.filename)} is compressed; torch.save compresses nothing")
        if entry.filename in by_name:
            raise WeightsError(f"it has two entries named {_short(entry.filename)}")
        by_name[entry.filename] = entry
    declared = sum(entry.file_size for entry in entries)
    if declared > file_bytes:
        raise WeightsError(f"its entries claim {declared:,} bytes, the file has {file_bytes:,}")
    return by_name


class _LegacySource:
    """Five pickles (magic, version, machine, value, storage keys), then each storage: a count and its numbers."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        file.seek(0)
        head = file.read(MAX_PICKLE_BYTES)
        magic = read_pickle(head)
        if magic.value != _LEGACY_MAGIC:
            raise WeightsError("it is a pickle, but not a file of torch.save")
        version = read_pickle(head, start=magic.end)
        machine = read_pickle(head, start=version.end)
        little = isinstance(machine.value, dict) and machine.value.get("little_endian") is True
        if version.value != _LEGACY_PROTOCOL or not little:
            raise WeightsError("it is an old torch.save file of an unknown version or byte order")
        value = read_pickle(head, start=machine.end)
        keys = read_pickle(head, start=value.end)
        self.root = value.value
        self._file = file
        self._places: dict[str, int] = {}
        position = keys.end
        for key in keys.value if isinstance(keys.value, list) else [None]:
            storage = value.storages.get(key) if isinstance(key, str) else None
            if storage is None:
                raise WeightsError("its list of storages does not fit its pickle; the file is damaged")
            file.seek(position)
            counted = file.read(8)
            byte_count = storage.numel * _dtype(storage).itemsize
            if len(counted) != 8 or int.from_bytes(counted, "little") != storage.numel:
                raise WeightsError(f"its storage {_short(storage.key)} has another length than its pickle says")
            if position + 8 + byte_count > file_bytes:
                raise WeightsError("it ends before its last storage; the file is truncated")
            self._places[storage.key] = position + 8
            position += 8 + byte_count

    def read(self, storage: StorageRef, byte_count: int) -> bytes:
        place = self._places.get(storage.key)
        if place is None:
            raise WeightsError(f"its storage {_short(storage.key)} is missing")
        self._file.seek(place)
        raw = self._file.read(byte_count)
        if len(raw) != byte_count:
            raise WeightsError("it ends before its last storage; the file is truncated")
        return raw


def _dtype(storage: StorageRef) -> torch.dtype:
    dtype = _DTYPES.get(storage.kind)
    if dtype is None:
        raise WeightsError(f"it holds numbers of type {_short(storage.kind)}; readable are {', '.join(_DTYPES)}")
    return dtype


def _check_view(reference: TensorRef) -> None:
    """A view must lie inside its storage and show each number at most once."""
    size, stride, numel = reference.size, reference.stride, reference.storage.numel
    if len(size) > _MAX_DIMENSIONS or any(side > _MAX_SIDE for side in (*size, *stride)):
        raise WeightsError("it describes a tensor with too many or too long sides")
    if 0 in size:
        return
    last = reference.offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if last >= numel or math.prod(size) > numel:
        raise WeightsError(
            f"it describes a tensor of size {size}, stride {stride} from number {reference.offset} on, "
            f"but its storage {_short(reference.storage.key)} has {numel:,} numbers"
        )


def _short(text: str) -> str:
    """A text out of a file, safe to print."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
