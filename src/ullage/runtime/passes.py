"""A pass: frames through one predictor, with what comes before and after; and the loop that keeps the devices busy.

Shape letters: B batch, H, W the network's input.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, pairwise
from typing import Protocol

import numpy as np
import torch

from ullage.geometry.detections import Detections
from ullage.geometry.letterbox import PAD_GREY, Letterbox, fit, tight_size
from ullage.runtime.postprocess import Outputs
from ullage.runtime.protocol import Predictor
from ullage.runtime.results import Boxes, Results
from ullage.runtime.sources import Frame

Size = int | tuple[int, int]


class Feed(Protocol):
    """Where groups of frames come from."""

    def take(self, interrupted: Callable[[], bool]) -> list[Frame] | None:
        """Return the next group; None at the end, an empty one when ``interrupted`` became true."""
        ...

    def wake(self) -> None:
        """Let a waiting ``take`` ask ``interrupted`` again."""
        ...

    def finished(self, frames: Sequence[Frame], seconds: float) -> None:
        """Hear that a group is done."""
        ...


class SourceFeed:
    """Groups of a source that waits until it is read.

    Args:
        frames: The source.
        batch: Frames a group.
    """

    def __init__(self, frames: Iterable[Frame], *, batch: int) -> None:
        self._frames, self._batch = iter(frames), batch

    def take(self, interrupted: Callable[[], bool]) -> list[Frame] | None:
        """Return the next group; None at the end."""
        return list(islice(self._frames, self._batch)) or None

    def wake(self) -> None:
        """Do nothing: a source does not wait for anybody."""

    def finished(self, frames: Sequence[Frame], seconds: float) -> None:
        """Do nothing: a source keeps no record."""


class Pass:
    """One predictor, and what turns frames into its input and its outputs into results.

    Args:
        predictor: What runs the network.
        imgsz: Length of the longer side, or (h, w); see ``predict``.
        select: From outputs to detections.
    """

    def __init__(self, predictor: Predictor, *, imgsz: Size, select: Callable[[Outputs], list[Detections]]) -> None:
        self._predictor, self._imgsz, self._select = predictor, imgsz, select

    def warm_up(self, size_hw: tuple[int, int]) -> None:
        """Run a grey image: the first pass pays for what later ones reuse, seconds on some devices."""
        self([Frame(np.full((*size_hw, 3), PAD_GREY, np.uint8), "warm-up", 0)])

    def __call__(self, frames: Sequence[Frame]) -> list[Results]:
        """Run frames; the time of a stage is shared out evenly among them."""
        marks = [time.perf_counter()]
        images_B3HW, letterboxes = _to_batch(frames, self._imgsz, self._predictor.stride)
        marks.append(time.perf_counter())
        outputs = self._predictor(images_B3HW)
        marks.append(time.perf_counter())
        selected = zip(self._select(outputs), letterboxes, strict=True)
        found = [_to_original(one, letterbox) for one, letterbox in selected]
        marks.append(time.perf_counter())
        speed = {
            name: (stop - start) * 1000 / len(frames)
            for name, (start, stop) in zip(("preprocess", "inference", "postprocess"), pairwise(marks), strict=True)
        }
        names = self._predictor.names
        return [_result(frame, one, names, speed) for frame, one in zip(frames, found, strict=True)]


def run_passes(feed: Feed, passes: Sequence[Pass]) -> Iterator[Results]:
    """Yield the results of a feed in its order, one group on each device at a time.

    With one device a group is run when its results are asked for, so a slow consumer slows everything down.
    """
    if len(passes) == 1:
        while (group := feed.take(_never)) is not None:
            yield from _timed(feed, passes[0], group)
        return
    pending: deque[Future[list[Results]]] = deque()
    with ThreadPoolExecutor(len(passes), thread_name_prefix="ullage-pass") as pool:
        turn, ended = 0, False
        while pending or not ended:
            while not ended and len(pending) < len(passes):
                group = feed.take(lambda: bool(pending) and pending[0].done())
                ended = group is None
                if not group:
                    break
                # Results leave in order, so the device that is free is the one whose turn it is.
                future = pool.submit(_timed, feed, passes[turn % len(passes)], group)
                future.add_done_callback(lambda _: feed.wake())
                pending.append(future)
                turn += 1
            if pending:
                yield from pending.popleft().result()


def _timed(feed: Feed, run: Pass, group: Sequence[Frame]) -> list[Results]:
    start = time.perf_counter()
    results = run(group)
    feed.finished(group, time.perf_counter() - start)
    return results


def _never() -> bool:
    return False


def _to_batch(frames: Sequence[Frame], imgsz: Size, stride: int) -> tuple[torch.Tensor, list[Letterbox]]:
    """Letterbox frames into one uint8 batch, the smallest that holds them all; channels-last in memory."""
    shapes_hw = [(frame.image_HW3.shape[0], frame.image_HW3.shape[1]) for frame in frames]
    if isinstance(imgsz, int):
        tight = [tight_size(shape_hw, imgsz, stride=stride) for shape_hw in shapes_hw]
        size_hw = (max(height for height, _ in tight), max(width for _, width in tight))
    else:
        size_hw = imgsz
    letterboxes = [fit(shape_hw, size_hw) for shape_hw in shapes_hw]
    batch_BHW3 = np.empty((len(frames), *size_hw, 3), np.uint8)
    for frame, letterbox, out_HW3 in zip(frames, letterboxes, batch_BHW3, strict=True):
        letterbox.apply(frame.image_HW3, out_HW3=out_HW3)
    return torch.from_numpy(batch_BHW3).permute(0, 3, 1, 2), letterboxes


def _to_original(found: Detections, letterbox: Letterbox) -> Detections:
    host = found.to("cpu")
    return Detections(letterbox.backward(host.boxes_xyxy_px_D4), host.scores_D, host.class_ids_D)


def _result(frame: Frame, found: Detections, names: Mapping[int, str], speed: Mapping[str, float]) -> Results:
    shape_hw = (frame.image_HW3.shape[0], frame.image_HW3.shape[1])
    return Results(
        boxes=Boxes.from_detections(found, shape_hw),
        orig_img=frame.image_HW3,
        path=frame.path,
        names=names,
        speed=speed,
        video_frame=frame.video_frame,
        time_s=frame.time_s,
        fps=frame.fps,
        stream=frame.stream,
        received_at=frame.received_at,
        latency_ms=None if frame.arrived is None else (time.monotonic() - frame.arrived) * 1000,
    )
