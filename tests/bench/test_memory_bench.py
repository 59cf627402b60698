"""The memory benchmark's own parts: the neutral counter, the allocator's level, choosing, resuming, the verdicts."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import memory as driver  # noqa: E402  # pyright: ignore[reportMissingImports]
import memory_step  # noqa: E402  # pyright: ignore[reportMissingImports]
from memory_tables import budgets, fidelity, peer, predict, savings, times  # noqa: E402  # pyright: ignore[reportMissingImports]
from peers.tensor_peak import TensorPeak  # noqa: E402  # pyright: ignore[reportMissingImports]

MIB = 2**20


def test_the_counter_sees_what_lives_together_and_each_storage_once() -> None:
    standing = torch.zeros(MIB, dtype=torch.uint8)
    with TensorPeak([standing, standing[: MIB // 2]]) as peak:
        a = torch.ones(2 * MIB, dtype=torch.uint8)
        view = a[:10]
        del a
        b = torch.ones(4 * MIB, dtype=torch.uint8)  # the view keeps the first one alive
        del b, view
        torch.ones(MIB, dtype=torch.uint8)
    assert peak.standing_bytes == MIB
    assert peak.peak_bytes == 7 * MIB
    assert peak.live_bytes == MIB


def test_the_counter_sees_what_backward_makes() -> None:
    x = torch.ones(MIB // 4, requires_grad=True)
    with TensorPeak([x]) as peak:
        y = x.exp()
        assert peak.live_bytes == 2 * MIB
        y.sum().backward()
    assert peak.peak_bytes >= 3 * MIB


def test_the_allocators_level_is_read_from_the_profile() -> None:
    with memory_step.quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        first = torch.ones(2 * MIB, dtype=torch.uint8)
        del first
        second = torch.ones(3 * MIB, dtype=torch.uint8)
    assert memory_step.peak_of_events(profiler) == pytest.approx(second.nbytes, rel=0.01)


def test_what_is_asked_covers_what_is_required() -> None:
    compared = predict.combinations()
    assert len(compared) >= 60
    assert len({c["model"] for c in compared}) == 15
    assert {c["precision"] for c in compared} == {"float32", "bf16"}
    assert {320, 640, 1280} <= {c["imgsz"] for c in compared}
    assert {min(c["batch"] for c in compared), max(c["batch"] for c in compared)} == {1, 64}
    for combinations in (predict, fidelity, savings, times, peer, budgets):
        keys = [tuple(sorted(key.items())) for key in combinations.combinations()]
        assert len(set(keys)) == len(keys)
    assert {c["budget"] for c in budgets.combinations()} == {"1GB", "1.5GB", "2GB", "3GB"}


def test_only_keeps_what_was_named_and_says_what_it_does_not_know() -> None:
    keys = [{"model": m, "batch": b} for m in ("a", "b") for b in (1, 2)]
    assert driver.selected(keys, []) == keys
    assert driver.selected(keys, ["model=a"]) == keys[:2]
    assert driver.selected(keys, ["model=a", "model=b", "batch=2"]) == [keys[1], keys[3]]
    with pytest.raises(SystemExit, match="with a KEY of model, batch"):
        driver.selected(keys, ["size=3"])
    with pytest.raises(SystemExit, match="leaves nothing of 4"):
        driver.selected(keys, ["model=c"])


def test_what_is_in_the_results_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[dict[str, Any]] = []

    def measure(key: dict[str, Any], options: Any) -> dict[str, Any]:
        measured.append(key)
        return {"value": len(measured)}

    table = driver.Table(list, measure, lambda r: f"value {r['value']}", lambda rs: "")
    options = argparse.Namespace(results=tmp_path / "r.jsonl", again=False, no_real=False)
    for _ in range(2):
        driver.answer(table, {"table": "t", "model": "a"}, options)
    assert measured == [{"model": "a"}]
    options.again = True
    assert driver.answer(table, {"table": "t", "model": "a"}, options)["value"] == 2
    assert capsys.readouterr().out.split("\n")[:3] == ["value 1", "value 1", "value 2"]


def test_a_prediction_that_is_too_low_or_too_high_does_not_hold() -> None:
    def record(allocated: int) -> dict[str, Any]:
        return {"predicted": 1000, "live": 1000, "allocated": allocated}

    assert predict.summary([record(1000), record(980)]).endswith("yes")
    assert predict.summary([record(1000), record(1015)]).endswith("NO")  # 1.5 % too low
    assert predict.summary([record(1000), record(960)]).endswith("NO")  # 4 % too high


@pytest.mark.parametrize(
    ("measured", "plain", "wanted"),
    [(990, False, "holds"), (1001, False, "OVER"), (650, False, "WASTES"), (650, True, "holds")],
)
def test_a_budget_is_to_be_kept_and_used(measured: int, plain: bool, wanted: str) -> None:
    record = {"budget": "1000B", "predicted": 900, "measured": measured, "plain": plain, "micro_batch": 4, "batch": 4}
    assert budgets.verdict(record) == wanted
    assert budgets.verdict({**record, "micro_batch": 2, "measured": 650}) == "WASTES"


def test_bits_are_compared_not_values() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.zeros(2)
    assert fidelity.same_bits(nan, nan.clone())
    assert not fidelity.same_bits(zero, -zero)
    assert not fidelity.same_bits(zero, zero.double())
    assert fidelity.differences({"a": zero, "b": nan}, {"a": zero + 1e-30, "b": nan}) == ["a"]
    assert fidelity.differences({"a": zero}, {"b": zero}) == ["a", "b"]


def test_ten_steps_tell_a_changed_network_from_the_same_one() -> None:
    network, step = fidelity.make("transformer", "float32")
    start = {name: value.clone() for name, value in network.state_dict().items()}
    first = fidelity.train(network, step)
    network.load_state_dict(start)
    assert fidelity.differences(first, fidelity.train(network, step)) == []
    network.load_state_dict(start)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1e-3
    assert "loss 0" in fidelity.differences(first, fidelity.train(network, step))


def test_times_are_ratios_of_medians() -> None:
    record = {"seconds": {"none": [1.0, 2.0, 9.0], "block": [2.6, 1.0, 9.0]}}
    assert times.ratios(record) == {"block": pytest.approx(1.3)}
    assert times.summary([record]).endswith("yes")


def test_both_sides_get_the_same_batch() -> None:
    case = memory_step.Case("yolo11n", 2, 64)
    batch, fingerprint = memory_step.shared_batch(case)
    assert batch.images_BCHW.shape == (2, 3, 64, 64)
    assert (batch.targets.boxes_xyxy_px_G4 <= 64.01).all()
    assert fingerprint == memory_step.shared_batch(case)[1]


def test_a_machine_without_a_gpu_is_told_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    done = subprocess.run([sys.executable, str(BENCH / "gpu.py")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "nothing was measured" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
