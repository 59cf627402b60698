"""What a run leaves in its folder: results.csv, events.jsonl, TensorBoard files, results.png."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ullage.errors import DataError, StorageError
from ullage.train.events import EpochDone, Notice, RunEnded, RunStarted, StepDone
from ullage.train.plots import draw_results
from ullage.train.records import EventLog, ResultsPicture, ResultsTable, TensorBoard, read_results, record_listeners

METRICS = {"metrics/precision(B)": 0.5, "metrics/mAP50-95(B)": 0.25, "fitness": 0.3, "val/box_loss": 1.5}


def epoch_done(epoch: int, *, metrics: dict[str, float] | None = None, loss: float = 1.25) -> EpochDone:
    return EpochDone(
        epoch=epoch,
        losses={"box": loss, "cls": 2.5},
        metrics=METRICS if metrics is None else metrics,
        lr={"pg0": 0.01, "pg1": 0.02},
        seconds=10.0,
        eval_seconds=2.0,
        images_per_second=33.3333333,
        memory_bytes=1_234_567_890,
        is_best=True,
        predicted_bytes=1_100_000_000,
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_row_an_epoch_under_the_names_that_users_know(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    table(Notice("hello"))
    assert not (tmp_path / "results.csv").exists()
    table(epoch_done(0))
    table(epoch_done(1))
    rows = rows_of(tmp_path / "results.csv")
    assert rows[0] == {
        "epoch": "1", "time": "12", "train/box_loss": "1.25", "train/cls_loss": "2.5", "metrics/precision(B)": "0.5",
        "metrics/mAP50-95(B)": "0.25", "fitness": "0.3", "val/box_loss": "1.5", "lr/pg0": "0.01", "lr/pg1": "0.02",
        "seconds": "10", "eval_seconds": "2", "images_per_second": "33.3333", "peak_bytes_predicted": "1100000000",
        "peak_bytes_measured": "1234567890",
    }  # fmt: skip
    assert [row["time"] for row in rows] == ["12", "24"]


def test_a_run_that_goes_on_drops_the_epochs_that_it_repeats(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    table = ResultsTable(path)
    for epoch in range(5):
        table(epoch_done(epoch, loss=1.0))
    table = ResultsTable(path, first_epoch=3)
    assert [row["epoch"] for row in rows_of(path)] == ["1", "2", "3"]
    table(epoch_done(3, loss=9.0))
    assert [(row["epoch"], row["time"], row["train/box_loss"]) for row in rows_of(path)] == [
        ("1", "12", "1"), ("2", "24", "1"), ("3", "36", "1"), ("4", "48", "9"),
    ]  # fmt: skip


def test_a_new_run_in_an_old_folder_starts_an_empty_table(tmp_path: Path) -> None:
    ResultsTable(tmp_path / "results.csv")(epoch_done(0))
    table = ResultsTable(tmp_path / "results.csv")
    assert rows_of(tmp_path / "results.csv") == []
    table(epoch_done(0))
    assert len(rows_of(tmp_path / "results.csv")) == 1


def test_new_columns_are_added_to_old_rows_as_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultsTable(path)(epoch_done(0, metrics={}))
    table = ResultsTable(path, first_epoch=1)
    table(epoch_done(1))
    table(epoch_done(2, metrics={}))
    assert [row["fitness"] for row in rows_of(path)] == ["", "0.3", ""]
    assert [row.get("fitness") for row in read_results(path)[1]] == [None, 0.3, None]


def test_a_value_that_is_no_number_survives(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    table(epoch_done(0, loss=math.nan))
    assert math.isnan(read_results(tmp_path / "results.csv")[1][0]["train/box_loss"])
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "epoch,time\none,2\n", "epoch,time\n1,2,3\n"])
def test_a_damaged_table_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"results\.csv") as caught:
        ResultsTable(tmp_path / "results.csv", first_epoch=1)
    assert "\n" not in str(caught.value)


def test_every_event_is_one_line_of_json_on_the_disk_at_once(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    events = [
        Notice("Grüße"),
        RunStarted(3, 0, 10, ("box", "cls")),
        StepDone(0, 1, {"box": math.nan, "cls": 1 / 3}, 7, (320, 608), 12.5, 10**9, 1e-3),
        epoch_done(0),
        RunEnded("all epochs done", 3, 2, 60.0, {"best": Path("weights/best.pt")}),
    ]
    for count, event in enumerate(events, 1):
        log(event)
        lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
    read = [json.loads(line) for line in lines]
    assert [line["event"] for line in read] == ["Notice", "RunStarted", "StepDone", "EpochDone", "RunEnded"]
    assert read[0]["message"] == "Grüße"
    assert read[2]["losses"] == {"box": None, "cls": 0.333333}
    assert read[2]["size_hw"] == [320, 608]
    assert read[4]["files"] == {"best": "weights/best.pt"}
    assert all(line["unix_time"] > 1.6e9 for line in read)


def test_steps_in_quick_succession_do_not_fill_the_disk(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for batch in range(1000):
        log(StepDone(0, batch, {"box": 1.0}, 7, (320, 320), 12.5, 10**9, 1e-3))
    log(Notice("an event of another kind is never left out"))
    lines = (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 100
    assert "never left out" in lines[-1]


def test_the_log_goes_on_behind_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event":"Notice"}\n{"event":"Ste', encoding="utf-8")
    EventLog(path)(Notice("again"))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["message"] == "again"


def test_tensorboard_reads_the_scalars_and_hides_repeated_epochs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path)
    for epoch in range(3):
        board(epoch_done(epoch, loss=1.0))
    board(RunEnded("interrupted", 3, 2, 1.0))
    board = TensorBoard(tmp_path, first_epoch=2)
    board(epoch_done(2, loss=9.0))
    board(RunEnded("all epochs done", 3, 2, 1.0))
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert [(point.step, point.value) for point in reader.Scalars("train/box_loss")] == [(1, 1.0), (2, 1.0), (3, 9.0)]
    assert "epoch" not in reader.Tags()["scalars"]
    assert "metrics/mAP50-95(B)" in reader.Tags()["scalars"]


def test_the_picture_is_drawn_at_the_end_and_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    picture = ResultsPicture(table, tmp_path / "results.png")
    picture(RunEnded("interrupted", 0, -1, 1.0))
    assert not (tmp_path / "results.png").exists()  # nothing to draw
    for listener in (table, picture):
        listener(epoch_done(0))
    assert not (tmp_path / "results.png").exists()
    monkeypatch.setattr("ullage.train.records.REDRAW_SECONDS", -1.0)
    for listener in (table, picture):
        listener(epoch_done(1))
    assert (tmp_path / "results.png").exists()


@pytest.mark.parametrize("epochs", [1, 2, 600])
def test_the_picture_shows_every_loss_and_metric(tmp_path: Path, epochs: int) -> None:
    rows = []
    for epoch in range(epochs):
        row = {
            "epoch": epoch + 1.0,
            "time": 1.0,
            "train/box_loss": 1.0 / (epoch + 1),
            "val/box_loss": 2.0 / (epoch + 1),
        }
        rows.append(row | {"metrics/mAP50(B)": epoch / epochs, "fitness": epoch / epochs, "lr/pg0": 0.01})
    draw_results(rows, path=tmp_path / "r.png")
    pixels = np.asarray(Image.open(tmp_path / "r.png").convert("RGB")).astype(int)
    assert pixels.shape[1] > 600
    for colour in ((0x1F, 0x5F, 0xBF), (0xD9, 0x62, 0x2B)):  # training and validation are both on it
        assert (np.abs(pixels - colour).sum(-1) < 12).sum() > 20


def test_drawing_leaves_no_figure_open(tmp_path: Path) -> None:
    import sys

    draw_results([{"epoch": 1.0, "train/box_loss": 1.0}], path=tmp_path / "r.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_all_listeners_together(tmp_path: Path) -> None:
    listeners = record_listeners(tmp_path)
    for event in (
        Notice("a"),
        RunStarted(1, 0, 1, ("box", "cls")),
        epoch_done(0),
        RunEnded("all epochs done", 1, 0, 1.0),
    ):
        for listener in listeners:
            listener(event)
    names = {path.name.split(".out.")[0] for path in tmp_path.iterdir()}
    assert names == {"results.csv", "events.jsonl", "results.png", "events"}
    assert len(record_listeners(tmp_path, plots=False)) == len(listeners) - 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(StorageError, match="gone"):
        EventLog(gone / "events.jsonl")
    table = ResultsTable(gone / "results.csv")
    with pytest.raises(StorageError, match=r"results\.csv.*No such file") as caught:
        table(epoch_done(0))
    assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="file"):
        TensorBoard(tmp_path / "file")(epoch_done(0))
    draw = ResultsPicture(table, gone / "r.png")
    with pytest.raises(StorageError, match=r"r\.png"):
        draw(RunEnded("all epochs done", 1, 0, 1.0))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(StorageError, match="No space left on device"):
        log(Notice("no room"))
