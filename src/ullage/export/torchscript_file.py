"""TorchScript files: the traced graph with its metadata."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from ullage.errors import StorageError
from ullage.export.graph import ExportGraph
from ullage.runtime.file_info import FileInfo
from ullage.runtime.torchscript_session import METADATA_FILE


def write_torchscript(graph: ExportGraph, info: FileInfo, path: Path) -> None:
    """Write a network as a TorchScript file, frozen, its metadata an extra file of the archive.

    Args:
        graph: The network, made ready.
        info: Size and batch to trace with; the file takes others when it is dynamic.
        path: The file; its folder must exist.

    Raises:
        StorageError: The file cannot be written.
    """
    example = torch.zeros(info.batch, 3, *info.size_hw)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        traced = torch.jit.trace(graph.eval(), example, check_trace=False)  # the proof compares more than the check
        frozen = torch.jit.freeze(traced)  # pyright: ignore[reportArgumentType]
    try:
        frozen.save(str(path), _extra_files={METADATA_FILE: json.dumps(info.to_metadata())})
    except (OSError, RuntimeError) as error:
        raise StorageError(f"cannot write '{path}': {' '.join(str(error).split())[:200]}") from None
