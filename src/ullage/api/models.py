"""From what the user typed to a network with weights and class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ullage.config import ModelSettings
from ullage.errors import ConfigError, WeightsError, nearest
from ullage.nn.detector import Detector
from ullage.nn.flops import count_flops
from ullage.runtime.open_file import is_exported
from ullage.zoo.checkpoint_file import (
    CHECKPOINT_KIND,
    SCHEMA,
    WeightsFile,
    read_weights,
    write_checkpoint,
    write_safetensors,
)
from ullage.zoo.download import fetch_official, is_official_name
from ullage.zoo.registry import MODELS, build, model_entry
from ullage.zoo.weights import LoadReport, load_into, official_to_ours

WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class ModelInfo:
    """Size of a network.

    Attributes:
        parameters: All of them, the 16 constants of the distance bins included.
        flops: For one image of the asked size, 2 x multiply-adds, BatchNorm folded, without attention's products.
        attention_flops: The matrix products of attention, which published figures leave out.
        layers: Modules that compute something themselves (convolutions, norms, activations, pooling).
    """

    parameters: int
    flops: int
    attention_flops: int
    layers: int


@dataclass
class LoadedModel:
    """A network, what it is called and what it tells apart.

    Attributes:
        network: In float32 on the CPU.
        model_name: Its name in the table of networks.
        names: Class names by id; ``class0`` ... for a fresh network.
        source: The weights file; None for a fresh network.
        metadata: What the weights file says of itself.
    """

    network: Detector
    model_name: str
    names: tuple[str, ...]
    source: Path | None = None
    metadata: Mapping[str, Any] | None = None

    def info(self, imgsz: int = 640) -> ModelInfo:
        """Count parameters, FLOPs and layers."""
        flops = count_flops(self.network, size_hw=(imgsz, imgsz))
        return ModelInfo(
            parameters=sum(p.numel() for p in self.network.parameters()),
            flops=flops.convolutions,
            attention_flops=flops.attention,
            layers=sum(1 for module in self.network.modules() if not list(module.children())),
        )

    def with_classes(self, names: Sequence[str]) -> tuple[LoadedModel, LoadReport | None]:
        """Return the model for other classes.

        Weights are kept where they fit; the class branch of the head starts anew when the number of classes differs.
        The report says what was left out, and is None for a fresh network.
        """
        if self.source is None:
            network = self.network if self.network.num_classes == len(names) else fresh(self.model_name, len(names))
            return LoadedModel(network, self.model_name, tuple(names)), None
        network = fresh(self.model_name, len(names))
        report = load_into(network, self.network.state_dict(), partial=True)
        return LoadedModel(network, self.model_name, tuple(names), self.source, self.metadata), report

    def save(self, path: str | Path) -> Path:
        """Write the weights, to share: ``.safetensors``, or ``.pt`` of plain tensors.

        Raises:
            ConfigError: Another suffix.
            StorageError: The file cannot be written.
        """
        path, state = Path(path), self.network.state_dict()
        header = {"model": {"name": self.model_name, "num_classes": len(self.names)}, "names": list(self.names)}
        if path.suffix == ".safetensors":
            write_safetensors(path, state, header)
        elif path.suffix == ".pt":
            kind = {"schema": SCHEMA, "kind": CHECKPOINT_KIND, "weights": state, "ema": None, "meta": {}}
            write_checkpoint(path, {**kind, **header})
        else:
            raise ConfigError(f"cannot save weights as '{path}'; use .pt or .safetensors")
        return path


def fresh(name: str, num_classes: int) -> Detector:
    """Build a network with new weights, its images' memory layout that of decoded images."""
    return build(name, num_classes=num_classes).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def named_model(settings: ModelSettings, *, verb: str) -> str:
    """Return the model that the user named.

    Raises:
        ConfigError: None was named; new weights would find nothing.
    """
    if settings.model is None:
        raise ConfigError(f"{verb} needs model=: a weights file, such as runs/detect/train/weights/best.pt")
    return settings.model


def load_model(model: str | Path, *, seed: int = 0) -> LoadedModel:
    """Find a network by name, or read it from a weights file.

    Args:
        model: ``yolov12n`` or ``yolov12n.yaml`` for new weights; a ``.pt`` or ``.safetensors`` file; the name of an
            official file (``yolov12n.pt``), which is downloaded into the current folder when it is not there.
        seed: Of new weights.

    Raises:
        ConfigError: Not a name and not a file.
        WeightsError: The file is damaged or of an unknown network.
    """
    text = str(model)
    path = Path(text).expanduser()
    suffix = path.suffix.lower()
    if is_exported(text):
        raise ConfigError(
            f"model='{text}' is an exported file, which predicts and can be judged (predict, val); for anything else "
            "name the weights that it was made from"
        )
    if suffix in WEIGHT_SUFFIXES:
        if not path.exists() and is_official_name(text):
            path = fetch_official(text, Path.cwd())
        if not path.exists():
            raise WeightsError(
                f"model='{text}': there is no such file (looked for '{path.absolute()}'), and it is no official name."
                f"{nearest(text, [f'{name}.pt' for name in MODELS])}"
            )
        return from_weights(path)
    if path.is_file() and suffix in (".yaml", ".yml"):
        raise ConfigError(
            f"model='{text}': networks are not read from YAML files; give a name, such as {path.stem!r}, or a .pt file"
        )
    entry = model_entry(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = fresh(entry.name, 80)
    return LoadedModel(network, entry.name, tuple(f"class{i}" for i in range(80)))


def from_weights(path: Path) -> LoadedModel:
    """Read a weights file of ours, an official checkpoint or a bare state dict; strictly."""
    file = read_weights(path)
    if file.model_name is None or file.model_name not in MODELS:
        raise WeightsError(
            f"'{path}' does not say which network it is of"
            + (f" ('{file.model_name}' is unknown)" if file.model_name else "")
            + f"; known are {', '.join(MODELS)}"
        )
    count = file.num_classes or len(file.names or ())
    if count < 1:
        raise WeightsError(f"'{path}' does not say how many classes it tells apart")
    network = fresh(file.model_name, count)
    load_into(network, _our_keys(file, network))
    names = file.names if file.names and len(file.names) == count else tuple(f"class{i}" for i in range(count))
    return LoadedModel(network, file.model_name, tuple(names), path, file.metadata)


def _our_keys(file: WeightsFile, network: Detector) -> Mapping[str, torch.Tensor]:
    if file.layout == "official":
        return official_to_ours(file.state_dict, network.block_names)
    return file.state_dict
