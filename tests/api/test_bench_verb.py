"""``ullage bench`` and ``YOLO.benchmark``: figures of each format, from a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ullage import YOLO
from ullage.api import bench as bench_module
from ullage.api.bench import BenchRow, bench
from ullage.api.bench_picture import draw_bench
from ullage.api.bench_process import measure
from ullage.api.process_peak import peak_bytes
from ullage.apps.cli.main import main
from ullage.config.bench import BenchConfig
from ullage.errors import ConfigError, DataError, StorageError

pytest.importorskip("onnxruntime")
QUICK = {"imgsz": 64, "seconds": 0.01, "warmup": 1, "device": "cpu", "fraction": 0.05, "verbose": False}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def order(file: Path, **changes: object) -> dict[str, object]:
    plain = {"half": False, "device": "cpu", "threads": None, "data": None, "split": "val", "fraction": 0.1}
    times = {"size_hw": [64, 96], "batch": 1, "conf": 0.25, "warmup": 1, "seconds": 0.01}
    return {"file": str(file), **plain, **times, **changes}


def test_a_table_a_picture_and_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{key}={value}" for key, value in {**QUICK, "verbose": True}.items()]
    status = main(["bench", "model=yolo11n", "formats=pytorch,onnx,engine", "batch=2", "threads=1", *words])
    out = capsys.readouterr().out
    assert status == 0, out
    assert "yolo11n, 64x64, 2 images a pass, cpu, 1 thread" in out
    table = {line.split("|")[1].strip(): line for line in out.splitlines() if line.startswith("| ")}
    assert set(table) == {"format", "---", "pytorch", "onnx", "engine"}
    assert "engine: " in out
    assert "GPU" in out, "why there are no figures"
    folder = here / "runs/detect/bench"
    facts = json.loads((folder / "bench.json").read_text())
    torch_row, onnx_row, engine_row = facts["rows"]
    for row, file in ((torch_row, "yolo11n.pt"), (onnx_row, "onnx.onnx")):
        assert row["file_bytes"] == (folder / file).stat().st_size
        assert 0 < row["network_ms"][0] < row["latency_ms"][0] <= row["latency_ms"][1] <= row["latency_ms"][2]
        assert row["passes"] >= 10
        assert 50e6 < row["peak_bytes"] < 4e9
        assert row["map"] is None
    assert engine_row["problem"]
    assert (folder / "bench.md").read_text().startswith("yolo11n, 64x64")
    with Image.open(folder / "bench.png") as picture:
        assert picture.width > 600
        assert np.asarray(picture.convert("L")).std() > 10


def test_the_map_of_each_format(here: Path) -> None:
    result = YOLO("yolo11n").benchmark(formats="pytorch", data="demo", plots=False, **QUICK)
    (row,) = result.rows
    assert row.map is not None
    assert 0 <= row.map <= 1
    assert str(result).splitlines()[-1].startswith("| pytorch | ")
    assert not (result.save_dir / "bench.png").exists()


def test_an_exported_file_is_measured_alone(here: Path) -> None:
    file = YOLO("yolo11n").export(format="onnx", imgsz=64, device="cpu", out="x.onnx", verbose=False)
    (row,) = YOLO(file).benchmark(plots=False, **QUICK).rows
    assert row.format == "x.onnx"
    assert row.images_per_s > 0
    with pytest.raises(ConfigError, match="one format already"):
        YOLO(file).benchmark(formats="openvino", **QUICK)


def test_times_are_those_of_the_work(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that sleeps 20 ms has a latency of at least that, and it is the network's."""
    import time

    from ullage.runtime.predictor import TorchPredictor

    plain = TorchPredictor.__call__

    def slow(self: TorchPredictor, images_B3HW: torch.Tensor):  # type: ignore[no-untyped-def]
        time.sleep(0.02)
        return plain(self, images_B3HW)

    weights = YOLO("yolo11n").save("slow.pt")
    monkeypatch.setattr(TorchPredictor, "__call__", slow)
    measured = measure(order(weights, batch=2, seconds=0.3))
    assert measured["network_ms"][0] > 20
    assert measured["latency_ms"][0] >= measured["network_ms"][0]
    assert measured["images_per_s"] < 2 / 0.02


def test_peak_memory_is_that_of_the_process_alone() -> None:
    code = (
        "import numpy; from ullage.api.process_peak import peak_bytes; before = peak_bytes(); "
        "kept = numpy.ones(300_000_000, numpy.uint8); print(before, peak_bytes())"
    )
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    before, after = int(words[0]), int(words[1])
    assert 280e6 < after - before < 400e6
    ballast = np.ones(600_000_000, np.uint8)  # of this process; a child must not inherit it
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert abs(int(words[0]) - before) < 50e6
    assert ballast[-1] == 1
    assert peak_bytes() is not None


def test_wrong_calls(here: Path) -> None:
    for settings, named in (
        ({"formats": "onnx,tflite"}, "'tflite' is unknown; allowed: pytorch"),
        ({"formats": "onnx,onnx"}, "named twice"),
        ({"formats": []}, "name at least one"),
        ({"formats": "openvino-int8"}, "int8 needs data="),
        ({"data": "demo", "imgsz": (64, 96)}, "square"),
        ({"seconds": 0}, "seconds"),
    ):
        with pytest.raises(ConfigError, match=named):
            YOLO("yolo11n").benchmark(**{**QUICK, **settings})
    with pytest.raises(ConfigError, match="bench needs model="):
        bench(BenchConfig.load({}))
    with pytest.raises(DataError, match=r"no data set|nowhere"):
        YOLO("yolo11n").benchmark(formats="pytorch", **{**QUICK, "data": "nowhere.yaml"})


def test_a_process_that_breaks_off_is_a_row(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module.sys, "executable", "/bin/false")
    (row,) = YOLO("yolo11n").benchmark(formats="pytorch", **QUICK).rows
    assert row.problem is not None
    assert "broke off" in row.problem


def test_a_picture_without_any_figures_and_one_that_cannot_be_written(tmp_path: Path) -> None:
    draw_bench([BenchRow("engine", problem="no GPU")], "title", tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
    with pytest.raises(StorageError, match="cannot write the picture"):
        draw_bench([BenchRow("engine", problem="no GPU")], "title", tmp_path / "gone" / "a.png")
