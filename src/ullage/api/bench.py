"""``bench``: one network in several runtimes on this machine, side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ullage import errors
from ullage.api.bench_picture import draw_bench
from ullage.api.export import export
from ullage.api.exported import ExportedModel, open_model
from ullage.api.folders import describe_environment, make_run_folder, write_text
from ullage.api.models import LoadedModel, named_model
from ullage.config import ExportConfig
from ullage.config.bench import BenchConfig
from ullage.data.source import open_dataset
from ullage.errors import BackendUnavailable, ConfigError, ExportParityError, UllageError
from ullage.train.precision import choose_device


@dataclass(frozen=True)
class BenchRow:
    """One format.

    Attributes:
        format: As it was asked for.
        latency_ms: Median, 95th and 99th percentile of a pass: preprocessing, network, suppression; not decoding.
        network_ms: The same of the network alone.
        images_per_s: Images in a second.
        peak_bytes: Most memory that its process used, libraries included; None where the system does not tell.
        file_bytes: Size of the weights file or export.
        map: mAP50-95 on ``data``; None without.
        passes: How many were timed.
        problem: Why there are no figures; None when there are.
    """

    format: str
    latency_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    network_ms: tuple[float, float, float] = (0.0, 0.0, 0.0)
    images_per_s: float = 0.0
    peak_bytes: int | None = None
    file_bytes: int = 0
    map: float | None = None
    passes: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class BenchResult:
    """The whole table.

    Attributes:
        rows: In the order that was asked for.
        title: Network, size, batch, threads.
        save_dir: Folder with the exports, ``bench.md``, ``bench.json`` and ``bench.png``.
    """

    rows: tuple[BenchRow, ...]
    title: str
    save_dir: Path

    def __str__(self) -> str:
        """Return the table as Markdown."""
        head = (
            "format", "median ms", "p95 ms", "p99 ms", "of it network", "images/s", "peak memory", "file", "mAP50-95",
        )  # fmt: skip
        lines = [self.title, "", _line(head), _line(["---"] * len(head)), *(_line(_cells(row)) for row in self.rows)]
        problems = [f"{row.format}: {row.problem}" for row in self.rows if row.problem]
        return "\n".join([*lines, *([""] if problems else []), *problems])


def bench(
    config: BenchConfig,
    *,
    model: LoadedModel | ExportedModel | None = None,
    listener: Callable[[BenchRow], object] | None = None,
) -> BenchResult:
    """Write a network in every format that was asked for, and measure each in a process of its own.

    A format that cannot be had on this machine, or whose file is not what the network computes, has a row that says so.

    Args:
        config: Formats, size, batch, data.
        model: An already loaded model; an exported file is measured alone; None loads ``config.model.model``.
        listener: Hears each row as it is done.

    Raises:
        ConfigError: Settings contradict each other, or formats are asked of an exported file.
        StorageError: The folder cannot be written.
    """
    model = open_model(named_model(config.model, verb="bench")) if model is None else model
    settings = config.bench
    device = choose_device(config.device.device)
    height, width = (settings.imgsz, settings.imgsz) if isinstance(settings.imgsz, int) else settings.imgsz
    if settings.data is not None and height != width:
        raise ConfigError(f"imgsz={height},{width}: data= judges at a square size; give one number, or leave data out")
    if any(name.endswith("int8") for name in settings.chosen_formats) and settings.data is None:
        raise ConfigError("formats: int8 needs data=: images to calibrate on")
    if isinstance(model, ExportedModel):
        if settings.formats is not None:
            raise ConfigError(f"'{model.path}' is one format already: leave formats out, or name the weights")
        formats: tuple[str, ...] = (model.path.name,)
        title = model.info.model_name
    else:
        formats, title = settings.chosen_formats, model.model_name
        if settings.data is not None and model.source is None:  # new weights take the classes of the data, as in val
            model, _ = model.with_classes(open_dataset(settings.data, split=settings.split).names)
    folder = make_run_folder(config.folder, verb="bench")
    rows = []
    for name in formats:
        row = _row(config, model, name, folder, (height, width))
        rows.append(row)
        if listener is not None:
            listener(row)
    threads = f", {settings.threads} thread{'s' * (settings.threads > 1)}" if settings.threads else ""
    size = f"{height}x{width}, {settings.batch} image{'s' * (settings.batch > 1)} a pass, {device}{threads}"
    result = BenchResult(tuple(rows), f"{title}, {size}", folder)
    write_text(folder / "bench.md", f"{result}\n")
    facts = {
        "title": result.title, "rows": [asdict(row) for row in rows], "settings": config.flat(),
        "environment": json.loads(describe_environment(device)),
    }  # fmt: skip
    write_text(folder / "bench.json", json.dumps(facts, indent=2, default=str) + "\n")
    if settings.plots:
        draw_bench(rows, result.title, folder / "bench.png")
    return result


def _row(
    config: BenchConfig, model: LoadedModel | ExportedModel, name: str, folder: Path, size_hw: tuple[int, int]
) -> BenchRow:
    try:
        file = model.path if isinstance(model, ExportedModel) else _written(config, model, name, folder)
        measured = _measured(config, file, name, size_hw)
    except (BackendUnavailable, ExportParityError) as error:
        return BenchRow(name, problem=str(error))
    return BenchRow(
        format=name,
        latency_ms=tuple(measured["latency_ms"]),
        network_ms=tuple(measured["network_ms"]),
        images_per_s=measured["images_per_s"],
        peak_bytes=measured["peak_bytes"],
        file_bytes=file_bytes(file),
        map=measured["map"],
        passes=measured["passes"],
    )


def _written(config: BenchConfig, model: LoadedModel, name: str, folder: Path) -> Path:
    """Write the file of a format; PyTorch's is the weights."""
    form, _, kind = name.partition("-")
    if form == "pytorch":
        return model.save(folder / f"{model.model_name}.pt")
    endings = {"openvino": "_openvino_model", "onnx": ".onnx", "torchscript": ".torchscript", "engine": ".engine"}
    settings: dict[str, Any] = {
        "format": form,
        "half": kind == "half",
        "int8": kind == "int8",
        "imgsz": config.bench.imgsz,
        "batch": config.bench.batch,
        "device": config.device.device,
        "out": folder / f"{name}{endings[form]}",
        "verbose": False,
    }
    if kind == "int8":
        settings |= {key: getattr(config.bench, key) for key in ("data", "split", "fraction")}
    return export(ExportConfig.load(settings), model=model).path


def _measured(config: BenchConfig, file: Path, name: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    settings = config.bench
    order = {
        "file": str(file),
        "half": name == "pytorch-half",
        "device": config.device.device,
        "size_hw": size_hw,
        **{
            key: getattr(settings, key)
            for key in ("threads", "data", "split", "fraction", "batch", "conf", "warmup", "seconds")
        },
    }
    run = subprocess.run(
        [sys.executable, "-m", "ullage.api.bench_process"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    last = run.stdout.splitlines()[-1] if run.stdout.strip() else ""
    if not last.startswith("{"):
        ending = run.stderr.strip().splitlines()[-1:] or [f"status {run.returncode}"]
        raise BackendUnavailable(f"the process that measured '{file.name}' broke off: {ending[0]}")
    answer = json.loads(last)
    if "error" in answer:
        kind: type[UllageError] = getattr(errors, answer["error"])
        raise kind(answer["message"])
    return answer["measured"]


def file_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    parts = path.rglob("*") if path.is_dir() else [path]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _cells(row: BenchRow) -> list[str]:
    if row.problem:
        return [row.format, *["-"] * 8]
    peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f} MB"
    return [
        row.format,
        *(f"{value:.1f}" for value in row.latency_ms),
        f"{row.network_ms[0]:.1f}",
        f"{row.images_per_s:.1f}",
        peak,
        f"{row.file_bytes / 1e6:.1f} MB",
        "-" if row.map is None else f"{row.map:.4f}",
    ]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
