"""The consumer that the documentation shows finds what ``predict`` finds, from the exported file alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from export_kit import write
from pages import ROOT, blocks
from PIL import Image

from ullage.api.models import LoadedModel
from ullage.runtime.predictor import TorchPredictor, predict

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("size_wh", [(96, 64), (64, 96), (96, 96)])
def test_the_python_consumer(
    mini: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[str], size_wh: tuple[int, int]
) -> None:
    (code,) = [b.code for b in blocks(ROOT / "docs" / "deploy.md") if "onnxruntime.InferenceSession" in b.code]
    assert "ullage" not in code
    write(mini, tmp_path, format="onnx", nms=True, conf=0.5).rename(tmp_path / "alone.onnx")
    # As large as the input already: libraries differ in how they resample.
    Image.open(pictures[0]).convert("RGB").resize(size_wh).save(tmp_path / "bus.png")
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    before = set(sys.modules)
    exec(compile(code.replace("bus.jpg", "bus.png"), "deploy.md", "exec"), namespace)
    assert not {name for name in set(sys.modules) - before if name.startswith(("ullage", "torch"))}
    network = TorchPredictor(mini.network, names=mini.names)
    (wanted,) = predict(network, source=tmp_path / "bus.png", imgsz=(96, 96), conf=0.5)
    found = namespace["found"]
    assert len(found) == len(wanted.boxes) > 10
    assert [score for _, score, _ in found] == pytest.approx(wanted.boxes.conf.tolist(), abs=1e-3)
    assert sorted(name for name, _, _ in found) == sorted(mini.names[int(c)] for c in wanted.boxes.cls)
    # predict clips boxes to the picture; a consumer may do so, too.
    corners = np.array(sorted(corners for _, _, corners in found)).clip(0, max(size_wh))
    assert corners.shape == (len(wanted.boxes), 4)
    centres = [
        np.sort(one[:, 0] + one[:, 2])
        for one in (corners.clip(0, [size_wh[0], size_wh[1]] * 2), wanted.boxes.xyxy.numpy())
    ]
    assert np.abs(centres[0] - centres[1]).max() < 0.1
