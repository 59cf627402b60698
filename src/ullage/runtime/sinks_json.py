"""Results as JSON: one line a frame, to be followed while it grows; or one COCO file, whole when closed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ullage.errors import StorageError
from ullage.runtime.results import Results
from ullage.runtime.sinks import make_folder


class JsonLinesSink:
    """Writes ``results.jsonl``: a line for each picture or frame, on disk as soon as its result is there.

    Keys: ``source`` ``stream`` ``frame`` ``time_s`` ``received_at`` ``height`` ``width`` and ``objects``, which is what
    ``Results.summary()`` returns.

    Args:
        folder: Made when missing.

    Raises:
        StorageError: The file cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        make_folder(Path(folder))
        self._path = Path(folder) / "results.jsonl"
        self._file = _open(self._path)

    def write(self, result: Results) -> None:
        """Write one line.

        Raises:
            StorageError: The disk is full.
        """
        height, width = result.orig_shape
        line = {
            "source": result.path,
            "stream": result.stream,
            "frame": result.video_frame,
            "time_s": result.time_s,
            "received_at": result.received_at,
            "height": height,
            "width": width,
            "objects": result.summary(),
        }
        _guarded(
            self._path, lambda: (self._file.write(json.dumps(line, ensure_ascii=False) + "\n"), self._file.flush())
        )

    def close(self) -> None:
        """Close the file."""
        _guarded(self._path, self._file.close)


class CocoSink:
    """Writes ``coco.json``: images, annotations (with ``score``) and categories, as COCO's tools read them.

    Ids of images count from 1, those of categories are the class ids. Frames have ``frame`` and ``time_s``, and those
    of streams ``stream``. Memory stays constant: what is written waits in two files until the end.

    Args:
        folder: Made when missing.

    Raises:
        StorageError: The files cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        make_folder(Path(folder))
        self._path = Path(folder) / "coco.json"
        self._images_path = Path(folder) / ".coco-images.part"
        self._file, self._images = _open(self._path), _open(self._images_path)
        self._image_count = self._box_count = 0
        self._names: dict[int, str] = {}
        self._put(self._file, '{"annotations": [')

    def write(self, result: Results) -> None:
        """Write one image and its boxes.

        Raises:
            StorageError: The disk is full.
        """
        self._names.update(result.names)
        self._image_count += 1
        height, width = result.orig_shape
        image: dict[str, Any] = {"id": self._image_count, "file_name": result.path, "height": height, "width": width}
        if result.video_frame is not None:
            image |= {"frame": result.video_frame, "time_s": result.time_s}
        if result.stream is not None:
            image |= {"stream": result.stream}
        self._put(self._images, _separated(self._image_count, image))
        boxes = result.boxes.numpy()
        for corners, score, class_id in zip(boxes.xyxy, boxes.conf, boxes.cls, strict=True):
            x1, y1, x2, y2 = (float(side) for side in corners)
            self._box_count += 1
            row = {
                "id": self._box_count,
                "image_id": self._image_count,
                "category_id": int(class_id),
                "bbox": [round(side, 3) for side in (x1, y1, x2 - x1, y2 - y1)],
                "area": round((x2 - x1) * (y2 - y1), 3),
                "iscrowd": 0,
                "score": round(float(score), 5),
            }
            self._put(self._file, _separated(self._box_count, row))

    def close(self) -> None:
        """Put the two files together.

        Raises:
            StorageError: The disk is full.
        """
        _guarded(self._images_path, self._images.close)
        self._put(self._file, '\n], "images": [')
        _guarded(self._path, self._append_images)
        categories = [{"id": number, "name": name} for number, name in sorted(self._names.items())]
        self._put(self._file, f'\n], "categories": {json.dumps(categories, ensure_ascii=False)}}}\n')
        _guarded(self._path, self._file.close)

    def _append_images(self) -> None:
        with self._images_path.open(encoding="utf-8") as images:
            shutil.copyfileobj(images, self._file)
        self._images_path.unlink()

    def _put(self, file: IO[str], text: str) -> None:
        _guarded(self._path, lambda: file.write(text))


class CallbackSink:
    """Hands every result to a function.

    Args:
        call: Takes a ``Results``; what it raises ends the prediction.
    """

    def __init__(self, call: Callable[[Results], object]) -> None:
        self._call = call

    def write(self, result: Results) -> None:
        """Call the function."""
        self._call(result)

    def close(self) -> None:
        """Do nothing."""


def _separated(number: int, value: object) -> str:
    return ("," if number > 1 else "") + "\n" + json.dumps(value, ensure_ascii=False)


def _open(path: Path) -> IO[str]:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from None


def _guarded(path: Path, work: Callable[[], object]) -> None:
    try:
        work()
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from None
