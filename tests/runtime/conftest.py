"""Fixtures of the runtime's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from square_finder import NAMES, SquareFinder, scene

from ullage.runtime.predictor import TorchPredictor


@pytest.fixture
def finder() -> SquareFinder:
    return SquareFinder().eval()


@pytest.fixture
def predictor(finder: SquareFinder) -> TorchPredictor:
    return TorchPredictor(finder, names=NAMES)


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(scene(white=(8 * number, 16))).save(folder / f"{number}.png")
    return folder
