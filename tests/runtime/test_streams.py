"""Many streams at once: who is served, what is dropped, what is waited for; with streams that are made up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from square_finder import NAMES, SquareFinder
from stream_kit import hub_of, numbers, scripted, shots

from ullage.errors import DataError
from ullage.runtime import stream_hub
from ullage.runtime.live import LiveResults
from ullage.runtime.passes import Pass
from ullage.runtime.postprocess import detections_from_outputs
from ullage.runtime.predictor import TorchPredictor, predict
from ullage.runtime.results import Results
from ullage.runtime.stream_hub import StreamHub
from ullage.runtime.stream_reader import Shot, StreamLost
from ullage.runtime.stream_stats import PassClock, StreamRecord
from ullage.runtime.video import VideoWriter


def live(hub: StreamHub, *, devices: int = 1, pass_s: float = 0.0) -> LiveResults:
    class Slow(TorchPredictor):
        def __call__(self, images_B3HW):  # type: ignore[no-untyped-def]
            time.sleep(pass_s)
            return super().__call__(images_B3HW)

    def select(outputs):  # type: ignore[no-untyped-def]
        return detections_from_outputs(outputs, conf=0.25, iou=0.7, max_det=300)

    passes = [Pass(Slow(SquareFinder().eval(), names=NAMES), imgsz=96, select=select) for _ in range(devices)]
    return LiveResults(hub, passes)


def test_oldest_first_keeps_every_frame_in_order_however_slow_the_consumer() -> None:
    results = live(hub_of(2, scripted(shots(12, fps=500)), policy="oldest"))
    found = []
    for one in results:
        time.sleep(0.005)
        found.append(one)
    for stream in (0, 1):
        assert [one.video_frame for one in found if one.stream == stream] == list(range(12))
        assert numbers([one.orig_img for one in found if one.stream == stream]) == list(range(12))
    assert [(one.read, one.done, one.dropped, one.state) for one in results.stats()] == [(12, 12, 0, "ended")] * 2


def test_latest_drops_what_a_slow_consumer_cannot_take_and_counts_it() -> None:
    results = live(hub_of(1, scripted(shots(60, fps=200))))
    seen = []
    for one in results:
        time.sleep(0.04)
        seen.append(one.video_frame)
    (stats,) = results.stats()
    assert seen == sorted(set(seen))
    assert 4 <= len(seen) <= 20
    assert stats.done == len(seen)
    assert stats.read == 60 == stats.done + stats.dropped
    assert seen[-1] == 59, "the newest frame is what is left"


def test_results_tell_stream_time_and_delay() -> None:
    before = time.time()
    found = list(live(hub_of(1, scripted(shots(5, fps=50)), policy="oldest", reconnect_s=0)))
    assert [one.time_s for one in found] == pytest.approx([0, 0.02, 0.04, 0.06, 0.08])
    assert {one.stream for one in found} == {0}
    assert {one.path for one in found} == {"rtsp://camera/0"}
    assert {one.fps for one in found} == {50}
    assert all(one.received_at is not None and before < one.received_at < time.time() for one in found)
    assert all(one.latency_ms is not None and 0 < one.latency_ms < 5000 for one in found)
    assert [str(one) for one in found] == ["1 white square"] * 5


def test_frames_of_many_streams_share_a_pass() -> None:
    finder = SquareFinder().eval()
    predictor = TorchPredictor(finder, names=NAMES, fold=False)
    hub = hub_of(4, scripted(shots(10, fps=20)), batch=4, policy="oldest", latency_ms=400)

    def select(outputs):  # type: ignore[no-untyped-def]
        return detections_from_outputs(outputs, conf=0.25, iou=0.7, max_det=300)

    found = list(LiveResults(hub, [Pass(predictor, imgsz=96, select=select)]))
    sizes = [shape[0] for shape in predictor._network.calls]  # pyright: ignore
    assert sizes[0] == 1, "the warm-up"
    assert len(found) == sum(sizes[1:]) == 40
    assert sizes.count(4) >= 7, "with time to wait, a pass takes a frame of each"


def test_without_a_latency_nothing_waits_for_company() -> None:
    results = live(
        hub_of(
            2,
            scripted(
                shots(1, fps=1),
            ),
            policy="oldest",
            batch=8,
        )
    )
    begun = time.monotonic()
    assert len(list(results)) == 2
    assert time.monotonic() - begun < 2


def test_no_stream_starves_beside_faster_ones() -> None:
    fast, slow = shots(100_000, fps=2000), shots(100_000, fps=40)

    def read(address, **rest):  # type: ignore[no-untyped-def]
        return (slow if address.name.endswith("0") else fast)(rest["stopped"])

    results = live(hub_of(4, read, policy="latest"), pass_s=0.004)
    counts = [0] * 4
    for one in results:
        assert one.stream is not None
        counts[one.stream] += 1
        if sum(counts) == 120:
            break
    results.close()
    assert counts[0] >= 0.5 * min(counts[1:]), counts
    assert min(counts[1:]) >= 0.8 * max(counts[1:]), counts


def test_late_frames_are_dropped_and_the_bound_holds() -> None:
    hub = hub_of(3, scripted(shots(100_000, fps=100)), policy="oldest", batch=3, latency_ms=150)
    results = live(hub, pass_s=0.05)
    begun = time.monotonic()
    found: list[Results] = []
    for one in results:
        found.append(one)
        if time.monotonic() - begun > 1.5:
            break
    stats = results.stats()
    results.close()
    assert all(one.dropped > 0 for one in stats), "100 frames a second each do not fit 20 passes"
    late = [one.latency_ms for one in found[6:] if one.latency_ms is not None and one.latency_ms > 150]
    assert len(late) <= 0.15 * len(found), "more than a few mean that nothing is planned"
    assert {one.stream for one in found} == {0, 1, 2}


def test_a_bound_that_cannot_be_met_still_gives_results() -> None:
    results = live(hub_of(2, scripted(shots(100_000, fps=100)), latency_ms=1), pass_s=0.02)
    found = [next(results) for _ in range(6)]
    results.close()
    assert {one.stream for one in found} == {0, 1}


def test_every_third_frame() -> None:
    results = live(hub_of(1, scripted(shots(10, fps=500)), policy="oldest", stride=3))
    assert [one.video_frame for one in results] == [0, 3, 6, 9]
    (stats,) = results.stats()
    assert (stats.read, stats.done, stats.skipped) == (10, 4, 6)


@pytest.mark.parametrize("devices", [2, 3])
def test_several_devices_keep_the_order_and_find_the_same(devices: int) -> None:
    script = scripted(shots(30, fps=500))
    results = live(hub_of(2, script, policy="oldest", batch=2), devices=devices, pass_s=0.002)
    found = list(results)
    for stream in (0, 1):
        assert [one.video_frame for one in found if one.stream == stream] == list(range(30))
    assert all(str(one) == "1 white square" for one in found)


def test_several_devices_work_at_the_same_time() -> None:
    class Counting(TorchPredictor):
        now = most = 0

        def __call__(self, images_B3HW):  # type: ignore[no-untyped-def]
            Counting.now += 1
            Counting.most = max(Counting.most, Counting.now)
            time.sleep(0.02)
            Counting.now -= 1
            return super().__call__(images_B3HW)

    images = [np.zeros((32, 32, 3), np.uint8)] * 8
    predictors = [Counting(SquareFinder().eval(), names=NAMES) for _ in range(2)]
    found = list(predict(predictors, source=images, imgsz=32))
    assert [one.path for one in found] == [f"image{number}.jpg" for number in range(8)]
    assert Counting.most == 2


def test_a_lost_stream_is_called_again_and_its_time_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_hub, "_FIRST_DELAY_S", 0.05)
    script = scripted(shots(3, fps=100, then="cable"), shots(0, fps=1, then="refused"), shots(4, fps=100))
    results = live(hub_of(1, script, policy="oldest"))
    found = list(results)
    times = [one.time_s for one in found]
    assert [one.video_frame for one in found] == list(range(7))
    assert times == sorted(times)  # type: ignore[type-var]
    assert times[3] - times[2] > 0.1, "two calls, 0.05 and 0.1 s apart, each up to a quarter shorter"  # type: ignore[operator]
    (stats,) = results.stats()
    assert (stats.state, stats.reconnects, stats.error) == ("ended", 1, "refused")


def test_calls_are_ever_further_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_hub, "_FIRST_DELAY_S", 0.02)
    called: list[float] = []

    def read(address, **rest):  # type: ignore[no-untyped-def]
        called.append(time.monotonic())
        raise StreamLost("no answer")

    results = live(hub_of(1, read, reconnect_s=0.4))
    with pytest.raises(DataError, match=r"no stream gives pictures: 'rtsp://camera/0': no answer"):
        next(results)
    gaps = np.diff(called)
    assert 4 <= len(called) <= 7
    assert gaps[-1] > 2.5 * gaps[0]


def test_one_dead_stream_among_living_ones_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    good = shots(20, fps=100)

    def read(address, **rest):  # type: ignore[no-untyped-def]
        if address.name.endswith("1"):
            raise StreamLost("401 Unauthorized", final=True)
        return good(rest["stopped"])

    results = live(hub_of(2, read, policy="oldest"))
    with pytest.warns(UserWarning, match=r"given up: 'rtsp://camera/1': 401 Unauthorized"):
        found = list(results)
    assert len(found) == 20
    assert [one.state for one in results.stats()] == ["ended", "failed"]
    assert "failed (401 Unauthorized), 0 of 0 frames" in str(results.stats()[1])


def test_readers_stop_with_the_iterator() -> None:
    import threading

    results = live(hub_of(3, scripted(shots(100_000, fps=200))))
    next(results)
    assert sum(thread.name.startswith("ullage-rtsp") for thread in threading.enumerate()) == 3
    del results
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("ullage-rtsp") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_of_the_consumer_stops_the_readers_too() -> None:
    import threading

    def consume() -> None:
        for _ in live(hub_of(2, scripted(shots(100_000, fps=200)))):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        consume()
    time.sleep(0.2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ullage-rtsp")]


def test_few_frames_are_held() -> None:
    import gc
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []

    def play(stopped: Callable[[], bool]) -> Iterator[Shot]:
        for number in range(150):
            if stopped():
                return
            image = np.full((32, 32, 3), number % 256, np.uint8)
            alive.append(weakref.ref(image))
            yield Shot(image, number / 100, 100.0)

    most = 0
    results = live(hub_of(4, scripted(play), policy="oldest", batch=4))
    for count, _ in enumerate(results):
        if count % 50 == 0:
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 600
    assert most <= 4 * (4 + 3) + 4


def test_video_files_play_side_by_side(tmp_path: Path, predictor: TorchPredictor) -> None:
    for name, count in (("a", 6), ("b", 9)):
        with VideoWriter(tmp_path / f"{name}.mp4", fps=10) as writer:
            for number in range(count):
                writer.write(np.full((48, 64, 3), 20, np.uint8), time_s=number / 10)
    listing = tmp_path / "list.streams"
    listing.write_text("# two doors\na.mp4\nb.mp4\n")
    found = list(predict(predictor, source=listing, imgsz=64, batch=2))
    by_stream = [[one for one in found if one.stream == stream] for stream in (0, 1)]
    assert [Path(one[0].path).name for one in by_stream] == ["a.mp4", "b.mp4"]
    assert [one.video_frame for one in by_stream[0]] == list(range(6))
    assert [one.time_s for one in by_stream[1]] == pytest.approx([number / 10 for number in range(9)])
    turns = [one.stream for one in found]
    assert turns not in (sorted(turns), sorted(turns, reverse=True)), "side by side, not one after the other"


def test_the_clock_of_passes() -> None:
    clock = PassClock()
    assert clock.expected_s(4) == 0
    clock.learn(4, 1.0)
    assert clock.expected_s(4) == 0, "the first pass of a size is not counted"
    for _ in range(30):
        clock.learn(4, 0.1)
    assert clock.expected_s(4) == pytest.approx(0.1)
    assert clock.expected_s(8) == pytest.approx(0.2)
    assert clock.expected_s(1) == pytest.approx(0.1), "a smaller pass may take as long"
    for _ in range(5):
        clock.learn(8, 9.0)
    assert clock.expected_s(8) == pytest.approx(0.2), "what was slow once is not given up"
    for number in range(100):
        clock.learn(4, 0.05 if number % 2 else 0.15)
    assert 0.15 < clock.expected_s(4) < 0.25, "twice the spread is added"


def test_statistics_in_words() -> None:
    record = StreamRecord("door", state="live")
    for _ in range(3):
        record.count_read()
        record.count_done(0.02)
    record.dropped, record.damaged, record.reconnects = 4, 1, 2
    text = str(record.stats())
    assert text.startswith("door: live, 3 of 3 frames, 4 dropped, ")
    assert "latency 20 / 20 / 20 ms" in text
    assert text.endswith(", 1 damaged, 2 reconnects")


def test_after_late_results_passes_are_planned_longer() -> None:
    hub = hub_of(1, scripted(shots(1, fps=1)), latency_ms=100)
    for _ in range(3):
        hub._clock.learn(1, 0.02)
    assert hub._expected_s(1) == pytest.approx(0.02)
    for _ in range(10):
        hub._learn_caution(0.2)
    assert hub._expected_s(1) == pytest.approx(0.02 * 1.05**10)
    for _ in range(1000):
        hub._learn_caution(0.01)
    assert hub._expected_s(1) == pytest.approx(0.02)
