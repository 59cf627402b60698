"""What a network is written for, and how."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ullage.config.base import Section, VerbConfig
from ullage.config.data import check_imgsz
from ullage.config.device import DeviceSettings
from ullage.config.model import ModelSettings

ExportFormat = Literal["onnx", "openvino", "engine", "torchscript"]
_INT8 = ("openvino", "engine")
_NMS = ("onnx", "openvino", "engine")
_OPSET = ("onnx", "openvino", "engine")


class ExportSettings(Section):
    """The file to write, and the data that prove it."""

    format: ExportFormat = Field(default="onnx", description="onnx, openvino, engine (TensorRT) or torchscript")
    imgsz: int | tuple[int, int] | None = Field(
        default=None, description="size of the input, or (h, w); None: the size of the training, else 640"
    )
    batch: int = Field(default=1, ge=1, description="images a pass; with dynamic the most that engine takes")
    dynamic: bool = Field(default=False, description="leave batch and size open")
    half: bool = Field(default=False, description="float16 weights and products; inputs and outputs stay float32")
    int8: bool = Field(default=False, description="8-bit products, calibrated on data= (openvino, engine)")
    nms: bool = Field(default=False, description="suppress inside the file; conf, iou and max_det are fixed then")
    conf: float = Field(default=0.25, ge=0, lt=1, description="with nms: drop boxes that score below this")
    iou: float = Field(default=0.7, gt=0, le=1, description="with nms: overlap above which the weaker box is dropped")
    max_det: int = Field(default=300, ge=1, description="with nms: boxes an image at most")
    opset: int | None = Field(default=None, ge=13, le=20, description="ONNX operators; None: what most runtimes read")
    data: str | None = Field(
        default=None, description="data set that the file is judged on, before and after; calibrates int8"
    )
    split: Literal["val", "test", "train"] = Field(default="val", description="which part of it judges")
    fraction: float = Field(default=1.0, gt=0, le=1, description="use this part of its images")
    workspace: float | None = Field(default=None, gt=0, description="GiB that the engine's builder may use")
    out: str | None = Field(default=None, description="file to write; None: beside the weights")
    verbose: bool = Field(default=True, description="print the proof")

    _sizes = field_validator("imgsz", mode="before")(check_imgsz)

    @field_validator("data", "out", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value

    @model_validator(mode="after")
    def _consistent(self) -> ExportSettings:
        if self.half and self.int8:
            raise ValueError("half=True and int8=True exclude each other: choose one")
        self._only("int8", self.int8, _INT8)
        self._only("nms", self.nms, _NMS)
        self._only("opset", self.opset is not None, _OPSET)
        self._only("workspace", self.workspace is not None, ("engine",))
        if self.int8 and self.dynamic and self.format == "openvino":
            # OpenVINO 2026.4 writes such a file, but fails as soon as the size of its input changes.
            raise ValueError("dynamic=True does not go with int8=True in OpenVINO: leave one out")
        if self.int8 and self.data is None:
            raise ValueError("int8=True needs data=: images like those that the file will see, to calibrate on")
        if not self.nms and {"conf", "iou", "max_det"} & self.model_fields_set:
            changed = [key for key in ("conf", "iou", "max_det") if getattr(self, key) != _default(key)]
            if changed:
                raise ValueError(f"{changed[0]} is fixed in the file with nms=True only; without it predict chooses")
        return self

    def _only(self, key: str, asked: bool, formats: tuple[str, ...]) -> None:
        if asked and self.format not in formats:
            raise ValueError(f"{key} is not for format={self.format}, but for {' and '.join(formats)}")


def _default(key: str) -> Any:
    return ExportSettings.model_fields[key].default


class ExportConfig(VerbConfig):
    """Everything that an export is told."""

    verb: ClassVar[str] = "export"

    model: ModelSettings = Field(default_factory=ModelSettings)
    export: ExportSettings = Field(default_factory=ExportSettings)
    device: DeviceSettings = Field(default_factory=DeviceSettings)
