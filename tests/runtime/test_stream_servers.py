"""Streams of real servers on this machine: RTSP and HTTP; killed, corrupt, silent, of changing size, and too fast."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from square_finder import scene
from stream_kit import HOST, HttpServer, RtspServer, transport_stream

from ullage.errors import DataError
from ullage.runtime import stream_hub
from ullage.runtime.live import LiveResults
from ullage.runtime.predictor import TorchPredictor, predict
from ullage.runtime.sinks import ResultSink
from ullage.runtime.stream_hub import StreamSettings
from ullage.runtime.video import VideoWriter, read_video


def stream(predictor: TorchPredictor, source: object, *, batch: int = 1, **settings: object) -> LiveResults:
    found = predict(predictor, source=source, imgsz=96, batch=batch, streams=StreamSettings(**settings))  # type: ignore[arg-type]
    assert isinstance(found, LiveResults)
    return found


@pytest.fixture
def fast_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_hub, "_FIRST_DELAY_S", 0.1)


@pytest.fixture
def rtsp(tmp_path: Path) -> Iterator[RtspServer]:
    pytest.importorskip("aio_rtsp_toolkit")
    folder = tmp_path / "served"
    folder.mkdir()
    with VideoWriter(folder / "door.mp4", fps=25) as writer:
        for number in range(50):
            writer.write(scene(64, 96, white=(16, 8 * (number % 8))), time_s=number / 25)
    server = RtspServer(folder)
    server.start()
    yield server
    server.kill()


def test_a_server_that_is_killed_and_comes_back(
    rtsp: RtspServer, predictor: TorchPredictor, fast_calls: None, tmp_path: Path
) -> None:
    results = stream(predictor, [rtsp.address("door.mp4")] * 2, batch=2)
    before = list(islice(results, 20))
    assert {one.path for one in before} == {f"rtsp://someone:***@{HOST}:{rtsp.port}/door.mp4?play_count=0"}
    assert sum(str(one) == "1 white square" for one in before) >= 18
    rtsp.kill()
    killed = time.monotonic()
    Thread(target=lambda: (time.sleep(0.5), rtsp.start())).start()
    lost: list[str] = []
    after: list[float] = []
    for one in results:
        lost += [stats.state for stats in results.stats()]
        reconnected = all(stats.reconnects == 1 for stats in results.stats())
        after += [one.time_s or 0.0] if one.stream == 0 and reconnected else []
        if len(after) == 10:
            break
        assert time.monotonic() - killed < 30
    results.close()
    assert after == sorted(after)
    assert after[0] > (before[-1].time_s or 0) + 0.4, "the time of the stream goes on while it is away"
    assert [stats.reconnects for stats in results.stats()] == [1, 1]


def test_a_slow_consumer_sees_what_is_new(rtsp: RtspServer, predictor: TorchPredictor) -> None:
    results = stream(predictor, rtsp.address("door.mp4"))
    ages = []
    for one in islice(results, 6):
        ages.append(time.time() - (one.received_at or 0))
        time.sleep(0.25)
    (stats,) = results.stats()
    results.close()
    assert max(ages[1:]) < 0.2, "25 frames a second come, and only the last is kept"
    assert stats.dropped >= 15
    assert 15 < stats.fps_in < 40


def test_bytes_that_are_no_video_in_the_middle(predictor: TorchPredictor) -> None:
    good, noise = transport_stream(frames=40), np.random.default_rng(0).bytes(40_000)
    middle = len(good) // 2
    server = HttpServer(lambda: iter([good[:middle], noise, good[middle:]]))
    results = stream(predictor, server.address, policy="oldest")
    found = list(islice(results, 35))
    (stats,) = results.stats()
    results.close()
    server.close()
    assert {one.orig_shape for one in found} == {(64, 96)}
    assert [one.time_s for one in found] == sorted(one.time_s or 0 for one in found)
    assert sum(str(one) == "1 white square" for one in found) >= 33
    assert stats.reconnects <= 1


def test_nothing_but_noise_is_given_up(predictor: TorchPredictor, fast_calls: None) -> None:
    noise = np.random.default_rng(0).bytes(200_000)
    server = HttpServer(lambda: iter([noise]))
    with pytest.raises(DataError, match=rf"no stream gives pictures: 'http://{HOST}.*/live': "):
        list(stream(predictor, server.address, reconnect_s=0.5))
    assert server.requests > 2, "one to ask what it is, then several calls"
    server.close()


def test_a_stream_that_changes_its_size(predictor: TorchPredictor, tmp_path: Path) -> None:
    parts = [transport_stream(frames=20), transport_stream(frames=20, start=20, size_hw=(96, 64))]
    server = HttpServer(lambda: iter(parts))
    results = stream(predictor, server.address, policy="oldest")
    shapes = []
    with ResultSink(tmp_path / "out") as sink:
        for one in islice(results, 38):
            shapes.append(one.orig_shape)
            sink.write(one)
    results.close()
    server.close()
    switch = shapes.index((96, 64))
    assert switch >= 19, "the last picture before it may still be in the decoder"
    assert shapes == [(64, 96)] * switch + [(96, 64)] * (38 - switch)
    sizes = [next(read_video(path)).image_HW3.shape[:2] for path in sorted((tmp_path / "out").glob("*.mp4"))]
    assert sorted(sizes) == [(64, 96), (96, 64)]
    assert sum(len(list(read_video(path))) for path in (tmp_path / "out").glob("*.mp4")) == 38


def test_a_server_that_falls_silent(predictor: TorchPredictor, fast_calls: None) -> None:
    def chunks() -> Iterator[bytes]:
        yield transport_stream(frames=15)
        time.sleep(1.5)

    server = HttpServer(chunks)
    results = stream(predictor, server.address, policy="oldest", timeout_s=0.4)
    found = list(islice(results, 20))
    (stats,) = results.stats()
    results.close()
    server.close()
    assert len(found) == 20
    assert stats.reconnects == 1


def test_motion_jpeg(predictor: TorchPredictor) -> None:
    def chunks() -> Iterator[bytes]:
        for number in range(300):
            file = io.BytesIO()
            Image.fromarray(scene(64, 96, white=(16, 8 * (number % 8)))).save(file, "JPEG", quality=95)
            yield b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + file.getvalue() + b"\r\n"
            time.sleep(0.005)

    server = HttpServer(chunks, kind="multipart/x-mixed-replace; boundary=frame")
    results = stream(predictor, server.address)
    found = list(islice(results, 8))
    results.close()
    server.close()
    assert {one.orig_shape for one in found} == {(64, 96)}
    assert {str(one) for one in found} == {"1 white square"}


def test_a_recording_on_a_server_ends(predictor: TorchPredictor, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "clip.mp4", fps=10) as writer:
        for number in range(12):
            writer.write(scene(64, 96, white=(16, 8 * (number % 8))), time_s=number / 10)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer((HOST, 0), handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    place = f"http://{HOST}:{server.server_address[1]}"
    results = stream(predictor, f"{place}/clip.mp4", policy="oldest")
    assert [one.video_frame for one in results] == list(range(12))
    assert results.stats()[0].state == "ended"
    with pytest.raises(DataError, match=r"gone.mp4': .*404"):
        list(stream(predictor, f"{place}/gone.mp4"))
    server.shutdown()
    server.server_close()


def test_nobody_answers(predictor: TorchPredictor, fast_calls: None) -> None:
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"'rtsp://u:\*\*\*@127.0.0.1:9/x': .*refused"):
        list(stream(predictor, "rtsp://u:secret@127.0.0.1:9/x", reconnect_s=0.3))
    assert time.monotonic() - begun < 5
