"""The memory engine in numbers: one line a combination, one line in all. What is in the results is not redone.

    python bench/memory.py predict      # prediction against two measurements of a real step
    python bench/memory.py fidelity     # bitwise techniques: every bit of ten steps
    python bench/memory.py savings      # what is kept, and the peak, against plain training (traces only)
    python bench/memory.py times        # the time of each technique, and of an engine that does nothing
    python bench/memory.py peer --peer-python .venv-peer/bin/python
    python bench/memory.py budgets      # plans for 1, 1.5, 2 and 3 GB, and what their steps needed
    python bench/memory.py big          # one image of 2,048 px in 2.5 GB

``times`` and ``peer`` take times: nothing else may run meanwhile. The others count bytes and compare bits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from machine import busy_note, describe_machine, usable_cores
from memory_tables import budgets, fidelity, peer, predict, savings, times
from records import Record, append, find, read_records

RESULTS = Path(__file__).parent / "results" / "memory.jsonl"


@dataclass(frozen=True)
class Table:
    """One question.

    Attributes:
        combinations: What is asked.
        measure: Answers one combination.
        line: Tells an answer.
        summary: Tells them all.
        timed: Whether times matter, so that the machine must be quiet.
    """

    combinations: Callable[[], list[Record]]
    measure: Callable[[Record, Any], Record]
    line: Callable[[Record], str]
    summary: Callable[[Sequence[Record]], str]
    timed: bool = False


TABLES = {
    "predict": Table(predict.combinations, predict.measure, predict.line, predict.summary),
    "fidelity": Table(fidelity.combinations, fidelity.measure, fidelity.line, fidelity.summary),
    "savings": Table(savings.combinations, savings.measure, savings.line, savings.summary),
    "times": Table(times.combinations, times.measure, times.line, times.summary, timed=True),
    "peer": Table(peer.combinations, peer.measure, peer.line, peer.summary, timed=True),
    "budgets": Table(budgets.combinations, budgets.measure, budgets.line, budgets.summary),
    "big": Table(budgets.big, budgets.measure, budgets.line, budgets.summary),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("--only", nargs="+", default=[], metavar="KEY=VALUE",
                        help="only combinations with these values, as in --only model=yolo11n imgsz=320")  # fmt: skip
    parser.add_argument("--threads", type=int, default=usable_cores(), help="threads of a tensor operation, both sides")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps a side")
    parser.add_argument("--no-real", action="store_true", help="budgets, big: only plan, run nothing")
    parser.add_argument("--peer-python", help="Python of the peer's environment")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure what is in the results already once more")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    table = TABLES[options.table]
    keys = [{"table": options.table, **key} for key in selected(table.combinations(), options.only)]
    print(f"{describe_machine(options.threads)}; torch {torch.__version__}", flush=True)
    if table.timed and (note := busy_note()):
        print(note, flush=True)
    records = [answer(table, key, options) for key in keys]
    print(table.summary(records), flush=True)


def answer(table: Table, key: Record, options: argparse.Namespace) -> Record:
    """Return the record of one combination, measured now unless it is there already; print its line."""
    record = None if options.again else find(read_records(options.results), key)
    if record is None:
        asked = {name: value for name, value in key.items() if name != "table"}
        record = {**key, **table.measure(asked, options), "torch": torch.__version__}
        if not options.no_real:
            append(options.results, record)
    print(table.line(record), flush=True)
    return record


def selected(keys: Sequence[Record], wanted: Sequence[str]) -> list[Record]:
    """Return the combinations with the wanted values.

    Raises:
        SystemExit: A condition is not KEY=VALUE with a key of this table, or nothing is left.
    """
    conditions: list[tuple[str, str]] = []
    for text in wanted:
        name, equals, value = text.partition("=")
        if not equals or name not in keys[0]:
            raise SystemExit(f"--only {text}: write KEY=VALUE with a KEY of {', '.join(keys[0])}")
        conditions.append((name, value))
    names = {name for name, _ in conditions}
    found = [key for key in keys if all(any(str(key[n]) == v for m, v in conditions if m == n) for n in names)]
    if not found:
        raise SystemExit(f"--only {' '.join(wanted)} leaves nothing of {len(keys)} combinations")
    return found


if __name__ == "__main__":
    main()
