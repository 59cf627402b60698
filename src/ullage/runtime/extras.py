"""Libraries that come with extras of the package: imported when they are needed, asked for by name when absent."""

from __future__ import annotations

import importlib
from typing import Any

from ullage.errors import BackendUnavailable

_PIP = {"onnx": "onnx", "onnxruntime": "onnxruntime", "openvino": "openvino", "nncf": "nncf", "tensorrt": "tensorrt"}


def import_extra(library: str, *, needed_for: str) -> Any:
    """Import a library that not every user has.

    Raises:
        BackendUnavailable: It is not installed, or cannot be loaded on this machine.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        package = _PIP[library.partition(".")[0]]
        extra = "" if package == "tensorrt" else ", or everything with: pip install 'ullage[export]'"
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise BackendUnavailable(
            f"{needed_for} needs {package}, which is not installed{why}: pip install {package}{extra}"
        ) from None
