"""The host's memory of loading: predicted, reduced, refused."""

from __future__ import annotations

import pytest

from ullage.data.host import fit_host_memory, predict_host_memory
from ullage.data.source import open_dataset
from ullage.errors import MemoryBudgetError

SETTINGS = {"imgsz": 192, "batch": 8, "device_type": "cpu"}


def test_the_image_cache_is_predicted_to_the_byte() -> None:
    dataset = open_dataset("demo", split="train")
    plan = predict_host_memory(dataset, workers=2, cache="ram", **SETTINGS)  # type: ignore[arg-type]
    sizes = [dataset.size_hw(i) for i in range(len(dataset))]
    scaled = [
        (h, w) if max(h, w) <= 192 else (round(h * 192 / max(h, w)), round(w * 192 / max(h, w))) for h, w in sizes
    ]
    assert plan.cache_bytes == sum(3 * h * w for h, w in scaled)
    assert plan.batch_bytes == 6 * 8 * 192 * 192 * 3  # two batches ahead in each process, this one and the last


def test_without_a_budget_nothing_changes() -> None:
    dataset = open_dataset("demo", split="train")
    plan = fit_host_memory(dataset, budget_bytes=None, workers=3, cache="ram", **SETTINGS)  # type: ignore[arg-type]
    assert (plan.cache, plan.workers, plan.notes) == ("ram", 3, ())


def test_the_cache_goes_first_then_processes_then_it_is_refused() -> None:
    dataset = open_dataset("demo", split="train")

    def fitted(budget: int) -> tuple[object, int, int]:
        plan = fit_host_memory(dataset, budget_bytes=budget, workers=2, cache="ram", **SETTINGS)  # type: ignore[arg-type]
        assert plan.total_bytes <= budget
        return plan.cache, plan.workers, len(plan.notes)

    whole = predict_host_memory(dataset, workers=2, cache="ram", **SETTINGS).total_bytes  # type: ignore[arg-type]
    assert fitted(whole) == ("ram", 2, 0)
    least = predict_host_memory(dataset, workers=0, cache=False, **SETTINGS).total_bytes  # type: ignore[arg-type]
    assert fitted(least) == (False, 0, 2)
    with pytest.raises(MemoryBudgetError, match=r"host_memory=.* is too little: loading needs"):
        fitted(least - 1)
