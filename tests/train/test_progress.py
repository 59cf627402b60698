"""The console: what users of this field expect to see, live in a terminal and plain in a log."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ullage.train import progress
from ullage.train.events import EpochDone, Notice, RunEnded, RunStarted, StepDone
from ullage.train.progress import ConsoleProgress

LOSSES = {"box": 1.234, "cls": 2.345, "dfl": 1.1}
METRICS = {
    "metrics/precision(B)": 0.8, "metrics/recall(B)": 0.7, "metrics/mAP50(B)": 0.75, "metrics/mAP50-95(B)": 0.5,
    "fitness": 0.525, "val/box_loss": 1.0,
}  # fmt: skip


def step(epoch: int, batch: int, size_hw: tuple[int, int] = (320, 320)) -> StepDone:
    return StepDone(epoch, batch, LOSSES, batch * 100, size_hw, 45.26, 1_250_000_000, 0.01, 900_000_000)


def epoch_done(epoch: int, *, best: bool = True, metrics: dict[str, float] | None = None) -> EpochDone:
    return EpochDone(
        epoch, LOSSES, METRICS if metrics is None else metrics, {"pg0": 0.01}, 65.0, 3.2, 44.0, 10**9, best
    )


def play(width: int, *, terminal: bool, epochs: int = 2, batches: int = 20, seconds_limit: float | None = None) -> str:
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=terminal, color_system=None, highlight=False)
    show = ConsoleProgress(console)
    show(Notice("a notice [with brackets]"))
    show(RunStarted(epochs, 0, batches, tuple(LOSSES), seconds_limit))
    for epoch in range(epochs):
        for batch in range(1, batches + 1):
            show(step(epoch, batch))
        show(epoch_done(epoch, best=epoch == 0))
    show(RunEnded("all epochs done", epochs, 0, 136.0, {"best": Path(__file__), "last": Path("gone.pt")}))
    return output.getvalue()


def test_a_log_gets_plain_lines_and_few() -> None:
    text = play(80, terminal=False, epochs=2)
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) == 1 + 1 + 2 * 2 + 1 + 1
    assert lines[0] == "a notice [with brackets]"
    for name in ("Epoch", "Memory", "Planned", "box", "cls", "dfl", "Instances", "Size", "Images/s"):
        assert name in lines[1]
    assert lines[2].split() == [
        "1/2",
        "1.00",
        "GB",
        "900",
        "MB",
        "1.234",
        "2.345",
        "1.1",
        "2,000",
        "320",
        "44.0",
        "1:05",
    ]
    assert "P 0.800   R 0.700   mAP50 0.750   mAP50-95 0.500   best so far" in lines[3]
    assert "best so far" not in lines[5]
    assert lines[6] == "2 epochs in 2:16 (all epochs done), the best was epoch 1"
    assert str(Path(__file__)) in lines[7]  # a file that is not there is not promised


def test_columns_stand_under_their_titles() -> None:
    lines = play(200, terminal=False, epochs=1).splitlines()
    for title, value in (
        ("box", "1.234"),
        ("dfl", "1.1"),
        ("Instances", "2,000"),
        ("Size", "320"),
        ("Images/s", "44.0"),
    ):
        assert lines[1].index(title) + len(title) == lines[2].index(value) + len(value)


def test_small_losses_stay_apart() -> None:
    output = io.StringIO()
    show = ConsoleProgress(Console(file=output, width=120, force_terminal=False))
    show(RunStarted(1, 0, 1, ("box", "cls", "dfl")))
    row = show._row(replace(step(0, 1), losses={"box": 0.07479, "cls": 0.3466, "dfl": 0.002598}))
    assert row.split()[5:8] == ["0.075", "0.3466", "0.003"]


def test_a_long_epoch_speaks_up_in_a_log_at_most_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    output = io.StringIO()
    show = ConsoleProgress(Console(file=output, width=120, force_terminal=False))
    show(RunStarted(3, 0, 1000, tuple(LOSSES)))
    for batch in range(1, 1001):
        now[0] += 10.0
        show(step(0, batch))
    lines = [line for line in output.getvalue().splitlines() if "left" in line]
    assert len(lines) == 3
    assert [line.split("   ")[-1].split()[0] for line in lines] == ["25%", "50%", "75%"]
    assert "2:05:00 left, run 7:38:20" in lines[0]  # 750 and 2,750 batches of 10 s


def test_a_terminal_gets_a_live_line_with_a_bar_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", clock)
    text = play(140, terminal=True, epochs=1)
    assert re.search(r"50% 0:\d\d left, run 0:\d\d", text)
    assert "judging ..." in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor comes back


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_live_line_never_wraps(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.0)
    text = play(width, terminal=True)
    for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)):
        if "%" in line:
            assert len(line) <= width


def test_a_narrow_terminal_still_shows_progress_and_time() -> None:
    clean = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", play(80, terminal=True))
    assert "100% judging" in clean
    assert "1.234" in clean


def test_a_failed_run_gives_the_cursor_back() -> None:
    output = io.StringIO()
    show = ConsoleProgress(Console(file=output, width=100, force_terminal=True))
    show(RunStarted(1, 0, 10, tuple(LOSSES)))
    show(step(0, 1))
    show.close()
    show.close()
    assert output.getvalue().count("\x1b[?25l") == output.getvalue().count("\x1b[?25h") == 1


def test_a_run_by_time_counts_epochs_without_a_total_and_sizes_are_named_height_first() -> None:
    assert re.search(r"^ +1 ", play(120, terminal=False, epochs=1, seconds_limit=60.0), re.MULTILINE)
    output = io.StringIO()
    show = ConsoleProgress(Console(file=output, width=120, force_terminal=False))
    show(RunStarted(1, 0, 1, tuple(LOSSES)))
    show(step(0, 1, size_hw=(320, 608)))
    show(epoch_done(0, metrics={}))
    assert "320x608" in output.getvalue()
    assert "mAP50" not in output.getvalue()  # nothing was judged


def test_a_resumed_epoch_estimates_from_this_session_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    output = io.StringIO()
    show = ConsoleProgress(Console(file=output, width=140, force_terminal=False))
    show(RunStarted(10, 4, 100, tuple(LOSSES)))
    for batch in range(41, 61):
        now[0] += 30.0
        show(step(4, batch))
    line = next(line for line in output.getvalue().splitlines() if "left" in line)
    left = re.search(r"(\d+):(\d\d) left", line)
    assert left
    batch = round(int(re.search(r"(\d+)%", line)[1]))  # type: ignore[index]
    assert int(left[1]) * 60 + int(left[2]) == (100 - batch) * 30


def test_one_epoch_is_singular() -> None:
    assert "1 epoch in" in play(120, terminal=False, epochs=1)
