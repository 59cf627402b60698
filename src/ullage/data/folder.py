"""A folder without a YAML: which format its files have, and how they are cut into splits."""

from __future__ import annotations

from pathlib import Path

from ullage.data.csv_table import COLUMNS
from ullage.data.index import Split
from ullage.data.spec import SPLITS, SourceSpec, has_images, images_below, split_of
from ullage.data.yaml_file import csv_spec, read_yaml
from ullage.errors import DataError

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


def read_folder(folder: Path) -> SourceSpec:
    """Find out what a folder holds: a YAML, VOC, COCO JSON, a CSV, or images with YOLO labels.

    Raises:
        DataError: It holds no data set, or several.
    """
    for find in (_yaml, _voc, _coco, _csv, _yolo):
        spec = find(folder)
        if spec is not None:
            return spec
    found = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
    raise DataError(
        f"'{folder}' holds no data set: found {', '.join(found) or 'nothing'}; it needs a data.yaml, images/ and "
        "labels/, a COCO JSON, a CSV, or JPEGImages/ and Annotations/"
    )


def _yaml(folder: Path) -> SourceSpec | None:
    for name in _YAML_NAMES:
        if (folder / name).is_file():
            return read_yaml(folder / name)
    others = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        raise DataError(f"'{folder}' holds several YAML files ({names}); name the one to use: data={others[0]}")
    return read_yaml(others[0]) if others else None


def _voc(folder: Path) -> SourceSpec | None:
    images, annotations, lists = folder / "JPEGImages", folder / "Annotations", folder / "ImageSets" / "Main"
    if images.is_dir() and annotations.is_dir():
        splits: dict[Split, tuple[str, ...]] = {
            split: (str(lists / f"{split}.txt"),) for split in SPLITS if (lists / f"{split}.txt").is_file()
        }
        return SourceSpec(
            "voc", folder, str(folder), splits=splits or None, pool=(str(images),), images=(images,),
            annotations={"": (annotations,)},
        )  # fmt: skip
    parts: dict[Split, Path] = {split: part for split, part in _split_folders(folder).items() if _has(part, "*.xml")}
    if parts:
        entries: dict[Split, tuple[str, ...]] = {split: (str(part),) for split, part in parts.items()}
        return SourceSpec("voc", folder, str(folder), splits=entries)
    if _has(folder, "*.xml") and has_images(folder):
        return SourceSpec("voc", folder, str(folder), pool=(str(folder),))
    return None


def _coco(folder: Path) -> SourceSpec | None:
    files: dict[str, tuple[Path, ...]] = {}
    for split, part in _split_folders(folder).items():
        if _has(part, "*.json"):
            files[split] = tuple(sorted(part.glob("*.json"))[:1])
    if not files:
        found = sorted((folder / "annotations").glob("*.json")) or sorted(folder.glob("*.json"))
        named = {path: split_of(path.stem.removeprefix("instances_")) for path in found}
        files = {split: (path,) for path, split in named.items() if split is not None}
        if not files and len(found) == 1:
            return SourceSpec("coco", folder, str(folder), annotations={"": (found[0],)})
        if not files and found:
            names = ", ".join(path.name for path in found)
            raise DataError(f"'{folder}' holds several JSON files ({names}); name the one to use: data={found[0]}")
    if not files:
        return None
    splits: dict[Split, tuple[str, ...]] = {split: () for split in SPLITS if split in files}
    return SourceSpec("coco", folder, str(folder), splits=splits, annotations=files)


def _csv(folder: Path) -> SourceSpec | None:
    files = [path for path in sorted(folder.glob("*.csv")) if _is_table(path)]
    if len(files) > 1:
        named = {split_of(path.stem): path for path in files}
        if None in named or len(named) != len(files):
            names = ", ".join(path.name for path in files)
            raise DataError(f"'{folder}' holds several CSV files ({names}); name the one to use: data={files[0]}")
        tables: dict[str, tuple[Path, ...]] = {split: (path,) for split, path in named.items() if split is not None}
        splits: dict[Split, tuple[str, ...]] = {split: () for split in SPLITS if split in tables}
        return SourceSpec("csv", folder, str(folder), splits=splits, annotations=tables)
    return read_csv_source(files[0]) if files else None


def read_csv_source(file: Path) -> SourceSpec:
    """Specify a single CSV file."""
    return csv_spec(SourceSpec("csv", file.parent, str(file)), (file,))


def _yolo(folder: Path) -> SourceSpec | None:
    """Find ``images/train``, ``train/images`` or ``train``; without splits ``images`` or the folder itself."""
    by_split = _split_folders(folder / "images") or {
        split: part / "images" if (part / "images").is_dir() else part for split, part in _split_folders(folder).items()
    }
    if any(images_below(part) for part in by_split.values()):
        return SourceSpec("yolo", folder, str(folder), splits={split: (str(part),) for split, part in by_split.items()})
    pool = folder / "images" if (folder / "images").is_dir() else folder
    if images_below(pool):
        return SourceSpec("yolo", folder, str(folder), pool=(str(pool),))
    return None


def _split_folders(folder: Path) -> dict[Split, Path]:
    """Return the subfolders that are named after splits, in the customary order."""
    found: dict[Split, Path] = {}
    if folder.is_dir():
        for part in sorted(folder.iterdir()):
            split = split_of(part.name)
            if split is not None and part.is_dir():
                found.setdefault(split, part)
    return {split: found[split] for split in SPLITS if split in found}


def _has(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _is_table(file: Path) -> bool:
    """Say whether the header of a CSV is one of boxes; other tables may lie beside the images."""
    with file.open(encoding="utf-8-sig", errors="replace") as stream:
        header = stream.readline().lower()
    return all(column in header for column in COLUMNS[1:5])
