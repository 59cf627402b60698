"""Servers on this machine that stand for cameras, and streams that are made up."""

from __future__ import annotations

import http.server
import io
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from square_finder import scene

from ullage.runtime.stream_address import StreamAddress, network_stream
from ullage.runtime.stream_hub import StreamHub, StreamSettings
from ullage.runtime.stream_reader import Shot, StreamLost

HOST = "127.0.0.1"
Script = Callable[[Callable[[], bool]], Iterator[Shot]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class RtspServer:
    """An RTSP server (aio-rtsp-toolkit) in a process of its own, which plays the files of a folder without end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, name: str) -> str:
        return f"rtsp://someone:secret@{HOST}:{self.port}/{name}?play_count=0"

    def start(self) -> None:
        words = ("-d", str(self.folder), "-H", HOST, "-p", str(self.port), "-cp", str(free_port()))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server_demo", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((HOST, self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class HttpServer:
    """Sends what a function yields, with no length said, as cameras with a web server do."""

    def __init__(self, chunks: Callable[[], Iterator[bytes]], *, kind: str = "video/mp2t") -> None:
        self.requests = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.end_headers()
                try:
                    for chunk in chunks():
                        self.wfile.write(chunk)
                except OSError:
                    pass  # the reader has gone

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}/live"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def transport_stream(*, frames: int, size_hw: tuple[int, int] = (64, 96), start: int = 0, fps: int = 25) -> bytes:
    """An MPEG transport stream: a white square that moves 8 pixels a frame."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=fps)
        stream.width, stream.height, stream.pix_fmt = size_hw[1], size_hw[0], "yuv420p"
        stream.bit_rate, stream.gop_size = 2_000_000, 5
        for number in range(start, start + frames):
            image = scene(*size_hw, white=(16, 8 * (number % 8)))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def scripted(*scripts: Script) -> Callable[..., Iterator[Shot]]:
    """A reader whose every connection runs the next script of its stream, the last one again and again."""
    calls: dict[str, int] = {}

    def read(
        address: StreamAddress, *, on_damage: Callable[[], None], stopped: Callable[[], bool], timeout_s: float
    ) -> Iterator[Shot]:
        turn = calls.get(address.name, 0)
        calls[address.name] = turn + 1
        return scripts[min(turn, len(scripts) - 1)](stopped)

    return read


def shots(count: int, *, fps: float, size_hw: tuple[int, int] = (64, 96), then: str | None = None) -> Script:
    """``count`` pictures at a rate, told apart by the blue of their first pixel; ``then`` the stream is lost."""

    def play(stopped: Callable[[], bool]) -> Iterator[Shot]:
        begun = time.monotonic()
        for number in range(count):
            while (left := begun + number / fps - time.monotonic()) > 0:
                time.sleep(left)
            if stopped():
                return
            image = scene(*size_hw, white=(8, 8))
            image[0, 0, 0] = number % 256  # BGR, as OpenCV gives it
            yield Shot(image, number / fps, fps)
        if then is not None:
            raise StreamLost(then)

    return play


def hub_of(count: int, read: Callable[..., Iterator[Shot]], *, batch: int = 1, **settings: object) -> StreamHub:
    addresses = [network_stream(f"rtsp://camera/{number}") for number in range(count)]
    return StreamHub(addresses, settings=StreamSettings(**settings), batch=batch, read=read)  # type: ignore[arg-type]


def numbers(images: list[np.ndarray]) -> list[int]:
    return [int(image[0, 0, 2]) for image in images]
