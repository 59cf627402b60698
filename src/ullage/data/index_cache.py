"""A large data set opened in seconds: what reading it gave, kept in the cache folder of the account, never beside it.

The file holds the columns of a ``DetectionSet`` as they lie in memory and is mapped, not read: loader processes share
it, and what nobody looks at takes no memory. It counts only while everything that was read is as it was:

- the files that describe the set (YAML, JSON, CSV, lists) by their content;
- images, label files and folders, which may be millions, by size, number of the file, and the times of its last change
  and of the last change of its state. The last of these no program can set back, so that a file that was changed and
  given its old time again is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ullage.data.cache import cache_folder
from ullage.data.index import DetectionSet, Problem, Split
from ullage.data.outlines import Outlines
from ullage.data.packed import Numbers, Texts, pack_ids
from ullage.data.places import file_of, is_url, state_of_file, state_of_url
from ullage.data.raw import RawSplit
from ullage.data.spec import SourceSpec, absolute

Array = np.ndarray[Any, Any]

MIN_IMAGES = 5000  # smaller sets are read in a moment
_MAGIC = b"ullage index 2\n"
_ALIGN = 64
_OUTLINES = ("ring_ends_N", "point_ends_R", "points_xy_px_P2")
_COLUMNS = ("sizes_hw_I2", "offsets", "boxes_xyxy_px_N4", "class_ids_N", "crowd_N", "areas_px2_N")


def index_file(spec: SourceSpec, split: Split, *, key: str) -> Path:
    """Return where the index of a split is kept.

    Args:
        spec: The data set.
        split: The split.
        key: What else the result of reading depends on.
    """
    text = json.dumps([str(spec), split, key])
    return cache_folder() / "index" / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.index"


def inputs_of(spec: SourceSpec, split: Split, raw: RawSplit) -> tuple[list[str], list[str]]:
    """Return what a split was read from: the files that count by content, then all other files and folders."""
    described = {image.source[0] for image in raw.images} | {spec.origin}
    described |= {str(path) for paths in (spec.annotations or {}).values() for path in paths}
    labels = {file_of(image.label_file) for image in raw.images}
    images = {file_of(image.path) for image in raw.images}
    # A tar is as large as what it holds: it counts as images do.
    whole = {path for path in described - images if os.path.isfile(path)}
    others = (labels | images) - whole
    folders = {os.path.dirname(path) for path in images | labels if not is_url(path)}
    for entry in spec.entries(split):
        if is_url(entry):
            continue
        root = absolute(spec.root / entry)
        # Folders without an image count, too: one may be put there.
        start = next(path for path in (root, *root.parents) if path.is_dir())
        folders.update(folder for folder, _, _ in os.walk(start))
    return sorted(whole - images), sorted(others | folders)


def fingerprint(whole: Sequence[str], others: Iterable[bytes]) -> str:
    """Return a digest of the state of files and folders; of those that are missing, too."""
    digest = hashlib.blake2b(digest_size=16)
    for path in whole:
        try:
            digest.update(hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest())
        except OSError:
            digest.update(b"missing")
    for path in others:
        try:
            digest.update(state_of_url(os.fsdecode(path)) if b"://" in path else state_of_file(path))
        except OSError:
            digest.update(b"missing")
    return digest.hexdigest()


def save_index(file: Path, dataset: DetectionSet, *, whole: Sequence[str], others: Sequence[str]) -> bool:
    """Keep a data set; False when the cache folder cannot be written, which costs time and nothing else."""
    packed = Texts.of(others)
    paths, ids = Texts.of(dataset.paths), pack_ids(dataset.image_ids)
    arrays: dict[str, Array] = {name: getattr(dataset, name) for name in _COLUMNS if getattr(dataset, name) is not None}
    arrays |= {"paths": paths.data, "path_ends": paths.ends, "inputs": packed.data, "input_ends": packed.ends}
    if dataset.outlines is not None:
        arrays |= {name: getattr(dataset.outlines, name) for name in _OUTLINES}
    if isinstance(ids, Texts):
        arrays |= {"ids": ids.data, "id_ends": ids.ends}
    elif isinstance(ids, Numbers):
        arrays["id_numbers"] = ids.values
    else:
        return False
    described = {
        "names": dataset.names,
        "category_ids": dataset.category_ids,
        "problems": [asdict(problem) for problem in dataset.problems],
        "prefixes": [paths.prefix, ids.prefix if isinstance(ids, Texts) else "", packed.prefix],
        "whole": list(whole),
        "state": fingerprint(whole, _as_bytes(packed)),
        "arrays": [],
    }
    place = 0
    for name, array in arrays.items():
        described["arrays"].append([name, array.dtype.str, array.shape, place])
        place += -(-array.nbytes // _ALIGN) * _ALIGN
    head = _MAGIC + json.dumps(described).encode()
    head = struct.pack("<Q", len(head)) + head
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(head + b" " * (-len(head) % _ALIGN))
            for array in arrays.values():
                stream.write(np.ascontiguousarray(array).data)
                stream.write(b" " * (-array.nbytes % _ALIGN))
        partial.replace(file)
    except OSError:
        with contextlib.suppress(OSError):  # there may be no folder at all
            partial.unlink()
        return False
    return True


def load_index(file: Path) -> DetectionSet | None:
    """Open what ``save_index`` kept; None when there is nothing, or when what it was read from has changed."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            head = stream.read(min(length, os.path.getsize(file)))
        if not head.startswith(_MAGIC):
            return None
        described = json.loads(head[len(_MAGIC) :])
        start = 8 + length + (-(8 + length) % _ALIGN)
        arrays = {
            name: _mapped(file, dtype, tuple(shape), start + place) for name, dtype, shape, place in described["arrays"]
        }
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None  # absent, cut off or damaged: the set is read again
    path_prefix, id_prefix, input_prefix = described["prefixes"]
    inputs = Texts(input_prefix, arrays["inputs"], arrays["input_ends"])
    if fingerprint(described["whole"], _as_bytes(inputs)) != described["state"]:
        return None
    ids = Texts(id_prefix, arrays["ids"], arrays["id_ends"]) if "ids" in arrays else Numbers(arrays["id_numbers"])
    return DetectionSet(
        names=tuple(described["names"]),
        paths=Texts(path_prefix, arrays["paths"], arrays["path_ends"]),
        image_ids=ids,
        category_ids=tuple(described["category_ids"]),
        problems=tuple(Problem(**problem) for problem in described["problems"]),
        sizes_hw_I2=arrays["sizes_hw_I2"],
        offsets=arrays["offsets"],
        boxes_xyxy_px_N4=arrays["boxes_xyxy_px_N4"],
        class_ids_N=arrays["class_ids_N"],
        crowd_N=arrays["crowd_N"],
        areas_px2_N=arrays.get("areas_px2_N"),
        outlines=Outlines(*(arrays[name] for name in _OUTLINES)) if _OUTLINES[0] in arrays else None,
    )


def _mapped(file: Path, dtype: str, shape: tuple[int, ...], place: int) -> Array:
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(file, dtype, "r", place, shape).view(np.ndarray)


def _as_bytes(texts: Texts) -> Iterable[bytes]:
    """Yield each text as the bytes that the file system knows, a block at a time."""
    prefix, data, start = os.fsencode(texts.prefix), texts.data, 0
    for first in range(0, len(texts), 4096):
        ends = texts.ends[first : first + 4096].tolist()
        block, shift = data[start : ends[-1]].tobytes(), start
        for end in ends:
            yield prefix + block[start - shift : end - shift]
            start = end
