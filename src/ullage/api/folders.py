"""Run folders: ``runs/detect/NAME``, numbered when taken."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ullage._version import __version__
from ullage.config import FolderSettings
from ullage.errors import ConfigError, StorageError

if TYPE_CHECKING:
    import torch

DEFAULT_PROJECT = Path("runs") / "detect"
LAUNCH_FILE = "launch.json"
NOTES = ("process.json", LAUNCH_FILE)  # which processes train, or did, in a folder
# Set for a training that is started detached: its folder was made, and told to the user, before it began.
FOLDER_VARIABLE = "ULLAGE_RUN_FOLDER"
_REPORTED = ("torch", "torchvision", "numpy", "opencv-python-headless", "pydantic", "faster-coco-eval")


def make_run_folder(settings: FolderSettings, *, verb: str) -> Path:
    """Create the folder of a run; a detached training takes the one that was made for it.

    Args:
        settings: Project and name; a taken name is numbered (``train2``) unless ``exist_ok``.
        verb: Name when the user gave none.

    Raises:
        ConfigError: The name is a path out of the project.
        StorageError: The folder cannot be made or written.
    """
    made = os.environ.get(FOLDER_VARIABLE) if verb == "train" else None
    if made:
        return Path(made)
    project = Path(settings.project).expanduser() if settings.project else DEFAULT_PROJECT
    name = settings.name or verb
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"name='{name}' must be a folder inside the project; use project= for another place")
    folder, number = project / name, 2
    try:
        project.mkdir(parents=True, exist_ok=True)
        while True:
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir(exist_ok=settings.exist_ok)
                break
            except FileExistsError:
                if settings.exist_ok:
                    raise  # a file stands there
                folder, number = project / f"{name}{number}", number + 1
    except OSError as error:
        raise StorageError(
            f"cannot make the run folder '{folder}': {error.strerror or error}; choose another with project="
        ) from None
    if not os.access(folder, os.W_OK):
        raise StorageError(f"the run folder '{folder}' cannot be written; choose another with project=")
    return folder


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that never began, unless there is more in it than notes of processes."""
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} - {"weights", *NOTES}:
            return
        if (folder / "weights").exists():
            (folder / "weights").rmdir()
        for note in NOTES:
            (folder / note).unlink(missing_ok=True)
        folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a small file of a run.

    Raises:
        StorageError: The disk is full or the folder is read-only.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from None


def describe_environment(device: torch.device) -> str:
    """Return what this machine and its libraries are, as JSON."""
    import torch  # here, so that listing runs is quick

    facts: dict[str, Any] = {
        "ullage": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "argv": sys.argv,
        "packages": {name: metadata.version(name) for name in _REPORTED},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = {
            "name": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "capability": f"{properties.major}.{properties.minor}",
        }  # fmt: skip
    return json.dumps(facts, indent=2) + "\n"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
