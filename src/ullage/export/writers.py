"""The table of formats: ending, writer, libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ullage.config import ExportSettings
from ullage.export.graph import ExportGraph
from ullage.export.onnx_file import OPSET, write_onnx
from ullage.runtime.file_info import FileInfo

Writer = Callable[[ExportGraph, FileInfo, Path, ExportSettings], None]


@dataclass(frozen=True)
class Format:
    """How one format is written.

    Attributes:
        ending: What the file's name ends in, after the stem of the weights.
        write: Writes the file; not proven yet.
        libraries: Packages whose versions the report states.
    """

    ending: str
    write: Writer
    libraries: tuple[str, ...]


def _onnx(graph: ExportGraph, info: FileInfo, path: Path, settings: ExportSettings) -> None:
    write_onnx(graph, info, path, opset=settings.opset or OPSET)


FORMATS: dict[str, Format] = {"onnx": Format(".onnx", _onnx, ("onnx", "onnxruntime"))}
