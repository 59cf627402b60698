"""``ullage.plan`` and ``ullage.estimate``: predictions without data, without a GPU, without memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ullage
from ullage.api.plan import worst_boxes
from ullage.config import AugmentSettings
from ullage.data.source import open_dataset
from ullage.errors import ConfigError, DataError, MemoryBudgetError
from ullage.memory import Estimate, Plan, need

SMALL: dict[str, Any] = {"model": "yolo11n", "imgsz": 64, "batch": 8, "device": "cpu", "boxes_per_image": 2}


@pytest.fixture(scope="module")
def free() -> Plan:
    return ullage.plan(**SMALL)


def test_without_a_budget_nothing_is_changed(free: Plan) -> None:
    assert (free.batch, free.micro_batch, free.accumulate, free.technique) == (8, 8, 1, "none")
    assert (free.slowdown, free.fidelity, free.budget_bytes) == (1.0, "bitwise", None)
    assert free.predicted == ullage.estimate(**SMALL)
    assert Plan.from_json(free.to_json()) == free


def test_an_estimate_has_its_parts(free: Plan) -> None:
    found = free.predicted
    assert isinstance(found, Estimate)
    assert found.device == "cpu"
    assert sum(found.by_category.values()) == found.peak_bytes == found.reserved_bytes
    weights = found.by_category["weights"]
    assert weights == pytest.approx(4 * 2_624_080, rel=0.02)  # with BatchNorm's statistics
    assert found.by_category["average"] == weights
    assert found.by_category["optimizer"] == pytest.approx(weights, rel=0.02)
    assert 0 < found.val_peak_bytes < found.peak_bytes
    adam = ullage.estimate(**SMALL, optimizer="AdamW")
    assert adam.by_category["optimizer"] == pytest.approx(2 * found.by_category["optimizer"], rel=0.01)


def test_techniques_and_precision_lower_it(free: Plan) -> None:
    whole = free.predicted.by_category["activations"]
    recomputed = ullage.estimate(**SMALL, technique="recompute").by_category["activations"]
    halved = ullage.estimate(**SMALL, precision="bf16").by_category["activations"]
    assert recomputed < 0.7 * whole
    assert halved < 0.85 * whole, "with a second copy of the weights, in bf16"


def test_crowds_and_sizes_raise_it(free: Plan) -> None:
    crowded = ullage.estimate(**{**SMALL, "boxes_per_image": 2000})
    assert crowded.peak_bytes > free.predicted.peak_bytes
    larger = ullage.estimate(**{**SMALL, "imgsz": (64, 128)})
    assert larger == ullage.estimate(**{**SMALL, "imgsz": 128})
    assert larger.peak_bytes > 1.5 * free.predicted.peak_bytes


def test_a_gpu_needs_more_around_its_tensors() -> None:
    found = ullage.estimate(**{**SMALL, "device": "cuda"})
    assert found.device == "cuda"
    assert found.peak_bytes < found.reserved_bytes < found.process_bytes
    assert found == ullage.estimate(**{**SMALL, "device": "cuda", "precision": "fp16"}), (
        "half precision is what amp takes"
    )


def test_a_budget_is_met(free: Plan) -> None:
    whole = need(free.predicted)
    budget = int(whole * 0.92)
    found = ullage.plan(**SMALL, memory=budget)
    assert found.budget_bytes == budget
    assert need(found.predicted) <= budget
    assert found.blocks
    assert found.accumulate == 1
    assert found.fidelity == "bitwise"
    assert found.slowdown > 1
    assert Plan.from_json(found.to_json()) == found
    table = str(found)
    assert "recompute" in table
    assert "bitwise" in table
    assert ullage.plan(**SMALL, memory=f"{whole * 2}").technique == "none"


def test_micro_batches_and_devices_share_the_batch(free: Plan) -> None:
    halves = ullage.plan(**SMALL, micro_batch=4)
    assert (halves.micro_batch, halves.accumulate, halves.fidelity) == (4, 2, "approximate")
    assert halves.predicted.peak_bytes < free.predicted.peak_bytes
    assert ullage.plan(**SMALL, devices=3).batch == 3
    over = ullage.plan(**SMALL, micro_batch=99)
    assert (over.micro_batch, over.accumulate) == (8, 1)


def test_data_gives_classes_and_crowds() -> None:
    data = open_dataset("demo", split="train")
    counts = sorted((len(data.labels(i)) for i in range(len(data))), reverse=True)
    assert worst_boxes(data, 2, None) == sum(counts[:8]), "four tiles a mosaic"
    assert worst_boxes(data, 10**4, None) >= 4 * 10**4 // len(data) * sum(counts)
    assert worst_boxes(data, 2, 7) == 14
    single = AugmentSettings(mosaic=0.0)
    assert worst_boxes(data, 2, augment=single) == sum(counts[:2])
    assert worst_boxes(data, 2, augment=AugmentSettings(mosaic=0.0, mixup=0.1, copy_paste=0.1)) == sum(counts[:4]) + 40
    settings = {key: value for key, value in SMALL.items() if key != "boxes_per_image"}
    with_data = ullage.estimate(**settings, data="demo")
    assert with_data.by_category["weights"] < ullage.estimate(**SMALL).by_category["weights"], "10 classes, not 80"


@pytest.mark.parametrize(
    ("changes", "error", "parts"),
    [
        ({"memory": "8Gigs"}, ConfigError, ("memory='8Gigs'", "8GB")),
        ({"model": "yolo11q"}, ConfigError, ("'yolo11q'", "Did you mean 'yolo11")),
        ({"technique": "nestd"}, ConfigError, ("'nestd'", "Did you mean 'nested'?")),
        ({"technique": "AUTO"}, ConfigError, ("Did you mean 'auto'?",)),
        ({"imgsz": 65}, ConfigError, ("imgsz=65",)),
        ({"batch": 0}, ConfigError, ("batch=0", "at least 1")),
        ({"device": "tpu"}, ConfigError, ("device='tpu'", "cuda")),
        ({"precision": "fp61"}, ConfigError, ("Did you mean 'fp16'?",)),
        ({"optimizer": "Adm"}, ConfigError, ("Did you mean 'Adam'?",)),
        ({"data": "/none/such.yaml"}, DataError, ("/none/such.yaml",)),
        ({"memory": "9MB"}, MemoryBudgetError, ("nothing fits 9.00 MB on cpu", "smaller model")),
    ],
    ids=str,
)
def test_wrong_calls(changes: dict[str, Any], error: type[Exception], parts: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        ullage.plan(**{**SMALL, **changes})
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_plan_is_refused(tmp_path: Path, free: Plan) -> None:
    for text in ("", "[]", "{}", '{"schema": 99}', free.to_json().replace('"batch"', '"botch"')):
        with pytest.raises(ConfigError):
            Plan.from_json(text)
