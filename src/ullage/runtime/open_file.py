"""From the path of an exported file to a predictor: which runtime runs which file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ullage.errors import ConfigError, WeightsError
from ullage.runtime.file_predictor import FilePredictor, Session
from ullage.runtime.onnx_session import OnnxSession
from ullage.runtime.openvino_session import OpenVinoSession
from ullage.runtime.tensorrt_session import TensorRtSession
from ullage.runtime.torchscript_session import TorchScriptSession

Opener = Callable[..., Session]

# Every runtime takes (path, device=, threads=) and raises BackendUnavailable when it is not installed.
SESSIONS: dict[str, Opener] = {
    ".onnx": OnnxSession,
    ".xml": OpenVinoSession,
    ".torchscript": TorchScriptSession,
    ".engine": TensorRtSession,
}
OPENVINO_FOLDER = "_openvino_model"


def is_exported(model: str | Path) -> bool:
    """Say whether a name is one of an exported file, by its ending."""
    path = Path(model)
    return path.suffix.lower() in SESSIONS or path.name.endswith(OPENVINO_FOLDER)


def open_exported(path: str | Path, *, device: str | None = None, threads: int | None = None) -> FilePredictor:
    """Load an exported file.

    Args:
        path: The file, or the folder of an OpenVINO export.
        device: Where to run; None lets the runtime choose.
        threads: CPU threads; None takes as many as PyTorch uses.

    Raises:
        ConfigError: Not an exported file, or a device that its runtime does not know.
        WeightsError: The file is missing, damaged, or was not exported by Ullage.
        BackendUnavailable: The runtime, or the device, is not on this machine.
    """
    file = Path(path).expanduser()
    if not is_exported(file):
        raise ConfigError(f"'{path}' is no exported file; known endings: {', '.join(SESSIONS)} {OPENVINO_FOLDER}")
    if file.is_dir() and file.name.endswith(OPENVINO_FOLDER):
        inside = sorted(file.glob("*.xml"))
        if len(inside) != 1:
            raise WeightsError(f"the folder '{file}' should hold one .xml file, it holds {len(inside)}")
        file = inside[0]
    if not file.is_file():
        raise WeightsError(f"there is no exported file '{file}' (looked for '{file.absolute()}')")
    session = SESSIONS[file.suffix.lower()](file, device=device, threads=threads)
    return FilePredictor(session, path=file)
