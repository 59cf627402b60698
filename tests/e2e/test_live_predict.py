"""``ullage predict`` on streams, from the command line: saving, Ctrl-C, statistics."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from e2e_kit import Outcome, start_apart, words

from ullage.runtime.video import VideoWriter, read_video

sys.path.append(str(Path(__file__).resolve().parents[1] / "runtime"))
from stream_kit import HttpServer, transport_stream

Run = Callable[..., Outcome]


@pytest.fixture
def camera() -> Iterator[HttpServer]:
    """A camera that sends 25 frames a second as long as somebody watches."""

    def chunks() -> Iterator[bytes]:
        content = transport_stream(frames=25)
        while True:
            for start in range(0, len(content), len(content) // 25):
                yield content[start : start + len(content) // 25]
                time.sleep(0.04)

    server = HttpServer(chunks)
    yield server
    server.close()


def test_ctrl_c_ends_a_stream_with_whole_files_and_statistics(whole_run: Path, camera: HttpServer, here: Path) -> None:
    settings = {"model": whole_run / "weights/best.pt", "source": camera.address, "imgsz": 64, "device": "cpu"}
    call = words("predict", {**settings, "save": True, "save_jsonl": True, "name": "door", "policy": "latest"})
    program = start_apart(call, folder=here)
    lines, deadline = here / "runs/detect/door/results.jsonl", time.monotonic() + 60
    while not lines.exists() or len(lines.read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    program.send(signal.SIGINT)
    outcome = program.wait()
    assert outcome.status == 130, outcome.err
    assert outcome.err.splitlines()[-1].startswith("ullage: interrupted")
    told = outcome.out.splitlines()[-1]
    assert told.startswith(f"{camera.address}: ")
    assert " frames, " in told
    assert " latency " in told
    count = len(lines.read_text().splitlines())
    assert all(json.loads(line)["stream"] == 0 for line in lines.read_text().splitlines())
    assert len(list(read_video(here / "runs/detect/door/live.mp4"))) in (count, count - 1)


def test_a_list_of_streams(whole_run: Path, here: Path, ullage: Run) -> None:
    for name in ("a", "b"):
        with VideoWriter(here / f"{name}.mp4", fps=10) as writer:
            for number in range(3):
                writer.write(np.full((48, 64, 3), 40 * number, np.uint8), time_s=number / 10)
    (here / "doors.streams").write_text("a.mp4\nb.mp4\n")
    best = whole_run / "weights/best.pt"
    outcome = ullage("predict", model=best, source="doors.streams", imgsz=64, device="cpu,cpu", batch=2, save=True)
    assert outcome.status == 0, outcome.err
    out = outcome.out.splitlines()
    assert sum("frame" in line and ": 48x64, " in line for line in out) == 6
    assert [line.split(",")[0] for line in out[-3:-1]] == [
        "a.mp4: ended", "b.mp4: ended",
    ]  # fmt: skip
    assert out[-1].startswith("6 frames done, saved in ")
