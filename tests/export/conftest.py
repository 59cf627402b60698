"""Networks with weights that find something, written once in every format that this machine can write."""

from __future__ import annotations

from pathlib import Path

import pytest
from export_kit import SIDE, filled, write

from ullage.api.models import LoadedModel, from_weights
from ullage.data.source import open_dataset


@pytest.fixture(scope="session")
def demo_names() -> tuple[str, ...]:
    return open_dataset("demo", split="val").names


@pytest.fixture(scope="session")
def pictures() -> list[str]:
    return list(open_dataset("demo", split="val").paths[:3])


@pytest.fixture(scope="session")
def mini(demo_names: tuple[str, ...]) -> LoadedModel:
    return filled("mini", demo_names)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, demo_names: tuple[str, ...]) -> Path:
    """yolov12n, whose area attention is the hardest to write, in a file."""
    return filled("yolov12n", demo_names).save(tmp_path_factory.mktemp("weights") / "best.pt")


@pytest.fixture(scope="session")
def model(weights: Path) -> LoadedModel:
    return from_weights(weights)


@pytest.fixture(scope="session")
def static_onnx(tmp_path_factory: pytest.TempPathFactory, model: LoadedModel) -> Path:
    return write(model, tmp_path_factory.mktemp("static"), format="onnx", imgsz=(64, SIDE), batch=2)


@pytest.fixture(scope="session")
def dynamic_onnx(tmp_path_factory: pytest.TempPathFactory, model: LoadedModel) -> Path:
    return write(model, tmp_path_factory.mktemp("dynamic"), format="onnx", dynamic=True)
