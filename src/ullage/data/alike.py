"""Find images that look the same, though their files differ: copies that were saved again, resized or lightened.

Each image is shrunk to 9 x 8 grey pixels; whether a pixel is brighter than its right neighbour is one of 64 bits
("difference hash"). Images whose bits differ in few places are compared once more, as 32 x 32 colour pictures, so that
two empty skies, whose bits mean nothing, are not taken for one.

Shape letters: I images, P pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from ullage.data.decode import read_image
from ullage.data.index import Split
from ullage.data.probe import Watch, in_threads
from ullage.errors import DataError

Array = np.ndarray[Any, Any]

MAX_BITS = 6
MIN_LIKENESS = 0.97  # correlation of the small pictures
MAX_PER_IMAGE = 16  # comparisons of one image, so that a thousand frames of one scene stay affordable
_THUMB = 32
_DECODE_HW = (64, 64)
_BANDS = MAX_BITS + 1  # 64 bits in so many parts: with at most 6 differences, one part at least is the same


@dataclass(frozen=True)
class Leak:
    """Two images of different splits that look the same."""

    split: Split
    path: str
    other_split: Split
    other_path: str


def find_leaks(
    paths: Mapping[Split, Sequence[str]], *, bits: Mapping[str, int] | None = None, watch: Watch | None = None
) -> tuple[Leak, ...]:
    """Find images of a later split that look like one of an earlier split, each with the likest one.

    Args:
        paths: The images of each split; an image that two splits share is no leak but an error of its own.
        bits: ``look_bits`` of each image where they are known; None reads the images.
        watch: Hears how far it is.
    """
    times = Counter(path for each in paths.values() for path in each)
    looks: dict[Split, list[str]] = {
        split: [path for path in each if times[path] == 1] for split, each in paths.items()
    }
    every = [path for each in looks.values() for path in each]
    if len([each for each in looks.values() if each]) < 2:
        return ()
    if bits is None:
        bits = dict(zip(every, in_threads(_read_bits, every, watch=watch, what="images"), strict=True))
    bits_I = np.array([bits[path] for path in every], np.uint64)
    splits: list[Split] = [split for split, each in looks.items() for _ in each]
    pairs = _candidates(bits_I, splits)
    # Only candidates are read again: small pictures of a million images would not fit the memory.
    alike = sorted({index for pair in pairs for index in pair})
    thumbs = in_threads(_thumb, [every[index] for index in alike], watch=watch, what="images that look alike")
    thumb_of = dict(zip(alike, thumbs, strict=True))
    best: dict[int, tuple[float, int]] = {}
    for one, other in pairs:
        likeness = _likeness(thumb_of[one], thumb_of[other])
        if likeness >= MIN_LIKENESS and likeness > best.get(other, (0.0, 0))[0]:
            best[other] = likeness, one
    return tuple(Leak(splits[one], every[one], splits[other], every[other]) for other, (_, one) in sorted(best.items()))


def look_bits(image_HW3: Array) -> int:
    """Return the 64 bits of an image."""
    grey = cv2.resize(cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    return int(np.packbits(grey[:, 1:] > grey[:, :-1]).view(">u8")[0])


def _read_bits(path: str) -> int:
    try:
        return look_bits(read_image(path, at_least_hw=_DECODE_HW))
    except DataError:
        return 0  # it is reported as damaged elsewhere


def _thumb(path: str) -> Array:
    """Return the small picture of an image, uint8."""
    try:
        image = read_image(path, at_least_hw=_DECODE_HW)
    except DataError:
        return np.zeros((_THUMB, _THUMB, 3), np.uint8)
    return cv2.resize(image, (_THUMB, _THUMB), interpolation=cv2.INTER_AREA)


def _candidates(bits_I: Array, splits: Sequence[Split]) -> list[tuple[int, int]]:
    """Return pairs of images of different splits whose bits differ in few places, the earlier split first."""
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    pairs: set[tuple[int, int]] = set()
    for low, high in pairwise(edges):
        mask = np.uint64(((1 << int(high - low)) - 1) << int(low))
        order = np.argsort(bits_I & mask, kind="stable")
        groups = np.flatnonzero(np.diff((bits_I & mask)[order])) + 1
        for group in np.split(order, groups):
            for place, one in enumerate(group.tolist()):
                near = group[place + 1 : place + 1 + 64 * MAX_PER_IMAGE]
                differ_P = np.unpackbits((bits_I[near] ^ bits_I[one])[:, None].view(np.uint8), axis=1).sum(1)
                few = near[differ_P <= MAX_BITS]
                others = [other for other in few.tolist() if splits[other] != splits[one]][:MAX_PER_IMAGE]
                pairs.update((min(one, other), max(one, other)) for other in others)
    return sorted(pairs)


def _likeness(one_HW3: Array, other_HW3: Array) -> float:
    """Return the correlation of two small pictures; 0 where one of them shows nothing."""
    one, other = (each.astype(np.float32) - each.mean() for each in (one_HW3, other_HW3))
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm > one.size else 0.0
