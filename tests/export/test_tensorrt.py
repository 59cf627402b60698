"""TensorRT up to its builder, which is replaced by one that writes down what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from export_kit import write

from ullage import YOLO
from ullage.api.models import LoadedModel
from ullage.errors import BackendUnavailable, ConfigError, WeightsError
from ullage.export.tensorrt_file import CalibrationFeed, build_engine
from ullage.export.tensorrt_plan import GIB, plan_engine
from ullage.runtime.engine_file import MAGIC, read_engine_file, write_engine_file
from ullage.runtime.file_info import FileInfo

INFO = FileInfo("yolo11n", ("a", "b"), (320, 640), batch=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ullage" / "tensorrt"


def of(**changes: Any) -> FileInfo:
    return FileInfo(**{**INFO.__dict__, **changes})


def test_profiles() -> None:
    static = plan_engine(INFO, workspace_gib=None, network_bytes=b"x").profile
    assert static.smallest == static.best == static.largest == (4, 3, 320, 640)
    dynamic = plan_engine(of(dynamic=True), workspace_gib=None, network_bytes=b"x").profile
    assert (dynamic.smallest, dynamic.best, dynamic.largest) == ((1, 3, 32, 32), (4, 3, 320, 640), (4, 3, 320, 640))
    with pytest.raises(ConfigError, match="multiples of 32"):
        plan_engine(of(size_hw=(320, 600)), workspace_gib=None, network_bytes=b"x")


def test_memory_and_caches(cache: Path) -> None:
    plan = plan_engine(INFO, workspace_gib=1.5, network_bytes=b"one")
    assert plan.workspace_bytes == 3 * GIB // 2
    assert plan.timing_cache == cache / "timing.bin"
    assert (plan.calibration_shape, plan.calibration_cache) == (None, None)
    one, other = (plan_engine(of(precision="int8"), workspace_gib=None, network_bytes=b) for b in (b"one", b"two"))
    assert one.calibration_shape == (4, 3, 320, 640)
    assert one.calibration_cache != other.calibration_cache  # what was found for one network is not for another
    assert json.loads(json.dumps(one.describe()))["precision"] == "int8"


def test_calibration_is_handed_out_batch_by_batch(cache: Path) -> None:
    plan = plan_engine(of(precision="int8", size_hw=(32, 32), batch=2), workspace_gib=None, network_bytes=b"x")
    batches = [np.full((2, 3, 32, 32), value, np.float32) for value in (0.25, 0.5)]
    feed = CalibrationFeed(plan, batches, "cpu")
    assert feed.batch_size == 2
    for batch in batches:
        address = feed.next_address()
        assert address is not None
        assert feed._held is not None
        assert feed._held.data_ptr() == address
        assert torch.equal(feed._held, torch.from_numpy(batch))
    assert feed.next_address() is None
    assert feed.read_cache() is None
    feed.write_cache(b"table")
    assert CalibrationFeed(plan, [], "cpu").read_cache() == b"table"
    with pytest.raises(ValueError, match="the plan says"):
        CalibrationFeed(plan, [np.zeros((1, 3, 32, 32), np.float32)], "cpu").next_address()


class Recorder:
    """Answers every call, and writes it down."""

    def __init__(self, calls: list[tuple[str, tuple]], answers: dict[str, Any]) -> None:
        self.calls, self.answers, self.num_errors = calls, answers, 1

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, (*args, *kwargs.values())))
            return self.answers.get(name, self)

        return call


def fake_tensorrt(calls: list[tuple[str, tuple]], version: str = "10.3.0", **answers: Any) -> Any:
    given = {"build_serialized_network": b"engine", "serialize": b"times", "parse": True, **answers}
    recorder = Recorder(calls, given)
    return SimpleNamespace(
        __version__=version,
        Builder=lambda logger: recorder,
        OnnxParser=lambda network, logger: recorder,
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        BuilderFlag=SimpleNamespace(FP16="fp16", INT8="int8"),
        IInt8MinMaxCalibrator=object,
    )


def test_the_builder_is_told_what_is_planned(cache: Path) -> None:
    calls: list[tuple[str, tuple]] = []
    plan = plan_engine(of(precision="fp16", dynamic=True), workspace_gib=2, network_bytes=b"net")
    assert build_engine(fake_tensorrt(calls), b"net", plan, None) == b"engine"
    told = dict(calls)
    assert told["parse"] == (b"net",)
    assert told["create_network"] == (0,)
    assert told["set_memory_pool_limit"] == ("workspace", 2 * GIB)
    assert told["set_shape"] == ("images", (1, 3, 32, 32), (4, 3, 320, 640), (4, 3, 320, 640))
    assert told["set_flag"] == ("fp16",)
    assert told["create_timing_cache"] == (b"",)
    assert (cache / "timing.bin").read_bytes() == b"times"
    calls.clear()
    build_engine(fake_tensorrt(calls, "8.6.1"), b"net", plan, None)
    assert dict(calls)["create_timing_cache"] == (b"times",)  # the second build goes on with what the first learned
    assert dict(calls)["create_network"] == (1,)


@pytest.mark.parametrize(
    ("answers", "words"),
    [({"parse": False}, "cannot read"), ({"build_serialized_network": None}, "cannot build")],
    ids=["network", "engine"],
)
def test_what_the_builder_refuses(answers: dict, words: str) -> None:
    plan = plan_engine(INFO, workspace_gib=None, network_bytes=b"net")
    with pytest.raises(BackendUnavailable, match=words):
        build_engine(fake_tensorrt([], **answers), b"net", plan, None)


def test_engine_files(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    write_engine_file(path, of(precision="int8", dynamic=True), b"\x01\x02")
    assert read_engine_file(path) == (of(precision="int8", dynamic=True), b"\x01\x02")
    whole = path.read_bytes()
    for content, words in (
        (b"ftrt", "was not exported by Ullage"), (whole[:-2], "ends before its engine"), (MAGIC, "damaged"),
        (whole[:40], "not JSON"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=words):
            read_engine_file(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_one_line_says_so(mini: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="exporting to TensorRT needs an NVIDIA GPU"):
        write(mini, tmp_path, format="engine", imgsz=64)
    assert list(tmp_path.iterdir()) == []
    write_engine_file(tmp_path / "x.engine", INFO, b"\x01")
    with pytest.raises(BackendUnavailable, match=r"running 'x\.engine' needs an NVIDIA GPU"):
        YOLO(tmp_path / "x.engine")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "settings", [{}, {"half": True}, {"dynamic": True, "batch": 2}, {"int8": True, "data": "demo"}]
)
def test_engines_prove_themselves(mini: LoadedModel, tmp_path: Path, pictures: list[str], settings: dict) -> None:
    pytest.importorskip("tensorrt", reason="needs TensorRT: pip install tensorrt")
    path = write(mini, tmp_path, format="engine", imgsz=64, device="0", **settings)
    assert len(YOLO(path).predict(pictures, batch=3, conf=0.5)) == 3
