"""Images in tar files as WebDataset lays them out, or on a remote file system, with YOLO labels.

In a tar, the members ``000001.jpg`` and ``000001.txt`` make a sample, in any order; without a text it shows nothing. A
tar is read once, from front to back, to know where everything is; after that each image is read by itself, so order
and resume are the same as for files. On a remote file system without tars, labels lie as they do on a disk.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from ullage.data.headers import HEAD_BYTES
from ullage.data.index import Problem, Split
from ullage.data.places import file_system, is_url, member_place
from ullage.data.probe import TAIL_BYTES, Watch, in_threads, judge_ends
from ullage.data.raw import RawImage, RawSplit
from ullage.data.spec import IMAGE_SUFFIXES, SourceSpec, absolute
from ullage.data.yolo_txt import LabelFile, label_path, parse_labels
from ullage.errors import DataError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_BLOCK_BYTES = 4_000_000  # of a remote tar at a time, while it is indexed
_LABELS_AT_ONCE = 1000


def are_shards(spec: SourceSpec, split: Split) -> bool:
    """Tell whether the images of a split are in tar files or behind URLs."""
    return spec.format == "yolo" and any(_is_tar(entry) or is_url(entry) for entry in spec.entries(split))


def list_shards(spec: SourceSpec, split: Split) -> list[str]:
    """Return the tar files and remote images of a split: ``{0000..0009}`` is counted out, globs are looked up.

    Raises:
        DataError: An entry is neither, or matches nothing.
    """
    found: list[str] = []
    for entry in spec.entries(split):
        if not _is_tar(entry) and not is_url(entry):
            raise DataError(
                f"data set '{spec.origin}': {split} mixes shards and '{entry}'; name tar files or URLs only, or none"
            )
        for text in _counted_out(entry):
            matches = _look_up(text, spec)
            if not matches:
                raise DataError(f"data set '{spec.origin}': {split} names '{entry}', and '{text}' is not there")
            found += matches
    return list(dict.fromkeys(found))


def read(spec: SourceSpec, split: Split, *, watch: Watch | None = None) -> RawSplit:
    """Read the labels of one split, and where its images are.

    Raises:
        DataError: A tar cannot be read, there are no images, or none of them has labels.
    """
    listed = list_shards(spec, split)
    tars = [place for place in listed if _is_tar(place)]
    images = [place for place in listed if not _is_tar(place)]
    raw = RawSplit("unit")
    labelled = 0
    parts = [*in_threads(_index, tars, watch=watch, what=f"shards of {split}"), _read_remote(images, split, watch)]
    for part in parts:
        raw.problems += part.problems
        for image, labels, size_hw in part.samples:
            raw.problems += labels.problems
            if labels.state == "unreadable":
                continue
            if labels.state == "missing":
                message = f"no labels '{os.path.splitext(image.path)[0]}.txt': counts as showing nothing"
                raw.problems.append(Problem("missing_label", image.path, None, message, "kept"))
            labelled += labels.state == "read"
            raw.boxes.extend(len(raw.images), labels.class_ids, labels.corners, labels.lines, labels.rings)
            raw.images.append(image)
            if size_hw is not None:
                raw.looked_at[image.path] = size_hw
    if not labelled:
        raise DataError(
            f"data set '{spec.origin}': none of the {len(raw.images)} images of split '{split}' has labels; a tar "
            "holds NAME.jpg and NAME.txt, a remote folder named images has one named labels beside it"
        )
    return raw


class _Part:
    """What a tar or a remote folder holds."""

    def __init__(self) -> None:
        self.samples: list[tuple[RawImage, LabelFile, tuple[int, int] | str | None]] = []
        self.problems: list[Problem] = []


def _index(tar: str) -> _Part:
    """Read one tar from front to back: the texts, and the first and last bytes of images."""
    images: dict[str, tuple[str, tuple[int, int] | str]] = {}
    texts: dict[str, tuple[str, bytes]] = {}
    part = _Part()
    try:
        with _opened(tar) as stream, tarfile.open(fileobj=stream, mode="r:") as members:
            for member in members:
                key, suffix = os.path.splitext(member.name)
                if not member.isreg() or os.path.basename(member.name).startswith("."):
                    continue
                place = member_place(tar, offset=member.offset_data, size=member.size, name=member.name)
                content = members.extractfile(member)
                assert content is not None  # regular members have content
                if suffix.lower() in IMAGE_SUFFIXES:
                    if key in images:
                        message = f"'{key}' has two images; the first is '{os.path.basename(images[key][0])}'"
                        part.problems.append(Problem("duplicate_image", place, None, message, "image_left_out"))
                        continue
                    head = content.read(HEAD_BYTES)
                    content.seek(max(member.size - TAIL_BYTES, 0))
                    images[key] = place, judge_ends(head, content.read(), place)
                elif suffix.lower() == ".txt":
                    texts[key] = place, content.read()
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"'{tar}' is no whole, uncompressed tar file: {error}") from None
    except OSError as error:
        raise DataError(f"cannot read the tar file '{tar}': {error.strerror or error}") from None
    for key, (place, size_hw) in images.items():
        label, content = texts.pop(key, (place, None))
        labels = LabelFile("missing") if content is None else parse_labels(content, label)
        image = RawImage(place, os.path.basename(key), label, (tar, None), None)
        part.samples.append((image, labels, size_hw))
    for key, (place, _) in texts.items():
        part.problems.append(Problem("orphan_label", place, None, f"no image '{key}.*' in '{tar}'", "label_left_out"))
    return part


def _read_remote(images: Sequence[str], split: Split, watch: Watch | None) -> _Part:
    """Read the labels of images that are files on a remote file system."""
    part = _Part()
    labels = [label_path(image) for image in images]
    for start in range(0, len(labels), _LABELS_AT_ONCE):
        block = labels[start : start + _LABELS_AT_ONCE]
        system, _ = file_system(block[0])
        inner = [file_system(label)[1] for label in block]
        contents = system.cat(inner, on_error="return")
        for image, label, name in zip(images[start : start + len(block)], block, inner, strict=True):
            content = contents.get(name)
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise DataError(f"cannot read '{label}': {content}") from None
            found = parse_labels(content, label) if isinstance(content, bytes) else LabelFile("missing")
            stem = os.path.splitext(os.path.basename(image))[0]
            part.samples.append((RawImage(image, stem, label, (image, None), None), found, None))
        if watch is not None:
            watch(f"labels of {split}", start + len(block), len(labels))
    return part


@contextmanager
def _opened(tar: str) -> Iterator[IO[bytes]]:
    if not is_url(tar):
        with open(tar, "rb") as stream:
            yield stream
        return
    system, inner = file_system(tar)
    with system.open(inner, "rb", block_size=_BLOCK_BYTES, cache_type="readahead") as stream:
        yield stream


def _is_tar(entry: str) -> bool:
    return entry.lower().endswith(".tar")


def _counted_out(entry: str) -> list[str]:
    """Return ``a-{00..02}.tar`` as three names; leading zeros are kept."""
    found = _BRACES.search(entry)
    if found is None:
        return [entry]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    names = [f"{entry[: found.start()]}{number:0{len(first)}d}{entry[found.end() :]}" for number in numbers]
    return [text for name in names for text in _counted_out(name)]


def _look_up(entry: str, spec: SourceSpec) -> list[str]:
    if not is_url(entry):
        target = absolute(spec.root / os.path.expanduser(entry))
        if target.is_file():
            return [str(target)]
        return sorted(str(absolute(path)) for path in spec.root.glob(entry)) if not os.path.isabs(entry) else []
    system, inner = file_system(entry)
    if any(mark in inner for mark in "*?["):
        return [system.unstrip_protocol(path) for path in sorted(system.glob(inner))]
    if system.isdir(inner):
        names = [path for path in sorted(system.find(inner)) if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES]
        return [system.unstrip_protocol(path) for path in names]
    return [entry] if system.exists(inner) else []
