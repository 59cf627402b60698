"""Many streams on few cores: does one starve, does memory grow, does the latency hold? One line each.

    python bench/streams.py                              # 16 streams, 20,000 results: minutes
    python bench/streams.py --streams 4 --frames 400     # a glance

The streams are simulated: each thread decodes the same small MPEG transport stream again and again, at the rate of a
camera; everything behind is what ``predict`` uses. The network has new weights, which finds nothing sure: what is
measured is who is served and when, not what is found.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from machine import busy_note, describe_machine, usable_cores
from records import Record, append
from ullage.runtime.live import LiveResults
from ullage.runtime.passes import Pass
from ullage.runtime.postprocess import Outputs, detections_from_outputs
from ullage.runtime.predictor import TorchPredictor
from ullage.runtime.stream_address import StreamAddress, network_stream
from ullage.runtime.stream_hub import StreamHub, StreamSettings
from ullage.runtime.stream_reader import Shot
from ullage.zoo.registry import build

RESULTS = Path(__file__).parent / "results" / "streams.jsonl"
FAIR, GROWTH_MB = 0.8, 16.0
CLIP_FRAMES, SIZE_HW = 50, (180, 320)


def clip() -> bytes:
    """Return two seconds of moving noise as a transport stream."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (SIZE_HW[0] // 20, SIZE_HW[1] // 20, 3), np.uint8)
    picture = coarse.repeat(20, 0).repeat(20, 1)
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = SIZE_HW[1], SIZE_HW[0], "yuv420p"
        for number in range(CLIP_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 4 * number, 1), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def camera(fps: float) -> Callable[..., Iterator[Shot]]:
    content = clip()

    def read(
        address: StreamAddress, *, on_damage: Callable[[], None], stopped: Callable[[], bool], timeout_s: float
    ) -> Iterator[Shot]:
        number = 0
        begun = time.monotonic() + hash(address.name) % 100 / 100 / fps  # cameras are not in step
        while True:
            with av.open(io.BytesIO(content)) as container:
                for frame in container.decode(video=0):
                    time.sleep(max(begun + number / fps - time.monotonic(), 0))
                    if stopped():
                        return
                    yield Shot(frame, number / fps, fps)
                    number += 1

    return read


@dataclass(frozen=True)
class Asked:
    """What is measured."""

    network: str
    imgsz: int
    streams: int
    frames: int
    fps: float
    batch: int
    latency_ms: float


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(asked: Asked) -> Record:
    predictor = TorchPredictor(build(asked.network), names=[str(number) for number in range(80)])

    def select(outputs: Outputs) -> list:
        return detections_from_outputs(outputs, conf=0.25, iou=0.7, max_det=300)

    addresses = [network_stream(f"sim://{number:02}") for number in range(asked.streams)]
    hub = StreamHub(
        addresses,
        settings=StreamSettings(latency_ms=asked.latency_ms),
        batch=asked.batch,
        read=camera(asked.fps),
    )
    results = LiveResults(hub, [Pass(predictor, imgsz=asked.imgsz, select=select)])
    latencies_ms, counts = np.zeros(asked.frames, np.float32), np.zeros(asked.streams, np.int64)
    begun, most_mb, series_mb = time.monotonic(), [0.0, 0.0], list[int]()
    for done, one in enumerate(results, 1):
        latencies_ms[done - 1] = one.latency_ms
        counts[one.stream] += 1
        if done % 20 == 0:
            half = 2 * done > asked.frames
            most_mb[half] = max(most_mb[half], resident_mb())
        if done % max(asked.frames // 20, 1) == 0:
            series_mb.append(round(resident_mb()))
        if done == asked.frames:
            break
    spent_s = time.monotonic() - begun
    stats = results.stats()
    results.close()
    return {
        **vars(asked),
        "seconds": spent_s,
        "slowest": int(counts.min()),
        "mean": float(counts.mean()),
        "most_mb_by_half": most_mb,
        "series_mb": series_mb,
        "latency_ms": {name: float(np.percentile(latencies_ms, q)) for name, q in (("50", 50), ("95", 95), ("99", 99))},
        "dropped": sum(one.dropped for one in stats),
        "read": sum(one.read for one in stats),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def lines(record: Record) -> list[str]:
    first, second = record["most_mb_by_half"]
    share, grown = record["slowest"] / record["mean"], second - first
    p95 = record["latency_ms"]["95"]
    return [
        f"{record['streams']} streams of {record['fps']:g} frames/s, {record['network']} at {record['imgsz']} px: "
        f"{record['frames'] / record['seconds']:.0f} results/s, {record['dropped']} of {record['read']} frames dropped",
        f"{_mark(share >= FAIR)} fairness: the slowest stream got {share:.2f} of the mean (at least {FAIR})",
        f"{_mark(grown <= GROWTH_MB)} memory: at most {first:.0f} MB in the first half of {record['frames']} results, "
        f"{second:.0f} MB in the second ({grown:+.1f} MB, at most {GROWTH_MB:g})",
        f"{_mark(p95 <= record['latency_ms_asked'])} latency: median {record['latency_ms']['50']:.0f} ms, 95 % within "
        f"{p95:.0f} ms, 99 % within {record['latency_ms']['99']:.0f} ms (asked: {record['latency_ms_asked']:g} ms)",
    ]


def _mark(good: bool) -> str:
    return "holds:" if good else "FAILS:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="yolo11n")
    parser.add_argument("--imgsz", type=int, default=96)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--fps", type=float, default=15.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--latency", type=float, default=250.0)
    parser.add_argument("--threads", type=int, default=max(usable_cores() // 2, 1), help="the rest is for the decoders")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    note = busy_note()
    asked = Asked(
        network=arguments.network,
        imgsz=arguments.imgsz,
        streams=arguments.streams,
        frames=arguments.frames,
        fps=arguments.fps,
        batch=arguments.batch,
        latency_ms=arguments.latency,
    )
    record = measure(asked)
    record |= {"latency_ms_asked": asked.latency_ms, "machine": describe_machine(torch.get_num_threads())}
    append(arguments.results, {"table": "streams", **record})
    print("\n".join(part for part in (note, record["machine"], *lines(record)) if part))


if __name__ == "__main__":
    main()
