"""``export``: write a network for another runtime, and prove that the file computes the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ullage.api.evaluate import check_classes, evaluate
from ullage.api.models import LoadedModel, load_model, named_model
from ullage.config import EvalSettings, ExportConfig, ExportSettings
from ullage.data.decode import read_image
from ullage.data.index import DetectionSet
from ullage.data.loader import EvalLoader
from ullage.data.source import open_dataset
from ullage.errors import ConfigError, ExportParityError, StorageError
from ullage.export.openvino_file import CALIBRATION_IMAGES
from ullage.export.proof import Comparison, compare, failures, letterboxed
from ullage.export.report import ExportReport, write_report
from ullage.export.writers import FORMATS, Format, Order
from ullage.runtime.file_info import FileInfo
from ullage.runtime.file_predictor import FilePredictor
from ullage.runtime.open_file import open_exported
from ullage.runtime.outputs import Suppression
from ullage.runtime.predictor import DEFAULT_SIDE, Predictor, TorchPredictor
from ullage.train.precision import choose_device

_PROOF_IMAGES = 4
_JUDGED_BATCH = 8


@dataclass(frozen=True)
class ExportResult:
    """What an export left behind.

    Attributes:
        path: The file; for OpenVINO its folder.
        report: How far it is from the network.
        page: The report as a file, in Markdown; a JSON file lies beside it.
    """

    path: Path
    report: ExportReport
    page: Path


def export(config: ExportConfig, *, model: LoadedModel | None = None) -> ExportResult:
    """Write a network for another runtime.

    The file appears under its name only after it was proven; the report beside it is written in any case.

    Args:
        config: Which format, how, and the data that prove it.
        model: An already loaded model, which is not changed; None loads ``config.model.model``.

    Raises:
        ConfigError: Settings contradict each other.
        BackendUnavailable: A library that writes or runs the format is not installed.
        DataError: ``data`` cannot be used, or has other classes than the model.
        ExportParityError: The file does not compute what the network computes; it is not kept.
        StorageError: The file cannot be written.
    """
    settings = config.export
    form = FORMATS[settings.format]
    device = choose_device(config.device.device)
    model = load_model(named_model(config.model, verb="export")) if model is None else model
    judged = open_dataset(settings.data or "demo", split=settings.split, fraction=settings.fraction)
    if settings.data is not None:
        check_classes(len(model.names), judged)
    info = _info(settings, model)
    target = _target(settings, model, form)
    network = TorchPredictor(model.network, names=model.names, device=device)
    with _beside(target) as folder:
        written = Path(folder) / target.name
        form.write(Order(model.network, info, written, settings, partial(_calibration, settings, info)))
        file = open_exported(written, device="cpu" if device.type == "cpu" else None)
        report = _prove(settings, network, file, judged, name=target.name, written=written, form=form)
        if report.failures:
            page = write_report(report, target)
            raise ExportParityError(
                f"'{target.name}' does not compute what {model.model_name} computes: {'; '.join(report.failures)}; "
                f"it was not kept, the report is in '{page}'"
            )
        _put(written, target)
    return ExportResult(target, report, write_report(report, target))


def _info(settings: ExportSettings, model: LoadedModel) -> FileInfo:
    imgsz = settings.imgsz or _trained_size(model)
    return FileInfo(
        model_name=model.model_name,
        names=model.names,
        size_hw=(imgsz, imgsz) if isinstance(imgsz, int) else imgsz,
        batch=settings.batch,
        dynamic=settings.dynamic,
        precision="int8" if settings.int8 else "fp16" if settings.half else "fp32",
        stride=max(model.network.strides),
        suppression=Suppression(settings.conf, settings.iou, settings.max_det) if settings.nms else None,
    )


def _trained_size(model: LoadedModel) -> int:
    """Return the (largest) size that the weights were trained at, as far as they say."""
    meta = (model.metadata or {}).get("meta")
    configuration = meta.get("config") if isinstance(meta, dict) else None
    imgsz = configuration.get("imgsz") if isinstance(configuration, dict) else None
    sizes = [size for size in (imgsz if isinstance(imgsz, list | tuple) else [imgsz]) if isinstance(size, int)]
    return max(sizes, default=DEFAULT_SIDE)


def _target(settings: ExportSettings, model: LoadedModel, form: Format) -> Path:
    stem = model.source.with_suffix("") if model.source is not None else Path.cwd() / model.model_name
    if settings.out is None:
        return stem.with_name(f"{stem.name}{form.ending}")
    out = Path(settings.out).expanduser()
    if not out.name.endswith(form.ending):
        raise ConfigError(f"out='{settings.out}': a file of format={settings.format} must end in '{form.ending}'")
    return out


def _beside(target: Path) -> TemporaryDirectory[str]:
    """Make a folder on the target's own disk, for a file that is not proven yet."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix=".export-", dir=target.parent)
    except OSError as error:
        raise StorageError(f"cannot write into '{target.parent}': {error.strerror or error}; choose out=") from None


def _put(written: Path, target: Path) -> None:
    """Move a proven file, or a folder of files, to its name."""
    try:
        if written.is_dir() and target.is_dir():
            others = [part.name for part in target.iterdir() if part.suffix not in (".xml", ".bin")]
            if others:
                raise StorageError(
                    f"'{target}' holds more than an export ('{others[0]}'): choose another name with out="
                )
            shutil.rmtree(target)
        written.replace(target)
    except OSError as error:
        raise StorageError(f"cannot write '{target}': {error.strerror or error}") from None


def _calibration(settings: ExportSettings, info: FileInfo) -> Iterator[np.ndarray]:
    """Yield batches of training images as the file will see them, float32 in [0, 1]."""
    assert settings.data is not None  # int8 without data is refused with the settings
    dataset = open_dataset(settings.data, split="train")
    chosen = np.linspace(0, len(dataset) - 1, min(len(dataset), CALIBRATION_IMAGES)).round().astype(int)
    for start in range(0, len(chosen), info.batch):
        # A file of a fixed batch takes full ones only: the last is filled up from the beginning.
        rows = [chosen[(start + offset) % len(chosen)] for offset in range(info.batch)]
        pixels = letterboxed([read_image(dataset.paths[row]) for row in rows], info.size_hw)
        yield pixels.contiguous().float().div_(255).numpy()


def _prove(
    settings: ExportSettings,
    network: TorchPredictor,
    file: FilePredictor,
    judged: DetectionSet,
    *,
    name: str,
    written: Path,
    form: Format,
) -> ExportReport:
    """Run network and file on real images, and on the whole data set when the user named one."""
    pictures = [read_image(path) for path in judged.paths[:_PROOF_IMAGES]]
    comparisons = tuple(_comparisons(network, file, pictures))
    before = after = None
    if settings.data is not None:
        before, after = (_map(one, judged, file, settings) for one in (network, file))
    loss = None if before is None or after is None else before - after
    return ExportReport(
        file=name,
        format=settings.format,
        info=file.info,
        file_bytes=_size_of(written),
        comparisons=comparisons,
        images_from=settings.data or "the demo data",
        map_before=before,
        map_after=after,
        failures=tuple(failures(comparisons, file.info.precision, map_loss=loss)),
        libraries={name: metadata.version(name) for name in ("ullage", "torch", *form.libraries)},
    )


def _comparisons(network: TorchPredictor, file: FilePredictor, pictures: Sequence[np.ndarray]) -> list[Comparison]:
    """Compare at the size of the export; of a dynamic file, also at another size and batch."""
    found = [compare(network, file, letterboxed(pictures, file.size_hw))]
    if not file.fixed_size:
        height, width = file.size_hw
        stride = file.stride
        other_hw = max(height // 2 // stride, 1) * stride, max(width - stride, stride)
        found.append(compare(network, file, letterboxed(pictures[:1], other_hw)))
    return found


def _map(predictor: Predictor, judged: DetectionSet, file: FilePredictor, settings: ExportSettings) -> float:
    """Judge one of the two, both on the same batches; a file that suppresses by itself with its own thresholds."""
    inside = file.suppression
    thresholds = EvalSettings() if inside is None else EvalSettings(
        conf=inside.conf, iou=inside.iou, max_det=inside.max_det
    )  # fmt: skip
    height, width = file.size_hw
    if height != width and file.fixed_size:
        raise ConfigError(f"data= judges square or dynamic files, this one takes {height}x{width}; use dynamic=True")
    loader = EvalLoader(judged, imgsz=max(height, width), batch=_JUDGED_BATCH, rect=not file.fixed_size, workers=0)
    try:
        return evaluate(predictor, batches=loader, dataset=judged, settings=thresholds).metrics.box.map
    finally:
        loader.close()


def _size_of(path: Path) -> int:
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())
