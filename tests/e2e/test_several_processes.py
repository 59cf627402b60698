"""``device=cpu,cpu`` from the command line: a run in two processes, its death, its end, its resumption in one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e_kit import checkpoint, differing, notices, quick, run_here, words

# 8 images in batches of 2: four steps an epoch; ``last.pt`` after each of them
SETTINGS = {"epochs": 3, "batch": 2, "nbs": 2, "name": "run", "optimizer": "AdamW", "lr0": 0.001, "warmup_epochs": 0,
            "device": "cpu,cpu", "save_minutes": 1e-9, "workers": 0}  # fmt: skip


def start(data: Path, folder: Path, **changes: object) -> subprocess.Popen[str]:
    call = words("train", quick(data, **{**SETTINGS, **changes}))
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen([sys.executable, "-m", "ullage", *call], cwd=folder, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def workers_of(launcher: int) -> list[int]:
    """The processes of a run in the order of their ranks, as Linux shows them."""
    found: dict[int, int] = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            stat = (place / "stat").read_text().rpartition(")")[2].split()
            environment = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ranks = [int(entry[5:]) for entry in environment if entry.startswith(b"RANK=")]
        if ranks and int(stat[1]) == launcher:
            found[ranks[0]] = int(place.name)
    return [found[rank] for rank in sorted(found)]


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of the n-th step, or of a later one, is there."""
    last, end = folder / "runs/detect/run/weights/last.pt", time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if last.exists():
            position = checkpoint(last)["train"]["position"]
            if 4 * position["epoch"] + position["batch"] >= step:
                return
        time.sleep(0.02)
    pytest.fail(
        f"no checkpoint of step {step}: {process.communicate()[1] if process.poll() is not None else 'too slow'}"
    )


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    process = start(data, home)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert "on 2 processes (cpu,cpu)" in out
    assert out.count("results in") == 2, "one process speaks"
    return home / "runs/detect/run"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_process_does_not_end_the_run(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = start(data, tmp_path)
    wait_for_step(tmp_path, 3, process)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    run = tmp_path / "runs/detect/run"
    assert "process 1 ended by SIGKILL: started again, from the last checkpoint" in notices(run)
    assert differing(run / "weights/last.pt", undisturbed / "weights/last.pt") == [], "as if nothing had happened"
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_stopped_run_goes_on_in_one_process(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(data, tmp_path)
    wait_for_step(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert err == "ullage: interrupted; go on with: ullage train resume model=runs/detect/run/weights/last.pt\n"
    monkeypatch.chdir(tmp_path)
    last = "runs/detect/run/weights/last.pt"
    assert run_here(["train", "resume", f"model={last}", "device=cpu"], capsys).status == 0
    payload = checkpoint(tmp_path / last)
    assert payload["train"]["position"]["epoch"] == 3
    assert not any(key.startswith("module.") for key in payload["weights"])


def test_an_error_of_all_is_one_line(data: Path, tmp_path: Path) -> None:
    process = start(data, tmp_path, memory="1MB")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert line.startswith("ullage: nothing fits 1.00 MB")
    assert not (tmp_path / "runs/detect/run").exists()


@pytest.mark.parametrize(
    ("device", "complaint"),
    [("0,1", "no CUDA device"), ("cpu,0", "no CUDA device"), ("cpu,tpu", "not a device"), ("cpu,mps", "")],
)
def test_devices_that_cannot_be(
    device: str, complaint: str, data: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint in run_here(words("train", quick(data, device=device)), capsys).complaint
    assert not (here / "runs").exists()
