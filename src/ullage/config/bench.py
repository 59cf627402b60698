"""What is measured of a network in several runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

from pydantic import Field, field_validator

from ullage.config.base import Section, VerbConfig
from ullage.config.data import check_imgsz
from ullage.config.device import DeviceSettings
from ullage.config.model import ModelSettings
from ullage.config.run import FolderSettings

BENCH_FORMATS = (
    "pytorch", "pytorch-half", "torchscript", "onnx", "onnx-half", "openvino", "openvino-half", "openvino-int8",
    "engine", "engine-half", "engine-int8",
)  # fmt: skip
DEFAULT_FORMATS = ("pytorch", "torchscript", "onnx", "openvino")


class BenchSettings(Section):
    """Formats, images, and how long to look."""

    formats: list[str] | None = Field(
        default=None, description="such as onnx,openvino-int8,engine-half; None: pytorch torchscript onnx openvino"
    )
    imgsz: int | tuple[int, int] = Field(default=640, description="size of the input, or (h, w); images fill all of it")
    batch: int = Field(default=1, ge=1, description="images a pass")
    data: str | None = Field(default=None, description="data set for mAP and images; None: no mAP, images of the demo")
    split: Literal["val", "test", "train"] = Field(default="val", description="which part of it judges")
    fraction: float = Field(default=1.0, gt=0, le=1, description="use this part of its images")
    seconds: float = Field(default=10.0, gt=0, description="how long each format is timed, after warm-up")
    warmup: int = Field(default=5, ge=1, description="passes that are not counted")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; None: as many as PyTorch takes")
    conf: float = Field(default=0.25, ge=0, lt=1, description="threshold of the boxes while timing")
    plots: bool = Field(default=True, description="draw the table as a picture")
    verbose: bool = Field(default=True, description="print a line as each format is done")

    _sizes = field_validator("imgsz", mode="before")(check_imgsz)

    @property
    def chosen_formats(self) -> tuple[str, ...]:
        """The formats to measure."""
        return DEFAULT_FORMATS if self.formats is None else tuple(self.formats)

    @field_validator("formats", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if value is None:
            return None
        if not value or not isinstance(value, (str, list, tuple)):
            raise ValueError(f"formats={value!r}: name at least one of {', '.join(BENCH_FORMATS)}")
        names = value.split(",") if isinstance(value, str) else [str(name) for name in cast(Sequence[Any], value)]
        for name in names:
            if name not in BENCH_FORMATS:
                raise ValueError(f"formats: '{name}' is unknown; allowed: {', '.join(BENCH_FORMATS)}")
        if len(set(names)) < len(names):
            raise ValueError(f"formats={','.join(names)}: one is named twice")
        return names

    @field_validator("data", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value


class BenchConfig(VerbConfig):
    """Everything that a benchmark is told."""

    verb: ClassVar[str] = "bench"

    model: ModelSettings = Field(default_factory=ModelSettings)
    bench: BenchSettings = Field(default_factory=BenchSettings)
    device: DeviceSettings = Field(default_factory=DeviceSettings)
    folder: FolderSettings = Field(default_factory=FolderSettings)
