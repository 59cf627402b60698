"""``predictions.json``: detections in COCO's results form, streamed to disk and put in place at the end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import torch

from ullage.errors import DataError, StorageError
from ullage.geometry.detections import Detections


class PredictionsWriter:
    """Writes one image after the other; the file appears, whole, when the ``with`` block ends without an error.

    Each detection becomes ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``, in pixels of the
    original image rounded to three decimals, the score to five. An image id made of digits, such as the file stem
    ``000000000139``, is written as the number, as COCO's annotation files have it.
    """

    def __init__(self, path: str | Path, *, category_ids: Sequence[int]) -> None:
        """Choose the file.

        Args:
            path: Where the file goes; missing folders are made, an existing file is replaced.
            category_ids: The COCO category id of each class.
        """
        self._path = Path(path)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self._category_ids = [int(category) for category in category_ids]
        self._seen: set[int | str] = set()
        self._file: IO[str] | None = None
        self._empty = True

    def __enter__(self) -> PredictionsWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary, "w", encoding="utf-8")
            self._file.write("[")
        except OSError as problem:
            raise self._storage_error(problem) from problem
        return self

    def add(self, image_id: int | str, detections: Detections) -> None:
        """Write the detections of one image.

        Args:
            image_id: COCO's id, or the file's stem.
            detections: In pixels of the original image, on any device.

        Raises:
            DataError: The image came before, a class has no category id, or a value is not finite.
            StorageError: The disk is full or the file cannot be written.
        """
        if self._file is None:
            raise DataError("predictions can only be added inside the writer's with block")
        if isinstance(image_id, str) and image_id.isascii() and image_id.isdigit():
            image_id = int(image_id)
        if image_id in self._seen:
            raise DataError(f"image id {image_id!r} came twice; COCO results need one id per image")
        self._seen.add(image_id)
        entries = list(self._entries(image_id, detections))
        if not entries:
            return
        try:
            self._file.write(("\n" if self._empty else ",\n") + ",\n".join(entries))
        except OSError as problem:
            raise self._storage_error(problem) from problem
        self._empty = False

    def _entries(self, image_id: int | str, detections: Detections) -> Iterable[str]:
        boxes = detections.boxes_xyxy_px_D4.detach().to("cpu", torch.float64, copy=True)
        if not (boxes.isfinite().all() and detections.scores_D.isfinite().all()):
            raise DataError(f"image {image_id!r}: detections hold values that are not finite numbers")
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, class_id in zip(
            boxes.tolist(), detections.scores_D.tolist(), detections.class_ids_D.tolist(), strict=True
        ):
            if not 0 <= class_id < len(self._category_ids):
                raise DataError(
                    f"image {image_id!r}: class {class_id} has no category id; {len(self._category_ids)} were given"
                )
            entry = {
                "image_id": image_id,
                "category_id": self._category_ids[class_id],
                "bbox": [round(side, 3) for side in box],
                "score": round(score, 5),
            }
            yield json.dumps(entry, separators=(",", ":"))

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        assert file is not None
        try:
            if kind is None:
                file.write("\n]\n")
                file.flush()
                os.fsync(file.fileno())
                os.replace(self._temporary, self._path)
        except OSError as failure:
            raise self._storage_error(failure) from failure
        finally:
            with contextlib.suppress(OSError):  # a full disk fails again here; it was reported above
                file.close()
            self._temporary.unlink(missing_ok=True)

    def _storage_error(self, problem: OSError) -> StorageError:
        return StorageError(
            f"cannot write {self._path}: {problem.strerror or problem}; free some space or choose another folder"
        )


def write_predictions(
    path: str | Path,
    *,
    image_ids: Iterable[int | str],
    detections: Iterable[Detections],
    category_ids: Sequence[int],
) -> Path:
    """Write ``predictions.json`` at once.

    Args:
        path: The file.
        image_ids: Id of each image.
        detections: What was found in each, in pixels of the original image.
        category_ids: The COCO category id of each class.

    Returns:
        The path of the file.

    Raises:
        DataError: Ids and detections are not equally many, an id comes twice, or a class has no category id.
        StorageError: The file cannot be written.
    """
    ids, found = list(image_ids), list(detections)
    if len(ids) != len(found):
        raise DataError(f"{len(ids)} image ids, but detections of {len(found)} images")
    with PredictionsWriter(path, category_ids=category_ids) as writer:
        for image_id, one in zip(ids, found, strict=True):
            writer.add(image_id, one)
    return Path(path)
