"""Downloads against a server on this machine: what is asked for, what is refused, and what a broken line does."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ullage.errors import StorageError, WeightsError
from ullage.zoo import download
from ullage.zoo.download import OFFICIAL_FILES, fetch_official, is_official_name, user_cache_folder

DATA = b"PK\x03\x04" + bytes(range(256)) * 2000


class Server(ThreadingHTTPServer):
    """Serves one body under every path; the attributes say how badly."""

    body = DATA
    tag: str | None = '"one"'
    break_after: int | None = None  # bytes of the first answer before the line breaks
    failures = 0  # how many answers are 503 first
    status = 200
    location: str | None = None
    tell_length = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked))
        if server.location is not None:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        if server.failures or server.status != 200:
            server.failures -= 1
            self.send_error(503 if server.status == 200 else server.status)
            return
        resumes = asked is not None and self.headers.get("If-Range") == server.tag
        start = int(asked.removeprefix("bytes=").rstrip("-")) if resumes and asked else 0
        self.send_response(206 if resumes else 200)
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.tell_length:
            self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end, server.break_after = server.break_after, None
        self.wfile.write(server.body[start:end])


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)


@pytest.fixture
def fetch(server: Server, tmp_path: Path):
    """Fetch from the test server into tmp_path/weights; the lines that were said are in fetch.said."""
    (tmp_path / "weights").mkdir()

    def call(name: str = "yolo11n.pt", **options):
        call.said.clear()
        options = {"base_url": server.url, "cache_folder": tmp_path / "cache", "timeout_s": 5.0} | options
        return fetch_official(name, tmp_path / "weights", say=call.said.append, **options)

    call.said = []
    return call


def test_a_known_file_arrives_with_its_checksum(fetch, server: Server, tmp_path: Path) -> None:
    steps: list[tuple[int, int | None]] = []
    path = fetch("yolov12n.pt", progress=lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "weights" / "yolov12n.pt"
    assert path.read_bytes() == DATA
    assert server.requests == [("/files/yolov12n.pt", None)]
    assert steps[-1] == (len(DATA), len(DATA))
    checksum = hashlib.sha256(DATA).hexdigest()
    assert any(checksum in line and "first download" in line for line in fetch.said)
    assert json.loads((tmp_path / "cache" / "checksums.json").read_text()) == {"yolov12n.pt": checksum}
    assert [entry.name for entry in path.parent.iterdir()] == ["yolov12n.pt"]


def test_a_file_on_disk_needs_no_network(fetch, server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights" / "yolo11n.pt").write_bytes(b"mine")
    assert fetch().read_bytes() == b"mine"
    assert server.requests == []
    assert fetch.said == []


def test_a_changed_file_is_refused(fetch, server: Server) -> None:
    path = fetch()
    path.unlink()
    fetch()
    assert any("as at the first download" in line for line in fetch.said)
    path.unlink()
    server.body = DATA + b"x"
    with pytest.raises(WeightsError, match="at the first download it was"):
        fetch()
    assert not list(path.parent.iterdir())
    assert fetch("yolo11s.pt").exists(), "each file has its own checksum"


def test_a_published_checksum_counts_from_the_start(fetch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = OFFICIAL_FILES["yolo11n.pt"][0]
    monkeypatch.setitem(OFFICIAL_FILES, "yolo11n.pt", (url, "0" * 64))
    with pytest.raises(WeightsError, match="published is 000"):
        fetch()
    monkeypatch.setitem(OFFICIAL_FILES, "yolo11n.pt", (url, hashlib.sha256(DATA).hexdigest()))
    assert fetch().exists()
    assert "as published" in fetch.said[-1]


@pytest.mark.parametrize("tag", ['"one"', None])
def test_a_broken_line_is_resumed_or_restarted(fetch, server: Server, tag: str | None) -> None:
    server.tag, server.break_after = tag, 100_000
    assert fetch().read_bytes() == DATA
    assert server.requests[1:] == [("/files/yolo11n.pt", "bytes=100000-" if tag else None)]


def test_a_file_that_changed_in_between_is_restarted(fetch, server: Server) -> None:
    class Changing(Handler):
        def do_GET(self) -> None:
            super().do_GET()
            self.server.body, self.server.tag = DATA[:4] + bytes(700_000), '"two"'

    server.RequestHandlerClass = Changing
    server.break_after = 100_000
    assert fetch().read_bytes() == DATA[:4] + bytes(700_000)


def test_a_busy_server_is_asked_again(fetch, server: Server) -> None:
    server.failures = 2
    assert fetch().read_bytes() == DATA
    assert len(server.requests) == 3


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 3)])
def test_a_refusal_says_where_it_looked_and_what_to_do(
    fetch, server: Server, tmp_path: Path, status: int, requests: int
) -> None:
    server.status = status
    with pytest.raises(WeightsError) as caught:
        fetch()
    text = str(caught.value)
    for part in (
        f"answered {status}",
        str(tmp_path / "weights"),
        server.url + "/yolo11n.pt",
        "put it into that folder",
    ):
        assert part in text
    assert "\n" not in text
    assert len(server.requests) == requests
    assert not list((tmp_path / "weights").iterdir())


def test_without_a_network(fetch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        with pytest.raises(WeightsError, match=r"is not in .*weights.*failed: .*refused.*Check the network"):
            fetch(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}")


def test_a_silent_server(fetch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(WeightsError, match="timed out"):
            fetch(base_url=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05)


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><p>Please log in</p>", b""])
def test_a_login_page_is_no_weight_file(fetch, server: Server, tmp_path: Path, body: bytes) -> None:
    server.body = body
    with pytest.raises(WeightsError, match="no weight file"):
        fetch()
    assert not (tmp_path / "cache").exists()
    assert not list((tmp_path / "weights").iterdir())


@pytest.mark.parametrize("tell_length", [True, False])
def test_a_file_that_is_too_large(fetch, server: Server, tmp_path: Path, tell_length: bool) -> None:
    server.tell_length = tell_length
    with pytest.raises(WeightsError, match=r"more than|at most"):
        fetch(max_bytes=1000)
    assert not list((tmp_path / "weights").iterdir())


@pytest.mark.parametrize("target", ["http://example.invalid/x.pt", "file:///etc/passwd", "ftp://127.0.0.1/x.pt"])
def test_redirects_to_other_kinds_of_address(fetch, server: Server, target: str) -> None:
    server.location = target
    with pytest.raises(WeightsError, match=r"https|failed"):
        fetch()
    assert len(server.requests) == 1


@pytest.mark.parametrize("base_url", ["http://example.invalid/", "ftp://127.0.0.1/", "file:///tmp", "nonsense"])
def test_only_https(fetch, base_url: str) -> None:
    with pytest.raises(WeightsError, match="https"):
        fetch(base_url=base_url)


def test_every_known_file_is_https_and_named_as_it_is() -> None:
    assert len(OFFICIAL_FILES) == 15
    for name, (url, _) in OFFICIAL_FILES.items():
        assert url.startswith("https://github.com/")
        assert url.endswith("/" + name)


@pytest.mark.parametrize("name", ["yolo11.pt", "yolov11n.pt", "../yolo11n.pt", "resnet50.pt", "yolo11n"])
def test_unknown_names_are_never_asked_for(fetch, server: Server, name: str) -> None:
    assert not is_official_name(name)
    with pytest.raises(WeightsError, match="no known official weight file"):
        fetch(name)
    assert server.requests == []


def test_the_nearest_name_is_suggested(fetch) -> None:
    with pytest.raises(WeightsError, match=r"Did you mean 'yolov12n\.pt'"):
        fetch("yolov12-n.pt")


def test_folders_that_are_missing_or_in_the_way(fetch, server: Server, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        fetch_official("yolo11n.pt", tmp_path / "nowhere", base_url=server.url, say=fetch.said.append)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert fetch().exists()
    assert "could not be remembered" in fetch.said[-1]


@pytest.mark.parametrize("text", ["[]", "{", "\udcff"])
def test_damaged_checksums_are_told(fetch, tmp_path: Path, text: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "checksums.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match="repair or remove"):
        fetch()


def test_the_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert user_cache_folder().name == "ullage"
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert user_cache_folder() == tmp_path / "ullage"
