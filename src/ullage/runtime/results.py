"""What a prediction gives back. Shape letters: H, W the original image; N boxes."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageShow

from ullage.errors import BackendUnavailable, DataError, StorageError
from ullage.geometry.boxes import scale_boxes, xyxy_to_cxcywh
from ullage.geometry.detections import Detections
from ullage.geometry.drawing import draw_boxes
from ullage.runtime.image_file import write_image

Array = np.ndarray[Any, Any]


class Boxes:
    """Boxes of one image, best score first, as float32 tensors on the CPU (numpy arrays after ``numpy()``).

    ``boxes[i]``, a slice or a mask gives ``Boxes`` again, and iterating gives one-row ``Boxes``: ``box.xyxy[0]``,
    ``float(box.conf)``, ``int(box.cls)``.

    Args:
        data: (N, 6): left, top, right, bottom in pixels of the original image, score, class id.
        orig_shape: (h, w) of the original image.
    """

    def __init__(self, data: Any, orig_shape: tuple[int, int]) -> None:
        if data.ndim != 2 or data.shape[-1] != 6:
            raise DataError(
                f"boxes need rows of (left, top, right, bottom, score, class), got shape {tuple(data.shape)}"
            )
        self.data = data
        self.orig_shape = orig_shape

    @classmethod
    def from_detections(cls, found: Detections, orig_shape: tuple[int, int]) -> Boxes:
        """Make boxes from detections in pixels of the original image."""
        columns = (found.boxes_xyxy_px_D4, found.scores_D[:, None], found.class_ids_D[:, None].float())
        return cls(torch.cat(columns, 1).float().cpu(), orig_shape)

    @property
    def xyxy(self) -> Any:
        """(N, 4): left, top, right, bottom in pixels."""
        return self.data[:, :4]

    @property
    def xywh(self) -> Any:
        """(N, 4): centre x, centre y, width, height in pixels."""
        return xyxy_to_cxcywh(self.xyxy)

    @property
    def xyxyn(self) -> Any:
        """(N, 4): ``xyxy`` as fractions of the image's width and height."""
        return self._fractions(self.xyxy)

    @property
    def xywhn(self) -> Any:
        """(N, 4): ``xywh`` as fractions of the image's width and height."""
        return self._fractions(self.xywh)

    @property
    def conf(self) -> Any:
        """(N,): scores in [0, 1]."""
        return self.data[:, 4]

    @property
    def cls(self) -> Any:
        """(N,): class ids, as float32."""
        return self.data[:, 5]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``data``."""
        return tuple(self.data.shape)

    def cpu(self) -> Boxes:
        """Return the boxes as tensors on the CPU."""
        return self.to("cpu")

    def to(self, device: torch.device | str) -> Boxes:
        """Return the boxes as tensors on a device."""
        return Boxes(torch.as_tensor(self.data).to(device), self.orig_shape)

    def numpy(self) -> Boxes:
        """Return the boxes as numpy arrays."""
        data = self.data.cpu().numpy() if isinstance(self.data, torch.Tensor) else self.data
        return Boxes(data, self.orig_shape)

    def __len__(self) -> int:
        return int(self.data.shape[0])

    def __getitem__(self, rows: Any) -> Boxes:
        data = self.data[rows]
        return Boxes(data[None] if data.ndim == 1 else data, self.orig_shape)

    def __iter__(self) -> Iterator[Boxes]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Boxes({len(self)} boxes, orig_shape={self.orig_shape}, data=\n{self.data})"

    def _fractions(self, boxes: Any) -> Any:
        height, width = self.orig_shape
        return scale_boxes(boxes, (1 / height, 1 / width))


@dataclass(frozen=True, repr=False, eq=False)
class Results:
    """What was found in one image.

    Attributes:
        boxes: The boxes.
        orig_img: The image, uint8 RGB (H, W, 3) (OpenCV's functions want ``orig_img[..., ::-1]``).
        path: File or address; ``image0.jpg`` ... for images from memory.
        names: Class name by id.
        speed: Milliseconds for ``preprocess``, ``inference``, ``postprocess``; a batch's time is shared out evenly.
        video_frame: 0-based number in the video; None for a picture.
        time_s: When the video shows it, of a stream seconds since its first picture; None for a picture.
        fps: Frames a second of the video; None for a picture, or when a stream does not say.
        stream: 0-based number of the stream; None when the source is none.
        received_at: When a stream's frame was decoded, in seconds since 1970 (``time.time()``).
        latency_ms: From then until the result was there.
    """

    boxes: Boxes
    orig_img: Array
    path: str
    names: Mapping[int, str]
    speed: Mapping[str, float] = field(default_factory=dict)
    video_frame: int | None = None
    time_s: float | None = None
    fps: float | None = None
    stream: int | None = None
    received_at: float | None = None
    latency_ms: float | None = None

    @property
    def orig_shape(self) -> tuple[int, int]:
        """(h, w) of the image."""
        return self.orig_img.shape[0], self.orig_img.shape[1]

    def plot(self, *, labels: bool = True, conf: bool = True, line_width: int | None = None) -> Array:
        """Draw the boxes.

        Args:
            labels: Write class names.
            conf: Write scores behind the names.
            line_width: Pixels; None follows the size of the picture.

        Returns:
            A new uint8 RGB array (H, W, 3).
        """
        boxes = self.boxes.numpy()
        return draw_boxes(
            self.orig_img,
            boxes_xyxy_px=boxes.xyxy,
            class_ids=boxes.cls.astype(np.int64),
            names=[self.names.get(class_id, "") for class_id in range(max(self.names, default=-1) + 1)],
            scores=boxes.conf if conf else None,
            line_width=line_width,
            labels=labels,
        )

    def show(self) -> None:
        """Show the drawn picture: inline in a notebook, else in the system's viewer.

        Raises:
            BackendUnavailable: There is no display or no viewer.
        """
        picture = Image.fromarray(self.plot())
        notebook = _notebook_display()
        if notebook is not None:
            notebook(picture)
            return
        advice = "save it instead: results.save('picture.jpg')"
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise BackendUnavailable(f"there is no display to show the picture on; {advice}")
        if not ImageShow.show(picture, title=self.path):
            raise BackendUnavailable(f"no program to show pictures was found; {advice}")

    def save(self, path: str | Path, *, line_width: int | None = None) -> Path:
        """Write the drawn picture; the suffix chooses the format, missing folders are made.

        Raises:
            ConfigError: The suffix names no picture format.
            StorageError: The file cannot be written.
        """
        return write_image(path, self.plot(line_width=line_width))

    def save_txt(self, path: str | Path, *, save_conf: bool = False) -> Path:
        """Write YOLO rows, ``class cx cy w h [score]`` in fractions; an empty file when nothing was found.

        Raises:
            StorageError: The file cannot be written.
        """
        rows = []
        boxes = self.boxes.numpy()
        for class_id, box, score in zip(boxes.cls, boxes.xywhn, boxes.conf, strict=True):
            row = f"{int(class_id)} {' '.join(f'{side:.6f}' for side in box)}"
            rows.append(f"{row} {score:.6f}\n" if save_conf else f"{row}\n")
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text("".join(rows), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write '{target}': {error.strerror or error}") from None
        return target

    def summary(self, *, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """Return plain data, one entry a box: ``name``, ``class``, ``confidence``, ``box`` with ``x1 y1 x2 y2``.

        Args:
            normalize: Corners as fractions of the image instead of pixels.
            decimals: Digits behind the point.
        """
        boxes = self.boxes.numpy()
        rows = []
        for class_id, corners, score in zip(
            boxes.cls, boxes.xyxyn if normalize else boxes.xyxy, boxes.conf, strict=True
        ):
            sides = (round(float(side), decimals) for side in corners)
            rows.append(
                {
                    "name": self._name(int(class_id)),
                    "class": int(class_id),
                    "confidence": round(float(score), decimals),
                    "box": dict(zip(("x1", "y1", "x2", "y2"), sides, strict=True)),
                }
            )
        return rows

    def to_json(self, *, normalize: bool = False, decimals: int = 5) -> str:
        """Return ``summary()`` as JSON."""
        return json.dumps(self.summary(normalize=normalize, decimals=decimals), indent=2, ensure_ascii=False)

    def to_supervision(self) -> Any:
        """Return ``supervision.Detections``.

        Raises:
            BackendUnavailable: The package is not installed.
        """
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:  # it, or something that it needs
            raise BackendUnavailable(
                f"to_supervision() needs the package 'supervision' ({error}): pip install supervision"
            ) from None
        boxes = self.boxes.numpy()
        class_ids = boxes.cls.astype(np.int64)
        return supervision.Detections(
            xyxy=boxes.xyxy,
            confidence=boxes.conf,
            class_id=class_ids,
            data={"class_name": np.array([self._name(int(class_id)) for class_id in class_ids], dtype=str)},
        )

    def cpu(self) -> Results:
        """Return the same results with tensors on the CPU."""
        return replace(self, boxes=self.boxes.cpu())

    def to(self, device: torch.device | str) -> Results:
        """Return the same results with tensors on a device."""
        return replace(self, boxes=self.boxes.to(device))

    def numpy(self) -> Results:
        """Return the same results with numpy arrays."""
        return replace(self, boxes=self.boxes.numpy())

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Any) -> Results:
        return replace(self, boxes=self.boxes[rows])

    def __iter__(self) -> Iterator[Results]:
        return (self[row] for row in range(len(self)))

    def __str__(self) -> str:
        counts = Counter(int(class_id) for class_id in self.boxes.numpy().cls)
        parts = (
            f"{n} {_plural(self._name(class_id)) if n > 1 else self._name(class_id)}"
            for class_id, n in sorted(counts.items())
        )
        return ", ".join(parts) or "nothing found"

    def __repr__(self) -> str:
        return f"Results({self.path!r}, orig_shape={self.orig_shape}: {self})"

    def _name(self, class_id: int) -> str:
        return self.names.get(class_id, f"class {class_id}")


def _plural(name: str) -> str:
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def _notebook_display() -> Any:
    """Return IPython's ``display`` inside a notebook, else None; IPython is only looked at when it runs already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not shell.has_trait("kernel"):
        return None
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    return display
