"""Open a data set, whatever its format: ``data=`` is a YAML, a COCO JSON, a CSV, a folder, or ``demo``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np

from ullage.data import coco_json, csv_table, shards, voc_xml, yolo_txt
from ullage.data.clean import clean
from ullage.data.folder import read_csv_source, read_folder
from ullage.data.index import DatasetInfo, DetectionSet, Split
from ullage.data.index_cache import MIN_IMAGES, index_file, inputs_of, load_index, save_index
from ullage.data.packed import Texts, pack_ids
from ullage.data.probe import Watch
from ullage.data.raw import RawSplit
from ullage.data.shards import are_shards, list_shards
from ullage.data.spec import SourceSpec, absolute
from ullage.data.yaml_file import read_yaml
from ullage.errors import DataError, nearest

_SINGLE_CLASS = ("object",)
_DEALT = "it names no splits: images are dealt out by the hash of their name, 80 % train and 20 % val"


def open_dataset(
    data: str | Path,
    *,
    split: Split,
    classes: Sequence[int] | None = None,
    single_cls: bool = False,
    fraction: float = 1.0,
    seed: int = 0,
    missing_images: Literal["leave_out", "keep"] = "leave_out",
    watch: Watch | None = None,
) -> DetectionSet:
    """Read and clean one split of a data set.

    Args:
        data: YAML, COCO JSON, CSV, folder, or ``"demo"``.
        split: Which split.
        classes: Keep the boxes of these class ids only; all images and names stay.
        single_cls: Treat all classes as one, named ``object``.
        fraction: Keep this part of the images, chosen by ``seed``, in their order; at least one.
        seed: See ``fraction``.
        missing_images: ``"keep"`` keeps images that are missing but whose size the labels state, to judge predictions
            that are already made.
        watch: Hears how far it is: what is being done, how many are done, how many there are.

    Raises:
        DataError: There is no such data set or split, it is inconsistent, or none of its images can be used.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"fraction={fraction} must be above 0 and at most 1")
    with _readable(data):
        spec = _find(data)
        spec.check_split(split)
        # Which shards there are is looked up each time; a folder tells itself that it has changed.
        files = list_shards(spec, split) if are_shards(spec, split) else []
        file = index_file(spec, split, key="|".join((missing_images, *files)))
        result = load_index(file) or _read_clean(spec, split, data, missing_images, file, watch)
        count = len(result.names)
        if any(not 0 <= number < count for number in classes or ()):
            raise DataError(f"classes={list(classes or ())}: data set '{data}' has classes 0 to {count - 1}")
    if fraction < 1:
        count = max(round(len(result) * fraction), 1)
        chosen = np.sort(np.random.default_rng(seed).permutation(len(result))[:count])
        result = take_images(result, chosen)
    if classes is not None:
        result = take_boxes(result, np.isin(result.class_ids_N, list(classes)))
    if single_cls:
        ids_N = np.zeros_like(result.class_ids_N)
        result = replace(result, names=_SINGLE_CLASS, class_ids_N=ids_N, category_ids=result.category_ids[:1])
    return result


def _read_clean(
    spec: SourceSpec,
    split: Split,
    data: str | Path,
    missing_images: Literal["leave_out", "keep"],
    file: Path,
    watch: Watch | None,
) -> DetectionSet:
    """Read one split; keep what a large one gave."""
    names, category_ids = _classes(spec)
    raw = _read(spec, split, names, category_ids, watch)
    result = clean(
        raw, origin=str(data), names=names, category_ids=category_ids, missing_images=missing_images, watch=watch
    )
    if len(raw.images) >= MIN_IMAGES or are_shards(spec, split):
        whole, others = inputs_of(spec, split, raw)
        save_index(file, result, whole=whole, others=others)
    return result


def dataset_info(data: str | Path) -> DatasetInfo:
    """Return what a data set is, without looking at its images.

    Raises:
        DataError: There is no such data set, or it is inconsistent.
    """
    with _readable(data):
        spec = _find(data)
        names, category_ids = _classes(spec)
    notes = spec.notes if spec.splits else (*spec.notes, _DEALT)
    return DatasetInfo(names, spec.split_names(), spec.format, spec.root, category_ids, notes)


def take_images(data: DetectionSet, chosen: np.ndarray) -> DetectionSet:
    """Return the images at the given indices, in that order, with their boxes."""
    spans = [np.arange(int(data.offsets[index]), int(data.offsets[index + 1])) for index in chosen]
    rows_N = np.concatenate(spans) if spans else np.zeros(0, np.int64)
    return replace(
        data,
        paths=Texts.of(data.paths[index] for index in chosen),
        sizes_hw_I2=data.sizes_hw_I2[chosen],
        offsets=np.concatenate(([0], np.cumsum([len(span) for span in spans]))).astype(np.int64),
        boxes_xyxy_px_N4=data.boxes_xyxy_px_N4[rows_N],
        class_ids_N=data.class_ids_N[rows_N],
        crowd_N=data.crowd_N[rows_N],
        image_ids=pack_ids([data.image_ids[index] for index in chosen]),
        areas_px2_N=None if data.areas_px2_N is None else data.areas_px2_N[rows_N],
        outlines=None if data.outlines is None else data.outlines.select(rows_N),
    )


def take_boxes(data: DetectionSet, keep_N: np.ndarray) -> DetectionSet:
    """Return all images with only the boxes that a mask keeps."""
    kept_before = np.concatenate(([0], np.cumsum(keep_N)))
    return replace(
        data,
        offsets=kept_before[data.offsets].astype(np.int64),
        boxes_xyxy_px_N4=data.boxes_xyxy_px_N4[keep_N],
        class_ids_N=data.class_ids_N[keep_N],
        crowd_N=data.crowd_N[keep_N],
        areas_px2_N=None if data.areas_px2_N is None else data.areas_px2_N[keep_N],
        outlines=None if data.outlines is None else data.outlines.select(keep_N),
    )


def _find(data: str | Path) -> SourceSpec:
    """Turn what the user named into a specification."""
    if not str(data).strip():
        raise DataError("data is empty; give a YAML, a COCO JSON, a CSV, a folder, or 'demo'")
    if str(data) == "demo":
        return replace(read_yaml(Path(str(files("ullage.data") / "demo" / "data.yaml"))), origin="demo")
    path = absolute(data)
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise DataError(_not_found(str(data), path))
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return read_yaml(path)
    if suffix == ".json":
        return SourceSpec("coco", path.parent, str(path), annotations={"": (path,)})
    if suffix == ".csv":
        return read_csv_source(path)
    raise DataError(f"'{data}' is no data set: expected a .yaml, .json or .csv file, a folder, or 'demo'")


@contextmanager
def _readable(data: str | Path) -> Iterator[None]:
    """Turn what the file system refuses, such as a folder without permission, into an error that names it."""
    try:
        yield
    except OSError as error:
        place = f" '{error.filename}'" if error.filename else ""
        raise DataError(f"cannot read data set '{str(data)[:200]}':{place} {error.strerror or error}") from None


def _not_found(data: str, path: Path) -> str:
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, [*siblings, "demo"])
    return (
        f"there is no data set '{data}': '{path}' does not exist; allowed: YAML, COCO JSON, CSV, folder, 'demo'.{hint}"
    )


def _classes(spec: SourceSpec) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if spec.format == "coco":
        return coco_json.read_classes(spec)
    if spec.names is None and any(are_shards(spec, split) for split in spec.split_names()):
        raise DataError(f"data set '{spec.origin}' is in shards and names no classes; add 'names: [...]' to its YAML")
    read_names = {"yolo": yolo_txt.read_names, "voc": voc_xml.read_names, "csv": csv_table.read_names}[spec.format]
    names = read_names(spec)
    return names, tuple(range(len(names)))


def _read(
    spec: SourceSpec, split: Split, names: tuple[str, ...], category_ids: tuple[int, ...], watch: Watch | None
) -> RawSplit:
    if spec.format == "coco":
        return coco_json.read(spec, split, names=names, category_ids=category_ids)
    if spec.format == "voc":
        return voc_xml.read(spec, split, names=names)
    if spec.format == "csv":
        return csv_table.read(spec, split, names=names)
    if are_shards(spec, split):
        return shards.read(spec, split, watch=watch)
    return yolo_txt.read(spec, split, watch=watch)
