"""The configuration of the verbs that look before one leaps: ``data check``, ``view`` and ``convert``, ``plan``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ullage.config.base import Section, VerbConfig
from ullage.config.data import check_imgsz
from ullage.config.memory import BudgetSettings


class CheckSettings(Section):
    """What is checked."""

    data: str = Field(description="data set: YAML, COCO JSON, folder, CSV, or 'demo'")
    report: str | None = Field(default=None, description="also write the whole report there, as JSON")

    @field_validator("data", "report", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value


class ConvertSettings(Section):
    """What is converted, and into what."""

    data: str = Field(description="data set: YAML, COCO JSON, folder, CSV, or 'demo'")
    to: Literal["yolo", "coco", "voc", "csv"] = Field(description="format to write")
    out: str = Field(description="folder to write; new, or empty")
    images: Literal["copy", "link"] = Field(default="copy", description="copy the images, or make hard links")

    @field_validator("data", "out", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value


class ViewSettings(Section):
    """Which images are shown, and where."""

    data: str = Field(description="data set: YAML, COCO JSON, folder, CSV, or 'demo'")
    split: Literal["train", "val", "test"] = Field(default="train", description="which split")
    classes: list[int | str] | None = Field(
        default=None, description="names or ids: only images with one of them, and only their boxes"
    )
    page: int = Field(default=1, ge=1, description="which page")
    images: int = Field(default=24, ge=1, le=400, description="images a page")
    cell: int = Field(default=320, ge=64, le=1280, description="side of a cell in pixels")
    seed: int | None = Field(default=None, ge=0, description="shuffle the images; None keeps their order")
    out: str = Field(default="data_view.jpg", description="file to write: .jpg, .png or .webp")

    @field_validator("classes", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Read ``cat,dog`` and ``0,2``."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        return [value] if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("data", "out", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value


class PlanSettings(Section):
    """What would be trained, and where."""

    model: str = Field(default="yolov12n", description="network name")
    data: str | None = Field(default=None, description="data set, for its classes and most crowded images")
    batch: int = Field(default=16, ge=1, description="images a step, over all devices")
    imgsz: int | tuple[int, int] = Field(default=640, description="training size in pixels, or (min, max)")
    device: Literal["cuda", "cpu"] = Field(default="cuda", description="what will train, present or not")
    devices: int = Field(default=1, ge=1, description="how many share the batch")
    precision: Literal["float32", "bf16", "fp16"] | None = Field(
        default=None, description="of matrix products; None: fp16 on cuda, float32 on cpu"
    )
    optimizer: Literal["SGD", "Adam", "AdamW"] = Field(default="SGD", description="optimizer, for its state")
    boxes_per_image: int | None = Field(
        default=None, ge=0, description="most boxes an image, mosaics too; None: from data, else 100"
    )
    save: str | None = Field(default=None, description="also write the plan there, as JSON")

    _sizes = field_validator("imgsz", mode="before")(check_imgsz)

    @field_validator("model", "data", "save", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value

    @property
    def resolved_precision(self) -> Literal["float32", "bf16", "fp16"]:
        """The type of matrix products."""
        return self.precision or ("fp16" if self.device == "cuda" else "float32")


class PlanConfig(VerbConfig):
    """Everything that ``plan`` is told."""

    verb: ClassVar[str] = "plan"

    plan: PlanSettings = Field(default_factory=PlanSettings)
    memory: BudgetSettings = Field(default_factory=BudgetSettings)


class DataCheckConfig(VerbConfig):
    """Everything that ``data check`` is told."""

    verb: ClassVar[str] = "data check"

    check: CheckSettings


class DataViewConfig(VerbConfig):
    """Everything that ``data view`` is told."""

    verb: ClassVar[str] = "data view"

    view: ViewSettings


class DataConvertConfig(VerbConfig):
    """Everything that ``data convert`` is told."""

    verb: ClassVar[str] = "data convert"

    convert: ConvertSettings
