"""What a data set consists of, before anything is read: which files, in which format, cut into which splits."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ullage.data.index import Format, Problem, Split
from ullage.errors import DataError, nearest

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"))
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_ALIASES: dict[str, Split] = {"train": "train", "val": "val", "test": "test", "valid": "val", "validation": "val"}
VAL_SHARE = 0.2


@dataclass(frozen=True)
class SourceSpec:
    """Where the parts of a data set are.

    Attributes:
        format: How the labels are written.
        root: Folder that relative entries start from.
        origin: What the user named; used in messages.
        names: Class names, None when the labels tell them.
        splits: Entries (folders, globs, list files, images, annotation files) of each split. Empty means that the data
            set does not say, and that images are dealt out by the hash of their name.
        pool: Entries that hold all images when ``splits`` is empty.
        images: Folders in which bare image names are looked up, best first (VOC, COCO and CSV).
        annotations: Label files: all of them under "" or those of each split (COCO, CSV); the XML folder (VOC).
        notes: What a user should know about how it was read.
    """

    format: Format
    root: Path
    origin: str
    names: tuple[str, ...] | None = None
    splits: dict[Split, tuple[str, ...]] | None = None
    pool: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    annotations: dict[str, tuple[Path, ...]] | None = None
    notes: tuple[str, ...] = ()

    def split_names(self) -> tuple[Split, ...]:
        """Return the splits, in the customary order; train and val when images are dealt out by hash."""
        return tuple(name for name in SPLITS if name in self.splits) if self.splits else ("train", "val")

    def check_split(self, split: str) -> None:
        """Check that there is a split of that name.

        Raises:
            DataError: There is none; the message says which exist.
        """
        if split not in self.split_names():
            have = ", ".join(self.split_names())
            hint = nearest(split, self.split_names()) or (" Train without one by val=False." if split == "val" else "")
            raise DataError(f"data set '{self.origin}' has no split '{split}'; it has: {have}.{hint}")

    def entries(self, split: Split) -> tuple[str, ...]:
        """Return the entries to read for one split."""
        return self.splits[split] if self.splits else self.pool

    def deal(self, keys: Sequence[str], split: Split) -> set[str]:
        """Choose which images belong to a split, from the names of all images that its entries hold."""
        if self.splits:
            return set(keys)
        ranked = sorted(set(keys), key=lambda key: hashlib.blake2b(key.encode(), digest_size=8).digest())
        if len(ranked) < 2:
            return set(ranked)
        held_out = max(round(len(ranked) * VAL_SHARE), 1)
        return set(ranked[:held_out] if split == "val" else ranked[held_out:])


class Listed(NamedTuple):
    """One image that a split names.

    Attributes:
        path: The file, absolute; it need not exist.
        file: The file or folder that names it.
        line: 1-based line in a list file, else None.
    """

    path: str
    file: str
    line: int | None


def split_of(name: str) -> Split | None:
    """Read the split from a folder or file name: ``valid`` and ``val2017`` are ``val``; None when it says nothing."""
    return SPLIT_ALIASES.get(re.sub(r"[_-]?\d{4}$", "", name.lower()))


def absolute(path: str | Path) -> Path:
    """Return the path without ``..`` and relative parts, symbolic links kept: label folders lie beside the link."""
    return Path(os.path.normpath(Path(os.path.expanduser(path)).absolute()))


def list_images(spec: SourceSpec, split: Split) -> tuple[list[Listed], list[Problem]]:
    """List the images of one split, dealt out, each once.

    Raises:
        DataError: An entry does not exist, or there are no images at all.
    """
    listed: list[Listed] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for entry in spec.entries(split):
        for item in _expand(entry, spec, split):
            if item.path not in seen:
                seen.add(item.path)
                listed.append(item)
            elif item.line is not None:
                message = f"image '{item.path}' is listed more than once"
                problems.append(Problem("duplicate_image", item.file, item.line, message, "image_left_out"))
    if not listed:
        where = "', '".join(str(spec.root / entry) for entry in spec.entries(split))
        raise DataError(
            f"data set '{spec.origin}': no images for split '{split}' in '{where}'; "
            f"image files end in {' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    if spec.splits:
        return listed, problems
    chosen = spec.deal([relative_name(item.path, spec.root) for item in listed], split)
    return [item for item in listed if relative_name(item.path, spec.root) in chosen], problems


def relative_name(path: str, root: Path) -> str:
    """Return the path below ``root`` with forward slashes: the same on every machine."""
    prefix = f"{root}/"
    return path.removeprefix(prefix) if path.startswith(prefix) else Path(path).as_posix()


def images_below(folder: Path) -> list[str]:
    """Return all image files below a folder, sorted by folders and names; hidden files are no images."""
    found: list[str] = []
    for base, _, names in os.walk(folder):
        found += [os.path.join(base, name) for name in names if _is_image(name)]
    return sorted(found, key=lambda path: path.split(os.sep))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def has_images(folder: Path) -> bool:
    """Say whether there is an image file directly in the folder."""
    return folder.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def read_text(path: Path, *, what: str) -> str:
    """Read a text file as UTF-8, with or without a byte order mark.

    Raises:
        DataError: It is missing, unreadable or not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the {what} '{path}': {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"the {what} '{path}' is not UTF-8 text; save it as UTF-8") from None


def find_by_name(name: str, folders: Iterable[Path]) -> Path | None:
    """Find an image by its name, with or without suffix, in the first folder that has it."""
    for folder in folders:
        if Path(name).suffix.lower() in IMAGE_SUFFIXES:
            if (folder / name).is_file():
                return absolute(folder / name)
            continue
        for suffix in (".jpg", ".png", ".jpeg", *sorted(IMAGE_SUFFIXES), ".JPG", ".PNG", ".JPEG"):
            if (folder / (name + suffix)).is_file():
                return absolute(folder / (name + suffix))
    return None


def _expand(entry: str, spec: SourceSpec, split: Split) -> list[Listed]:
    target = absolute(spec.root / os.path.expanduser(entry))
    if any(mark in entry for mark in "*?[") and not target.exists():
        return _glob(entry, spec, split)
    if target.is_dir():
        folder = target / "images" if (target / "images").is_dir() and not has_images(target) else target
        return [Listed(path, str(folder), None) for path in images_below(folder)]
    if target.suffix.lower() == ".txt" and target.is_file():
        return _read_list(target, spec)
    if target.suffix.lower() in IMAGE_SUFFIXES and target.is_file():
        return [Listed(str(target), str(target), None)]
    if target.exists():
        raise DataError(
            f"data set '{spec.origin}': {split} names '{target}', which is neither a folder, an image nor a list (.txt)"
        )
    raise DataError(
        f"data set '{spec.origin}': {split} names '{entry}', but '{target}' does not exist; "
        "paths are relative to the folder of the YAML, or to its 'path'"
    )


def _glob(entry: str, spec: SourceSpec, split: Split) -> list[Listed]:
    pattern = Path(os.path.expanduser(entry))
    base, parts = (Path(pattern.anchor), pattern.parts[1:]) if pattern.is_absolute() else (spec.root, pattern.parts)
    try:
        found = sorted(absolute(path) for path in base.glob(str(Path(*parts))))
    except ValueError as error:
        raise DataError(f"data set '{spec.origin}': {split} names '{entry}', which is no glob: {error}") from None
    listed: list[Listed] = []
    for path in found:
        if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES or path.suffix.lower() == ".txt":
            listed += _expand(str(path), spec, split)
    if not listed:
        raise DataError(f"data set '{spec.origin}': {split} names '{entry}', and no image in '{base}' matches it")
    return listed


def _read_list(file: Path, spec: SourceSpec) -> list[Listed]:
    """Read a list of images: paths relative to the list (``./``) or to the root; for VOC also bare names."""
    listed: list[Listed] = []
    for number, line in enumerate(read_text(file, what="list of images").splitlines(), 1):
        name = line.strip()
        if name and not name.startswith("#"):
            listed.append(Listed(str(_locate(name, file, spec)), str(file), number))
    return listed


def _locate(name: str, file: Path, spec: SourceSpec) -> Path:
    if spec.format == "voc" and spec.images and "/" not in name:
        # VOC's per-class lists carry a second column; the first one is the name.
        stem = name if (spec.images[0] / name).exists() else name.split()[0]
        return find_by_name(stem, spec.images) or absolute(spec.images[0] / stem)
    here, there = absolute(file.parent / name), absolute(spec.root / name)
    first, second = (here, there) if name.startswith(("./", "../")) else (there, here)
    return second if second.exists() and not first.exists() else first


def as_strings(value: Any) -> list[str] | None:
    """Return a text or a list of texts as a list, None when it is neither."""
    items = value if isinstance(value, list) else [value]
    return [str(item) for item in items] if items and all(isinstance(item, str) and item for item in items) else None
