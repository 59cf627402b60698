"""Real budgets: a plan for so many bytes, one real step by it, and what that step needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_step import Case, RealStep, crowded_batch
from records import Record
from train_step import NUM_CLASSES
from ullage.api.plan import BOXES_PER_IMAGE, network_of, plan_training
from ullage.errors import MemoryBudgetError
from ullage.units import format_bytes, parse_bytes

BUDGETS = ("1GB", "1.5GB", "2GB", "3GB")
CASES = (Case("yolov12n", 16, 640), Case("yolov12s", 8, 640), Case("yolov12s", 16, 320))
USE = 0.7  # of the budget, unless plain training needs less
ONE_LARGE = Case("yolov12s", 1, 2048)  # elsewhere users overflow 12 GB with such an image
ONE_LARGE_BUDGET = "2.5GB"


def combinations() -> list[Record]:
    """Return the budgets, and the one image of 2,048 px that has to fit in 2.5 GB (``big`` runs it alone)."""
    return [{**vars(case), "budget": budget} for case in CASES for budget in BUDGETS]


def big() -> list[Record]:
    """Return the one large image."""
    return [{**vars(ONE_LARGE), "budget": ONE_LARGE_BUDGET}]


def measure(key: Record, options: Any) -> Record:
    """Plan, run one step by the plan, count."""
    case = Case(*(key[k] for k in ("model", "batch", "imgsz", "precision")))
    batch = crowded_batch(case, BOXES_PER_IMAGE)
    try:
        plan = plan_training(
            network_of(case.model, num_classes=NUM_CLASSES), batch=case.batch, imgsz=case.imgsz,
            boxes=len(batch.targets), budget=key["budget"], technique="auto", micro_batch=None, optimizer="SGD",
            precision=case.precision, device="cpu",  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
    except MemoryBudgetError as error:
        return {"refused": str(error)}
    figures = {
        "predicted": plan.predicted.worst_bytes, "slowdown": plan.slowdown, "micro_batch": plan.micro_batch,
        "technique": plan.technique, "fidelity": plan.fidelity, "plain": plan.technique == "none",
    }  # fmt: skip
    if options.no_real:
        return {**figures, "measured": None}
    step = RealStep(case, batch, plan=plan)
    step()
    return {**figures, "measured": step.peak_of_tensors()}


def verdict(record: Record) -> str:
    """Judge one budget."""
    budget = parse_bytes(record["budget"])
    if "refused" in record:
        return "REFUSED"
    needed = record["measured"] or record["predicted"]
    if needed > budget:
        return "OVER"
    whole = record["plain"] and record["micro_batch"] == record["batch"]
    return "holds" if whole or needed > USE * budget else "WASTES"


def line(record: Record) -> str:
    """Return one budget in one line."""
    case = Case(*(record[k] for k in ("model", "batch", "imgsz", "precision")))
    if "refused" in record:
        return f"{case} in {record['budget']}: {verdict(record)}: {record['refused']}"
    measured = record["measured"]
    told = "not run" if measured is None else format_bytes(measured)
    share = (measured or record["predicted"]) / parse_bytes(record["budget"])
    return (
        f"{case} in {record['budget']}: technique {record['technique']}, {record['micro_batch']} images at a time, "
        f"{record['fidelity']}, about {record['slowdown']:.2f} x the time; "
        f"predicted {format_bytes(record['predicted'])}, measured {told}, {share:.0%} of the budget: {verdict(record)}"
    )


def summary(records: Sequence[Record]) -> str:
    """Return how many budgets hold."""
    wrong = [record for record in records if verdict(record) != "holds"]
    names = ", ".join(f"{r['model']} {r['batch']} x {r['imgsz']}px in {r['budget']} {verdict(r)}" for r in wrong)
    return f"{len(records) - len(wrong)} of {len(records)} budgets hold" + (f"; not: {names}" if wrong else "")
