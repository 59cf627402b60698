"""Every form of weights that users bring, and files of ours that survive full disks and kills."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import hostile
import numpy as np
import pytest
import safetensors.torch
import torch

from ullage.errors import StorageError, WeightsError
from ullage.zoo.checkpoint_file import read_checkpoint, read_weights, write_checkpoint, write_safetensors


def payload(**changes: object) -> dict:
    base = {
        "schema": 1,
        "kind": "ullage.checkpoint",
        "model": {"name": "yolo11n", "num_classes": 2},
        "names": ["car", "bus"],
        "weights": {"stem.conv.weight": torch.full((2, 3), 1.0), "stem.bn.num_batches_tracked": torch.tensor(7)},
        "ema": {"stem.conv.weight": torch.full((2, 3), 2.0), "stem.bn.num_batches_tracked": torch.tensor(7)},
        "meta": {"epoch": 3, "versions": {"torch": "2"}, "plan": None},
        "train": {
            "optimizer": {0: {"momentum": torch.arange(6.0).half().reshape(2, 3).t(), "step": 5}},
            "rng": torch.get_rng_state(),
            "position": (1, 2.5, [True, None, b"x"]),
            "mask": torch.tensor([True, False]),
        },
    }
    return base | changes


def assert_same(left: object, right: object) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    write_checkpoint(path, payload())
    assert_same(read_checkpoint(path), payload())
    assert_same(torch.load(path, weights_only=True), payload())
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    """Every entry carries a checksum, which is looked at when it is read."""
    path = tmp_path / "last.pt"
    values = torch.arange(5000.0)
    write_checkpoint(path, payload(weights={"w": values}))
    data = bytearray(path.read_bytes())
    data[data.find(values.numpy().tobytes()[4000:4040])] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(path)


def test_weights_of_a_checkpoint_prefer_the_average(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "x.pt", payload())
    weights = read_weights(tmp_path / "x.pt")
    assert weights.state_dict["stem.conv.weight"].eq(2).all()
    assert (weights.names, weights.model_name, weights.num_classes) == (("car", "bus"), "yolo11n", 2)
    assert weights.layout == "ullage"
    assert weights.metadata["meta"]["epoch"] == 3
    assert "train" not in weights.metadata
    write_checkpoint(tmp_path / "x.pt", payload(ema=None))
    assert read_weights(tmp_path / "x.pt").state_dict["stem.conv.weight"].eq(1).all()


def test_values_are_stored_as_plain_types(tmp_path: Path) -> None:
    """Parameters, views of large tensors, NumPy floats and ordered dicts become what weights_only=True reads."""
    big = torch.zeros(1_000_000)
    weights = OrderedDict(a=torch.nn.Parameter(torch.ones(3)), b=big[:2], c=big[10:16].view(2, 3).t())
    write_checkpoint(tmp_path / "x.pt", payload(weights=weights, ema=None, meta={"best": np.float64(0.5)}))
    assert (tmp_path / "x.pt").stat().st_size < 50_000
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert type(loaded["weights"]) is dict
    assert type(loaded["weights"]["a"]) is torch.Tensor
    assert type(loaded["meta"]["best"]) is float


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"meta": {"run": Path("x")}}, r"payload\['meta'\]\['run'\] is a pathlib"),
        ({"train": {"seen": [1, {2}]}}, r"payload\['train'\]\['seen'\]\[1\] is a builtins.set"),
        ({"train": {"a": np.float32(1)}}, "numpy.float32"),
        ({"train": {(1, 2): 3}}, "has the key"),
        ({"kind": "x"}, "kind"),
        ({"schema": 2}, "schema"),
        ({"names": ["car"]}, "2 classes and names 1"),
        ({"names": "ab"}, "lacks names"),
        ({"model": {"num_classes": 2}}, "lacks model"),
        ({"weights": {}}, "not a state dict"),
        ({"weights": {"a": 1.0}}, "not a state dict"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, changes: dict, complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint):
        write_checkpoint(tmp_path / "x.pt", payload(**changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema": 2}, "schema 2, this version reads 1; update"),
        ({"kind": "ullage.other"}, "kind is 'ullage.other'"),
        ({"names": ["a", "b", "c"]}, "2 classes and names 3"),
        ({"weights": {"a": "b"}, "ema": None}, "not a state dict"),
        ({"model": None}, "lacks model"),
    ],
)
def test_headers_are_checked_at_reading(tmp_path: Path, changes: dict, complaint: str) -> None:
    torch.save(payload(**changes), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=complaint):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("extra", [hostile.Call(os.getpid), {"x": {1, 2}}, hostile.Named(a=1)])
def test_a_checkpoint_of_ours_holds_no_objects(tmp_path: Path, extra: object) -> None:
    torch.save(payload(train={"extra": extra}), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="neither plain data nor a tensor"):
        read_checkpoint(tmp_path / "x.pt")
    assert len(read_weights(tmp_path / "x.pt").state_dict) == 2


def test_only_checkpoints_of_ours_can_be_resumed(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="no checkpoint of Ullage"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", ["ema", "model", "bare", "module.", "_orig_mod.module.", "state_dict", "alone"])
def test_weights_of_others(tmp_path: Path, wrap: str, legacy: bool) -> None:
    network = hostile.Network(classes=2).half()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    state = network.state_dict()
    other = hostile.Network().half()
    value = {
        "ema": {"model": other, "ema": network, "epoch": 4, "date": "today", "train_args": {"lr0": 0.01}},
        "model": {"model": network, "ema": None, "epoch": 4, "date": "today", "train_args": {"lr0": 0.01}},
        "bare": state,
        "module.": {"module." + key: value for key, value in state.items()},
        "_orig_mod.module.": {"_orig_mod.module." + key: value for key, value in state.items()},
        "state_dict": {"state_dict": state, "epoch": 4},
        "alone": network,
    }[wrap]
    weights = read_weights(hostile.write(tmp_path / "x.pt", hostile.saved(value, legacy=legacy)))
    assert list(weights.state_dict) == list(state)
    for key, tensor in state.items():
        assert torch.equal(weights.state_dict[key], tensor.float() if tensor.is_floating_point() else tensor)
    assert weights.state_dict["model.0.conv.weight"].dtype == torch.float32
    assert weights.layout == "official"
    assert weights.names == (("class 0", "class 1") if wrap in ("ema", "model", "alone") else None)
    if wrap in ("ema", "model"):
        assert weights.metadata == {
            "epoch": 4,
            "date": "today",
            "train_args": {"lr0": 0.01},
            "yaml": {"scale": "n", "nc": 2},
        }


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_number_type(tmp_path: Path, dtype: str, legacy: bool) -> None:
    tensor = torch.tensor([0, 1, 1, 0]).to(getattr(torch, dtype))
    path = hostile.write(tmp_path / "x.pt", hostile.saved({"a": tensor, "b": tensor[1:3]}, legacy=legacy))
    state = read_weights(path).state_dict
    want = tensor.float() if tensor.is_floating_point() else tensor
    assert state["a"].dtype == want.dtype
    assert torch.equal(state["a"], want)
    assert torch.equal(state["b"], want[1:3])


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({}, "top level has nothing"),
        ({"a": 1, "b": torch.ones(1)}, "top level has 'a', 'b'"),
        ([torch.ones(1)], "but a list"),
        (torch.ones(1), "neither"),
        ({"model": torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1)}), "names": 0}, None),
        ({"model": hostile.Named(a=1)}, "neither"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "readable are"),
    ],
)
def test_files_without_weights(tmp_path: Path, value: object, complaint: str | None) -> None:
    torch.save(value, tmp_path / "x.pt")
    if complaint is None:
        assert set(read_weights(tmp_path / "x.pt").state_dict) == {"a.weight", "a.bias"}
    else:
        with pytest.raises(WeightsError, match=complaint):
            read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("names", [{0: "a", 2: "b"}, {"0": "a"}, [1, 2], {0: None}])
def test_wrong_names_are_told(tmp_path: Path, names: object) -> None:
    network = hostile.Network()
    network.names = names
    torch.save({"model": network}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="class names"):
        read_weights(tmp_path / "x.pt")


def test_official_checkpoints_give_the_fixture_numbers(shared: Path) -> None:
    """Both official-form files, against the published recipe of their numbers and the stored BatchNorm statistics."""
    sys.path.insert(0, str(shared / "parity"))
    try:
        import fill
    finally:
        sys.path.pop(0)
    for name in ("yolo11n", "yolov12n"):
        weights = read_weights(shared / "parity" / "checkpoints" / f"{name}-filled.pt")
        want = fill.fill(json.loads((shared / "parity" / "keys" / f"{name}.json").read_text()))
        with np.load(shared / "parity" / "outputs" / f"{name}.npz") as outputs:
            want |= {key.removeprefix("bn/"): outputs[key] for key in outputs.files if key.startswith("bn/")}
        assert list(weights.state_dict) == list(want)
        for key, array in want.items():
            assert np.array_equal(weights.state_dict[key].numpy(), array), key
            assert weights.state_dict[key].numpy().dtype == array.dtype
        assert (weights.model_name, weights.num_classes, weights.layout) == (name, 80, "official")
        assert weights.names == tuple(f"class{index}" for index in range(80))
        assert weights.metadata["yaml"]["scale"] == "n"


def test_safetensors_round_trip(tmp_path: Path) -> None:
    base = torch.arange(12.0).half()
    state = {"a": base.reshape(3, 4).t(), "b": base[2:5], "n": torch.tensor(3)}
    header = {"model": {"name": "yolov12s", "num_classes": 1}, "names": ["ß"], "meta": {"epoch": 2}}
    write_safetensors(tmp_path / "x.safetensors", state, header)
    weights = read_weights(tmp_path / "x.safetensors")
    assert set(weights.state_dict) == set(state)
    assert all(torch.equal(weights.state_dict[key], state[key].to(weights.state_dict[key])) for key in state)
    assert weights.state_dict["a"].dtype == torch.float32
    assert (weights.names, weights.model_name, weights.num_classes) == (("ß",), "yolov12s", 1)
    assert weights.metadata["meta"] == {"epoch": 2}
    if os.name == "posix":
        (tmp_path / "plain").touch()
        assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == stat.S_IMODE(
            (tmp_path / "plain").stat().st_mode
        )


def test_safetensors_of_others(tmp_path: Path) -> None:
    state = {"module.model.0.conv.weight": torch.ones(16, 3, 3, 3)}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors", metadata={"by": "somebody"})
    weights = read_weights(tmp_path / "x.safetensors")
    assert list(weights.state_dict) == ["model.0.conv.weight"]
    assert weights.layout == "official"
    assert weights.names is None
    assert weights.metadata == {"by": "somebody"}


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"schema": "9"}, "schema 9"),
        ({"names": "[1]"}, "lacks names"),
        ({"names": "nothing"}, "not JSON"),
        ({"model": "[" * 100_000}, "not JSON"),
    ],
)
def test_damaged_safetensors_headers(tmp_path: Path, metadata: dict[str, str], complaint: str) -> None:
    good = {
        "schema": "1",
        "kind": '"ullage.weights"',
        "names": '["a"]',
        "model": '{"name": "yolo11n", "num_classes": 1}',
    }
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata=good | metadata)
    with pytest.raises(WeightsError, match=complaint):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\xff" * 100, b"\x10" + bytes(30), b"\x02\0\0\0\0\0\0\0{}xx", b"PK\x03\x04"]
)
def test_damaged_safetensors(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(WeightsError, match="safetensors"):
        read_weights(hostile.write(tmp_path / "x.safetensors", data))


@pytest.mark.parametrize(
    "metadata", [{}, {"model": {"name": "a", "num_classes": 1}, "names": ["a"], "meta": {"x": {1}}}]
)
def test_safetensors_need_a_header(tmp_path: Path, metadata: dict) -> None:
    with pytest.raises(WeightsError, match="cannot write"):
        write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(1)}, metadata)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "x.pt", Path("/proc/x.pt")):
        with pytest.raises(StorageError, match="cannot write"):
            write_checkpoint(path, payload())
    (tmp_path / "taken.pt").mkdir()
    (tmp_path / "taken.pt" / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        write_checkpoint(tmp_path / "taken.pt", payload())
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken.pt"]


_LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from ullage.errors import StorageError
from ullage.zoo.checkpoint_file import write_checkpoint, write_safetensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, header = Path(sys.argv[1]), {"model": {"name": "yolo11n", "num_classes": 1}, "names": ["a"]}
state = {"w": torch.ones(100_000)}
payload = {"schema": 1, "kind": "ullage.checkpoint", **header, "weights": state}
for limit in (0, 70, 100_000, 400_050):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for write in (
        lambda: write_checkpoint(folder / "x.pt", payload),
        lambda: write_safetensors(folder / "x.safetensors", state, header),
    ):
        try:
            write()
            sys.exit(f"a write passed with {limit} bytes allowed")
        except StorageError as error:
            assert "cannot write" in str(error) and "\\n" not in str(error), error
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of the file size are a POSIX feature")
def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk; it holds for a whole process, so one of its own."""
    old = {name: hostile.write(tmp_path / name, b"the old file") for name in ("x.pt", "x.safetensors")}
    subprocess.run([sys.executable, "-c", _LIMITED, str(tmp_path)], check=True, timeout=120)
    assert all(path.read_bytes() == b"the old file" for path in old.values())
    assert not list(tmp_path.glob(".*"))


_KILLED = """
import sys, torch
from pathlib import Path
from ullage.zoo.checkpoint_file import write_checkpoint
step = 0
while True:
    step += 1
    header = {"schema": 1, "kind": "ullage.checkpoint", "model": {"name": "m", "num_classes": 1}, "names": ["a"]}
    weights = {"w": torch.full((300_000,), float(step))}
    write_checkpoint(Path(sys.argv[1]), {**header, "weights": weights, "meta": {"step": step}})
    print(step, flush=True)
"""


def test_a_kill_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline()
        time.sleep(0.013)
    finally:
        process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        process.communicate()
    weights = read_weights(path)
    assert weights.metadata["meta"]["step"] >= 3
    assert weights.state_dict["w"].eq(weights.metadata["meta"]["step"]).all()


def test_leftovers_of_a_kill_are_removed_later(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".x.pt.00000000.tmp", tmp_path / ".x.pt.11111111.tmp"
    for path in (old, fresh):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    write_checkpoint(tmp_path / "x.pt", payload())
    assert not old.exists()
    assert fresh.exists(), "it may belong to a process that is still writing"
