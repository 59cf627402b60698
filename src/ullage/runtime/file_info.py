"""What an exported file says of itself: the same text entries in every format, so that it can be used alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ullage._version import __version__
from ullage.errors import WeightsError
from ullage.runtime.outputs import Suppression

FilePrecision = Literal["fp32", "fp16", "int8"]
SCHEMA = 1
INPUT_NAME = "images"
DECODED_NAMES = ("boxes", "scores")
SUPPRESSED_NAMES = ("detections",)
_INPUT_LAYOUT = "images: float32 (batch, 3, height, width), RGB divided by 255, letterboxed with grey 114"
_DECODED_LAYOUT = "boxes: float32 (batch, anchors, 4), x1 y1 x2 y2 in input pixels; scores: (batch, anchors, classes)"
_SUPPRESSED_LAYOUT = (
    "detections: float32 (batch, max_det, 6), x1 y1 x2 y2 in input pixels, score, class; rows of zeros after the last"
)


@dataclass(frozen=True)
class FileInfo:
    """What a consumer needs to know of a file.

    Attributes:
        model_name: Name of the network (``yolov12n``).
        names: Class names by id.
        size_hw: Size of the input; of a dynamic file the size that it was exported at.
        batch: Images a pass; of a dynamic file any number is taken.
        dynamic: Whether batch and size are open.
        precision: Of weights and products; inputs and outputs are always float32.
        stride: Sides of a dynamic file's input must be multiples of this.
        suppression: Thresholds inside the file; None when it returns every anchor.
        version: Ullage that wrote it.
    """

    model_name: str
    names: tuple[str, ...]
    size_hw: tuple[int, int]
    batch: int = 1
    dynamic: bool = False
    precision: FilePrecision = "fp32"
    stride: int = 32
    suppression: Suppression | None = None
    version: str = __version__

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the file's outputs, in order."""
        return DECODED_NAMES if self.suppression is None else SUPPRESSED_NAMES

    def to_metadata(self) -> dict[str, str]:
        """Return the entries to write: each a JSON value, ``names`` a list in the order of the class ids."""
        outputs = _DECODED_LAYOUT if self.suppression is None else _SUPPRESSED_LAYOUT
        values = {
            "schema": SCHEMA,
            "ullage": self.version,
            "model": self.model_name,
            "family": self.model_name[:-1],
            "task": "detect",
            "names": self.names,
            "stride": self.stride,
            "imgsz": self.size_hw,
            "batch": self.batch,
            "dynamic": self.dynamic,
            "precision": self.precision,
            "nms": None if self.suppression is None else asdict(self.suppression),
            "inputs": _INPUT_LAYOUT,
            "outputs": outputs,
        }
        return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, entries: Mapping[str, str], *, path: Path, found: str) -> FileInfo:
        """Read what ``to_metadata`` wrote.

        Args:
            entries: The file's metadata, whoever wrote it.
            path: The file, for messages.
            found: What the file takes and returns, for messages.

        Raises:
            WeightsError: The file is not an export of Ullage, of a newer one, or damaged.
        """
        if not {"ullage", "schema", "names"} <= entries.keys():
            raise WeightsError(
                f"'{path}' was not exported by Ullage (it has no metadata of it; {found}), so nothing says what its "
                "numbers mean: export it again from its weights with 'ullage export'"
            )
        try:
            values: dict[str, Any] = {key: json.loads(entries[key]) for key in _READ if key in entries}
        except json.JSONDecodeError as error:
            raise WeightsError(f"the metadata of '{path}' are damaged: {error}") from None
        if values["schema"] != SCHEMA:
            raise WeightsError(f"'{path}' has schema {values['schema']}, this version reads {SCHEMA}; update Ullage")
        try:
            return cls(
                model_name=_of(values["model"], str),
                names=tuple(_of(name, str) for name in _of(values["names"], list)),
                size_hw=_size(values["imgsz"]),
                batch=_of(values["batch"], int),
                dynamic=_of(values["dynamic"], bool),
                precision=values["precision"],
                stride=_of(values["stride"], int),
                suppression=None if values["nms"] is None else Suppression(**_of(values["nms"], dict)),
                version=_of(values["ullage"], str),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"the metadata of '{path}' are damaged or incomplete: {error!r}") from None


_READ = ("schema", "ullage", "model", "names", "stride", "imgsz", "batch", "dynamic", "precision", "nms")


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} should be a {kind.__name__}")
    return value


def _size(value: Any) -> tuple[int, int]:
    height, width = _of(value, list)
    return _of(height, int), _of(width, int)
