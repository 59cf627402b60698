"""``ullage data check``: count everything, decode every image, list every problem."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ullage.data.alike import Leak, find_leaks, look_bits
from ullage.data.decode import decode_image, read_file
from ullage.data.index import DatasetInfo, DetectionSet, Problem, Split
from ullage.data.probe import Watch, in_threads
from ullage.data.source import dataset_info, open_dataset, take_images
from ullage.errors import DataError
from ullage.geometry.boxes import area_xyxy

# COCO's limits between small, medium and large objects, in square pixels.
_SMALL_PX2, _MEDIUM_PX2 = 32**2, 96**2
_LISTED = 20


@dataclass(frozen=True)
class Spread:
    """The distribution of a quantity."""

    min: float
    median: float
    mean: float
    max: float


@dataclass(frozen=True)
class SplitReport:
    """What one split holds after cleaning.

    Attributes:
        images: Number of images that training uses.
        backgrounds: Those that show nothing.
        boxes: Number of boxes, crowd regions not counted.
        crowds: Number of crowd regions.
        boxes_per_class: Boxes of each class, by name, in order.
        boxes_per_image: Distribution of boxes over images.
        widths_px: Distribution of image widths.
        heights_px: Distribution of image heights.
        sizes: Number of different image sizes.
        small: Boxes below 32 x 32 pixels of area.
        medium: Boxes from 32 x 32 up to 96 x 96.
        large: Larger boxes.
        box_share: Distribution of the part of its image that a box covers.
        problems: What is wrong, and what training does about it.
    """

    images: int
    backgrounds: int
    boxes: int
    crowds: int
    boxes_per_class: dict[str, int]
    boxes_per_image: Spread
    widths_px: Spread
    heights_px: Spread
    sizes: int
    small: int
    medium: int
    large: int
    box_share: Spread
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds, what is wrong with it, and which images of two splits look the same."""

    data: str
    format: str
    root: str
    names: tuple[str, ...]
    splits: dict[Split, SplitReport]
    notes: tuple[str, ...]
    leaks: tuple[Leak, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems, each once: splits may share files."""
        return tuple(dict.fromkeys(problem for report in self.splits.values() for problem in report.problems))

    def to_json(self) -> str:
        """Return the whole report as JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        lines = [f"{self.data}: {self.format}, {len(self.names)} classes, in {self.root}"]
        for split, report in self.splits.items():
            lines += _split_lines(split, report)
        lines += [f"note: {note}" for note in self.notes]
        problems = self.problems
        kinds = Counter(f"{problem.kind.replace('_', ' ')}: {problem.action.replace('_', ' ')}" for problem in problems)
        lines.append(f"{len(problems)} problems" + (":" if problems else ""))
        lines += [f"  {count:6} {kind}" for kind, count in kinds.most_common()]
        lines += [f"  {problem}" for problem in problems[:_LISTED]]
        if len(problems) > _LISTED:
            lines.append(f"  ... and {len(problems) - _LISTED} more; the JSON report lists all")
        return "\n".join(lines)


class _Seen(NamedTuple):
    """What decoding an image tells: what is wrong with it, the digest of its file, the bits of its look."""

    problem: str | None
    digest: bytes
    bits: int


def check(data: str | Path, *, watch: Watch | None = None) -> CheckReport:
    """Read all splits of a data set, decode every image, and report.

    Args:
        data: YAML, COCO JSON, CSV, folder, or ``"demo"``.
        watch: Hears how far it is: what is being done, how many are done, how many there are.

    Raises:
        DataError: There is no such data set, or a split cannot be opened at all.
    """
    info = dataset_info(data)
    sets: dict[Split, DetectionSet] = {split: open_dataset(data, split=split, watch=watch) for split in info.splits}
    paths = sorted({path for one in sets.values() for path in one.paths})
    seen = dict(zip(paths, in_threads(_look, paths, watch=watch, what="images"), strict=True))
    broken = {path: one.problem for path, one in seen.items() if one.problem}
    copies = _copies({path: one.digest for path, one in seen.items() if path not in broken})
    leaks = find_leaks(
        {split: [path for path in one.paths if path not in broken] for split, one in sets.items()},
        bits={path: one.bits for path, one in seen.items()},
        watch=watch,
    )
    reports: dict[Split, SplitReport] = {}
    for split, one in sets.items():
        found = [
            Problem("corrupt_image", path, None, broken[path], "image_left_out") for path in one.paths if path in broken
        ]
        found += [
            Problem("duplicate_image", path, None, f"same content as '{copies[path]}'", "kept")
            for path in one.paths
            if path in copies
        ]
        whole = np.array([index for index, path in enumerate(one.paths) if path not in broken], np.int64)
        reports[split] = _report(take_images(one, whole), (*one.problems, *found))
    return CheckReport(
        data=str(data),
        format=info.format,
        root=str(info.root),
        names=info.names,
        splits=reports,
        notes=(*info.notes, *_shared_images(sets), *_leak_notes(leaks), *_unused(info, sets)),
        leaks=leaks,
    )


def _report(data: DetectionSet, problems: tuple[Problem, ...]) -> SplitReport:
    real_N = ~data.crowd_N
    boxes_N4 = data.boxes_xyxy_px_N4[real_N].astype(np.float64)
    image_N = np.repeat(np.arange(len(data)), np.diff(data.offsets))[real_N]
    per_image_I = np.bincount(image_N, minlength=len(data))
    per_class_K = np.bincount(data.class_ids_N[real_N], minlength=len(data.names))
    areas_N = area_xyxy(boxes_N4)
    sizes_I2 = data.sizes_hw_I2.astype(np.int64)
    small, medium = int((areas_N < _SMALL_PX2).sum()), int((areas_N < _MEDIUM_PX2).sum())
    return SplitReport(
        images=len(data),
        backgrounds=int((per_image_I == 0).sum()),
        boxes=len(boxes_N4),
        crowds=int(data.crowd_N.sum()),
        boxes_per_class=dict(zip(_distinct(data.names), per_class_K.tolist(), strict=True)),
        boxes_per_image=_spread(per_image_I),
        widths_px=_spread(sizes_I2[:, 1]),
        heights_px=_spread(sizes_I2[:, 0]),
        sizes=len(np.unique(sizes_I2, axis=0)),
        small=small,
        medium=medium - small,
        large=len(boxes_N4) - medium,
        box_share=_spread(areas_N / sizes_I2[image_N].prod(1)),
        problems=problems,
    )


def _spread(values: Any) -> Spread:
    if not len(values):
        return Spread(0.0, 0.0, 0.0, 0.0)
    return Spread(float(values.min()), float(np.median(values)), float(values.mean()), float(values.max()))


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the names that occur twice, so that none hides the other."""
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} (class {number})" if name in twice else name for number, name in enumerate(names)]


def _copies(digests: Mapping[str, bytes]) -> dict[str, str]:
    """Return the first file of the same content, for every file that is not the first."""
    first: dict[bytes, str] = {}
    return {path: first[digest] for path, digest in digests.items() if first.setdefault(digest, path) != path}


def _look(path: str) -> _Seen:
    """Read a file once and decode it wholly."""
    try:
        content = read_file(path)
        image = decode_image(content, path)
    except DataError as error:
        return _Seen(str(error), b"", 0)
    return _Seen(None, hashlib.blake2b(content, digest_size=16).digest(), look_bits(image))


def _shared_images(sets: dict[Split, DetectionSet]) -> list[str]:
    notes: list[str] = []
    splits = list(sets)
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            shared = len(set(sets[one].paths) & set(sets[other].paths))
            if shared:
                notes.append(
                    f"{one} and {other} share {shared} images: figures on {other} tell nothing about new images"
                )
    return notes


def _leak_notes(leaks: Sequence[Leak]) -> list[str]:
    notes: list[str] = []
    for pair, count in Counter((leak.split, leak.other_split) for leak in leaks).items():
        first = next(leak for leak in leaks if (leak.split, leak.other_split) == pair)
        notes.append(
            f"{count} images of {pair[1]} look like images of {pair[0]}: figures on {pair[1]} say less than they seem "
            f"to; the first is '{first.other_path}', like '{first.path}'"
        )
    return notes


def _unused(info: DatasetInfo, sets: dict[Split, DetectionSet]) -> list[str]:
    notes: list[str] = []
    for split, one in sets.items():
        used = set(one.class_ids_N.tolist())
        unused = [name for number, name in enumerate(info.names) if number not in used]
        if unused:
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            notes.append(f"{split} shows no {', '.join(unused[:5])}{more}")
    return notes


def _split_lines(split: str, report: SplitReport) -> list[str]:
    per, share = report.boxes_per_image, report.box_share
    crowds = f", {report.crowds} crowd regions" if report.crowds else ""
    widths, heights = report.widths_px, report.heights_px
    used = {name: count for name, count in report.boxes_per_class.items() if count}
    classes = ", ".join(f"{name} {count}" for name, count in sorted(used.items(), key=lambda item: -item[1])[:10])
    more = f", {len(used) - 10} more" if len(used) > 10 else ""
    return [
        f"{split}: {report.images} images ({report.backgrounds} without boxes), {report.boxes} boxes{crowds}",
        f"  size {widths.min:.0f}x{heights.min:.0f} to {widths.max:.0f}x{heights.max:.0f} ({report.sizes} different)",
        f"  boxes an image {per.min:.0f} to {per.max:.0f}, median {per.median:g}, mean {per.mean:.3g}",
        f"  boxes small {report.small}, medium {report.medium}, large {report.large}; "
        f"median share of the image {share.median:.2%}",
        f"  classes {classes or 'none'}{more}",
    ]
