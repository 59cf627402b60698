"""Two machines in two network namespaces, their link cut for a while: ``exact.py nodes`` (Linux, root)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

CARDS = {"ulla": ("ulva", "10.77.0.1"), "ullb": ("ulvb", "10.77.0.2")}
PORT = 29477
WORDS = ("model=yolo11n", "data=demo", "imgsz=64", "batch=8", "nbs=8", "fraction=0.1", "workers=0", "plots=False",
         "val=False", "verbose=False")  # fmt: skip


def ip(*words: str, check: bool = True) -> None:
    """Run ``ip``."""
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextlib.contextmanager
def two_machines() -> Generator[None]:
    """Make two network namespaces with a cable between them, for as long as the block lasts."""
    for name in CARDS:
        ip("netns", "del", name, check=False)
        ip("netns", "add", name)
    try:
        ip("link", "add", "ulva", "type", "veth", "peer", "name", "ulvb")
        for name, (card, address) in CARDS.items():
            ip("link", "set", card, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", card)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", card, "up")
        yield
    finally:
        for name in CARDS:
            ip("netns", "del", name, check=False)


def train_on(name: str, project: Path, epochs: int) -> subprocess.Popen[str]:
    """Start the launcher of one machine."""
    card, address = CARDS[name]
    first = next(iter(CARDS.values()))[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
                f"--rdzv-endpoint={first}:{PORT}", f"--rdzv-conf=is_host={str(address == first).lower()}",
                "--rdzv-id=nodes", "--max-restarts=3", f"--local-addr={address}"]  # fmt: skip
    call = ["-m", "ullage", "train", *WORDS, f"epochs={epochs}", "device=cpu", "name=nodes", f"project={project}",
            "save_minutes=0.02"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": card, "TP_SOCKET_IFNAME": card,
                   "TORCH_CPP_LOG_LEVEL": "ERROR"}  # fmt: skip
    return subprocess.Popen(["ip", "netns", "exec", name, sys.executable, *launcher, *call], env=environment, text=True)


def cut_and_mend(project: Path, seconds: float, epochs: int) -> tuple[Path, float]:
    """Train on both machines, cut the cable once it trains; return the last checkpoint and the longest silence."""
    last, silence, changed = project / "nodes" / "weights" / "last.pt", 0.0, 0
    with two_machines():
        both = [train_on(name, project, epochs) for name in CARDS]
        while not last.exists():
            if any(process.poll() for process in both):
                raise SystemExit("a machine could not begin")
            time.sleep(0.2)
        time.sleep(3)
        ip("-n", "ulla", "link", "set", "ulva", "down")
        heard = cut = time.monotonic()
        is_cut = True
        while any(process.poll() is None for process in both):
            now, stamp = time.monotonic(), last.stat().st_mtime_ns
            if is_cut and now - cut >= seconds:
                ip("-n", "ulla", "link", "set", "ulva", "up")
                is_cut = False
            if stamp != changed:
                silence, heard, changed = max(silence, now - heard), now, stamp
            time.sleep(0.1)
    if any(process.returncode for process in both):
        raise SystemExit(f"the machines ended with {[process.returncode for process in both]}")
    return last, silence


def train_here(project: Path, epochs: int) -> Path:
    """Train the same in two processes of this machine."""
    call = ["-m", "ullage", "train", *WORDS, f"epochs={epochs}", "device=cpu,cpu", "name=here", f"project={project}"]
    subprocess.run([sys.executable, *call], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return project / "here" / "weights" / "last.pt"
