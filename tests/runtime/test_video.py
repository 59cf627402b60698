"""Video files in and out."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ullage.errors import DataError, StorageError
from ullage.runtime import video
from ullage.runtime.video import VideoWriter, read_video


def write(path: Path, *, frames: int = 5, size_hw: tuple[int, int] = (32, 48), fps: float = 10) -> Path:
    with VideoWriter(path, fps=fps) as writer:
        for number in range(frames):
            image = np.zeros((*size_hw, 3), np.uint8)
            image[: size_hw[0] // 2, : size_hw[1] // 2] = (250, 250, 250)  # upper left
            writer.write(image, time_s=number / fps)
    return path


def test_real_video(shared: Path) -> None:
    frames = list(itertools.islice(read_video(shared / "data/videos/01_dog.mp4"), 3))
    assert [frame.image_HW3.shape for frame in frames] == [(720, 1280, 3)] * 3
    assert frames[0].fps == pytest.approx(29.97, abs=0.01)
    assert [frame.time_s for frame in frames] == pytest.approx([0, 1 / 29.97, 2 / 29.97], abs=1e-3)
    assert frames[0].image_HW3.std() > 20


@pytest.mark.parametrize("fps", [10, 29.97, 30000 / 1001, 60])
def test_round_trip_keeps_rate_count_and_colours(tmp_path: Path, fps: float) -> None:
    frames = list(read_video(write(tmp_path / "a.mp4", frames=12, fps=fps)))
    assert len(frames) == 12
    assert frames[0].fps == pytest.approx(fps, rel=2e-3)
    assert [frame.time_s for frame in frames] == pytest.approx([n / fps for n in range(12)], abs=1e-3)
    assert frames[3].image_HW3[4, 4].min() > 230
    assert frames[3].image_HW3[28, 44].max() < 25


def test_mpeg4_where_h264_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    frames = list(read_video(write(tmp_path / "a.mp4", fps=29.97)))
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert len(frames) == 5
    assert frames[0].fps == pytest.approx(29.97, rel=1e-3)


def test_odd_sizes_and_repeated_times(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=5) as writer:
        for _ in range(3):
            writer.write(np.zeros((33, 47, 3), np.uint8), time_s=0.0)
    assert [frame.image_HW3.shape for frame in read_video(tmp_path / "a.mp4")] == [(34, 48, 3)] * 3


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [((0, 1, -1, 0), "upper right"), ((-1, 0, 0, -1), "lower right"), ((0, -1, 1, 0), "lower left")],
)
def test_stated_rotation_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int], corner: str) -> None:
    """The matrix of the MP4 track header maps stored (x, y) to shown (a x + c y, b x + d y)."""
    file = write(tmp_path / "a.mp4")
    content = bytearray(file.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    file.write_bytes(content)
    image = next(read_video(file)).image_HW3
    height, width = image.shape[:2]
    assert (height, width) == ((32, 48) if corner == "lower right" else (48, 32))
    y = 4 if corner.startswith("upper") else height - 5
    x = 4 if corner.endswith("left") else width - 5
    assert image[y, x].min() > 230
    assert image[height - 1 - y, width - 1 - x].max() < 25


def test_damaged_videos(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    for content in (b"", b"no video at all"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.mp4' cannot be decoded as a video at its start"):
            list(read_video(file))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="no video track"):
        list(read_video(tmp_path / "a.mp4"))


def test_only_one_frame_is_alive(shared: Path) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    for frame in itertools.islice(read_video(shared / "data/videos/bottle-detection.mp4"), 40):
        alive.append(weakref.ref(frame.image_HW3))
        del frame
        gc.collect(0)
        most = max(most, sum(ref() is not None for ref in alive))
    assert most <= 2


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write the video"):
        write(tmp_path / "file" / "a.mp4")
    with pytest.raises(StorageError, match="cannot write the video"):
        write(tmp_path / "gone" / "a.mp4")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"a\.mp4"):
        write(tmp_path / "a.mp4", frames=30, size_hw=(64, 64))


def test_the_clock_is_exact_for_common_rates() -> None:
    for fps in (Fraction(24), Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(50), Fraction(60)):
        assert (1 / fps / video._CLOCK).denominator == 1
