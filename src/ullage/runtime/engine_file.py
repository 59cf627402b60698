"""The bytes of a ``.engine`` file: what it says of itself, then TensorRT's engine.

8 bytes of ``MAGIC``; 4 bytes, the length of the metadata, little-endian; the metadata, JSON in UTF-8; the engine.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from ullage.errors import StorageError, WeightsError
from ullage.runtime.file_info import FileInfo

MAGIC = b"ULLAGE\x00\x01"
_LONGEST = 16 * 1024**2


def write_engine_file(path: Path, info: FileInfo, engine: bytes) -> None:
    """Write metadata and engine.

    Raises:
        StorageError: The file cannot be written.
    """
    header = json.dumps(info.to_metadata()).encode()
    try:
        with path.open("wb") as file:
            file.write(MAGIC + struct.pack("<I", len(header)) + header)
            file.write(engine)
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from None


def read_engine_file(path: Path) -> tuple[FileInfo, bytes]:
    """Read metadata and engine.

    Raises:
        WeightsError: The file is not an engine that Ullage wrote, or is damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise WeightsError(
                    f"'{path}' was not exported by Ullage, so nothing says what its numbers mean: export it again from "
                    "its weights with 'ullage export format=engine'"
                )
            size = file.read(4)
            length = struct.unpack("<I", size)[0] if len(size) == 4 else 0
            header = file.read(min(length, _LONGEST))
            engine = file.read()
    except OSError as error:
        raise WeightsError(f"'{path}' cannot be read: {error.strerror or error}") from None
    try:
        entries = json.loads(header)
    except ValueError:
        raise WeightsError(f"'{path}' is damaged: its metadata are not JSON") from None
    if not isinstance(entries, dict) or not engine:
        raise WeightsError(f"'{path}' is damaged: it ends before its engine begins")
    return FileInfo.from_metadata(entries, path=path, found="a TensorRT engine"), engine
