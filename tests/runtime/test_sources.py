"""Everything that people point a detector at."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ullage.errors import ConfigError, DataError
from ullage.runtime import download
from ullage.runtime.sources import LiveSource, open_source
from ullage.runtime.video import VideoWriter


def paths(source: object) -> list[str]:
    return [Path(frame.path).name for frame in open_source(source)]


def save(
    path: Path, size_wh: tuple[int, int] = (12, 8), colour: object = (200, 10, 10), mode: str = "RGB", **options: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size_wh, colour).save(path, **options)  # pyright: ignore
    return path


def test_file_as_text_and_path(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png")
    for source in (file, str(file)):
        (frame,) = open_source(source)
        assert frame.image_HW3.shape == (8, 12, 3)
        assert frame.image_HW3[0, 0].tolist() == [200, 10, 10]
        assert (frame.path, frame.index, frame.video_frame) == (str(file), 0, None)


def test_kinds_of_image_files(tmp_path: Path) -> None:
    files = [
        save(tmp_path / "cmyk.jpg", mode="CMYK", colour=(0, 255, 255, 0)),
        save(tmp_path / "grey.png", mode="L", colour=90),
        save(tmp_path / "alpha.png", mode="RGBA", colour=(1, 2, 3, 0)),
        save(tmp_path / "dot.png", (1, 1)),
        save(tmp_path / "long.png", (8000, 10)),
        save(tmp_path / "moving.gif"),
        save(tmp_path / "UPPER.JPG"),
    ]
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 12), 65535, np.uint16)).save(deep)
    by_name = {Path(frame.path).name: frame.image_HW3 for frame in open_source([*files, deep])}
    assert len(by_name) == 8
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in by_name.values())
    assert by_name["grey.png"][0, 0].tolist() == [90, 90, 90]
    assert by_name["deep.png"].min() == 255
    assert by_name["alpha.png"][0, 0].tolist() == [114, 114, 114]
    assert by_name["cmyk.jpg"][0, 0, 0] > 200 > 80 > by_name["cmyk.jpg"][0, 0, 1]
    assert by_name["dot.png"].shape == (1, 1, 3)
    assert by_name["long.png"].shape == (10, 8000, 3)


def test_folder_is_one_level_sorted_and_leaves_other_files(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "inner/c.png", "._a.png"):
        save(tmp_path / name)
    (tmp_path / "notes.md").write_text("x")
    assert paths(tmp_path) == ["a.jpg", "b.png"]
    assert paths(str(tmp_path)) == ["a.jpg", "b.png"]
    source = open_source(tmp_path)
    assert source.count == 2
    assert not source.has_video


def test_globs(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "inner/c.png", "odd[1].png"):
        save(tmp_path / name)
    assert paths(f"{tmp_path}/*.png") == ["b.png", "odd[1].png"]
    assert paths(f"{tmp_path}/**/*.png") == ["b.png", "c.png", "odd[1].png"]
    assert paths(f"{tmp_path}/odd[1].png") == ["odd[1].png"], "a file of that very name is not a pattern"


def test_lists_mix_everything(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png")
    array = np.zeros((5, 6, 3), np.uint8)
    frames = list(open_source([file, array, (Image.new("RGB", (3, 2)), torch.zeros(2, 3, 4, 4)), str(tmp_path)]))
    assert [Path(frame.path).name for frame in frames] == [
        "a.png", "image0.jpg", "image1.jpg", "image2.jpg", "image3.jpg", "a.png",
    ]  # fmt: skip
    assert [frame.index for frame in frames] == list(range(6))


def test_pil_keeps_its_file_name(tmp_path: Path) -> None:
    with Image.open(save(tmp_path / "a.png")) as picture:
        (frame,) = open_source(picture)
    assert Path(frame.path).name == "a.png"


def test_list_file(tmp_path: Path) -> None:
    save(tmp_path / "pictures/a.png")
    save(tmp_path / "pictures/b.png")
    listing = tmp_path / "list.txt"
    listing.write_text("# a comment\npictures/b.png\n\n./pictures/a.png\n")
    assert paths(listing) == ["b.png", "a.png"]
    listing.write_text("pictures/b.png\npictures/gone.png\n")
    with pytest.raises(DataError, match=r"list.txt:2: there is no file.*gone.png"):
        open_source(listing)
    listing.write_text("\n")
    with pytest.raises(DataError, match="names no file"):
        open_source(listing)
    listing.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(DataError, match="cannot read the list"):
        open_source(listing)
    listing.write_text("list.txt\n")
    with pytest.raises(DataError, match=r"list.txt:1: .*neither an image nor a video"):
        open_source(listing)


def test_iterating_twice_gives_the_same(picture_folder: Path) -> None:
    source = open_source(picture_folder)
    assert [frame.path for frame in source] == [frame.path for frame in source]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no images or videos among 0 entries; looked for .*jpg.*mp4"):
        open_source(tmp_path)
    save(tmp_path / "inner" / "a.png")
    with pytest.raises(DataError, match=r"it holds folders: .*inner"):
        open_source(tmp_path)
    with pytest.raises(DataError, match=r"matches no images or videos"):
        open_source(str(tmp_path / "*.jpg"))
    with pytest.raises(DataError, match=r"there is no file or folder '.*gone.jpg'"):
        open_source(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="empty list"):
        open_source([])
    with pytest.raises(DataError):
        open_source("x" * 5000)


def test_unknown_suffix_is_judged_by_content(tmp_path: Path) -> None:
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.7")
    with pytest.raises(DataError, match=r"report.pdf' is neither an image nor a video"):
        open_source(tmp_path / "report.pdf")
    save(tmp_path / "photo.png").rename(tmp_path / "photo")
    assert paths(tmp_path / "photo") == ["photo"]


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (0, ["camera0"]), ("2", ["camera2"]), ("rtsp://camera/stream", ["rtsp://camera/stream"]),
        ("RTSP://me:pass@x/1", ["RTSP://me:***@x/1"]), (["udp://1.2.3.4:5", 1], ["udp://1.2.3.4:5", "camera1"]),
        ("http://10.0.0.1/live.m3u8", ["http://10.0.0.1/live.m3u8"]),
    ],
)  # fmt: skip
def test_streams(source: object, named: list[str]) -> None:
    opened = open_source(source)
    assert isinstance(opened, LiveSource)
    assert [address.name for address in opened.addresses] == named


def test_lists_of_streams(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"")
    listing = tmp_path / "doors.streams"
    listing.write_text("rtsp://a/1\n# closed\n\n0\nclip.mp4\n")
    opened = open_source(listing)
    assert isinstance(opened, LiveSource)
    assert [address.kind for address in opened.addresses] == ["network", "camera", "file"]
    plain = listing.rename(tmp_path / "doors.txt")
    plain.write_text("rtsp://a/1\nrtsp://a/2\n")
    assert len(open_source(str(plain)).addresses) == 2  # type: ignore[union-attr]


def test_streams_and_pictures_do_not_mix(tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"a.png' is a picture"):
        open_source(["rtsp://a/1", picture])
    (tmp_path / "x.streams").write_text("rtsp://a/1\na.png\n")
    with pytest.raises(ConfigError, match=r"x.streams:2: .*a.png' is a picture"):
        open_source(tmp_path / "x.streams")


@pytest.mark.parametrize(
    "source", [None, "", "  ", 3.5, True, {"a": 1}, b"x", "ftp://host/a.jpg", "file:///etc/passwd"]
)
def test_what_cannot_be_a_source(source: object) -> None:
    with pytest.raises(ConfigError):
        open_source(source)


def test_corrupt_image_is_an_error_when_named_and_skipped_in_a_folder(picture_folder: Path) -> None:
    broken = picture_folder / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"1\.png"):
        list(open_source(broken))
    with pytest.raises(DataError, match=r"1\.png"):
        list(open_source([picture_folder / "0.png", broken]))
    source = open_source(picture_folder)
    with pytest.warns(UserWarning, match=r"skipped: .*1\.png") as caught:
        frames = list(source)
    assert [(Path(frame.path).name, frame.index) for frame in frames] == [("0.png", 0), ("2.png", 1)]
    assert len(caught) == len(source.skipped) == 1


def test_a_folder_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(DataError, match="none of the 2 files"):
        list(open_source(tmp_path))


def test_videos_among_images(tmp_path: Path) -> None:
    save(tmp_path / "z.png")
    with VideoWriter(tmp_path / "a.mp4", fps=10) as writer:
        for number in range(4):
            writer.write(np.full((32, 48, 3), 60 * number, np.uint8), time_s=number / 10)
    source = open_source(tmp_path)
    assert source.has_video
    assert source.count is None
    frames = list(source)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.video_frame for frame in frames] == [0, 1, 2, 3, None]
    assert [frame.time_s for frame in frames[:4]] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)
    assert frames[0].fps == pytest.approx(10)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on the loopback interface."""
    save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers = {
                "/a.png": content,
                "/plain?x=1": content,
                "/page.jpg": b"<html>",
                "/long.png": content + bytes(3_000_000),
            }
            body = answers.get(self.path)
            if self.path == "/cut.png":
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(content)
                return
            self.send_response(200 if body is not None else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_address_of_an_image(server: str) -> None:
    for url in (f"{server}/a.png", f"{server}/plain?x=1"):
        (frame,) = open_source(url)
        assert frame.image_HW3.shape == (8, 12, 3)
        assert frame.path == url


def test_nothing_is_fetched_before_iterating() -> None:
    assert open_source("http://127.0.0.1:9/never.png").count == 1


def test_addresses_that_fail(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="404"):
        list(open_source(f"{server}/gone.png"))
    with pytest.raises(DataError, match="no image that can be decoded"):
        list(open_source(f"{server}/page.jpg"))
    with pytest.raises(DataError, match="cannot be fetched"):
        list(open_source("http://127.0.0.1:9/refused.png"))
    with pytest.raises(DataError, match="cannot be fetched"):
        list(open_source("http://[not-an-address/x.png"))
    with pytest.raises(DataError, match=r"longer than 1.00 MB"):
        download.download_image(f"{server}/long.png", max_bytes=1_000_000)
    with pytest.raises(DataError, match=r"did not arrive|cannot be fetched"):
        download.download_image(f"{server}/a.png", timeout_s=1e-6)


@pytest.mark.skipif(os.name != "posix", reason="needs a character device")
def test_devices_are_cameras() -> None:
    opened = open_source("/dev/null")
    assert isinstance(opened, LiveSource)
    assert [(address.kind, address.where) for address in opened.addresses] == [("camera", "/dev/null")]
