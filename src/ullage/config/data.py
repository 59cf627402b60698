"""Which images, at which size, in which batches."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ullage.config.base import Section

STRIDE = 32


def check_imgsz(value: Any) -> Any:
    """Read ``640``, ``(320, 608)``, ``"320,608"`` and check that sizes are multiples of 32."""
    if isinstance(value, str):
        value = [int(part) if part.strip().isdigit() else part for part in value.strip("[]() ").split(",")]
        value = value[0] if len(value) == 1 else value
    sizes: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    for size in sizes:
        if isinstance(size, int) and not isinstance(size, bool) and (size < STRIDE or size % STRIDE):
            near = max(round(size / STRIDE), 1) * STRIDE
            raise ValueError(f"sizes must be multiples of {STRIDE}, {near} is the nearest")
    return tuple(value) if isinstance(value, list) else value


class DataSettings(Section):
    """The data set and how it is cut into batches."""

    data: str | None = Field(None, description="data set: YAML, COCO JSON, folder, CSV, or 'demo'")
    imgsz: int | tuple[int, int] = Field(640, description="training size in pixels, or (min, max) for multi-scale")
    batch: int = Field(16, ge=1, description="images a step")
    rect: bool = Field(False, description="pad batches only to their longest side")
    multi_scale: bool = Field(False, description="vary the size from half to one and a half of imgsz")
    single_cls: bool = Field(False, description="treat all classes as one")
    classes: list[int] | None = Field(None, description="train on these class ids only")
    fraction: float = Field(1.0, gt=0, le=1, description="use this part of the training images")

    _sizes = field_validator("imgsz", mode="before")(check_imgsz)

    @field_validator("data", mode="before")
    @classmethod
    def _data_is_text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value

    @field_validator("classes", mode="before")
    @classmethod
    def _one_class(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return [value] if isinstance(value, int) else value


class LoaderSettings(Section):
    """How images get from the disk to the network."""

    workers: int | None = Field(None, ge=0, description="loader processes; None chooses from the cores")
    cache: Literal[False, "ram", "disk"] = Field(False, description="keep decoded images: False, 'ram' or 'disk'")

    @field_validator("cache", mode="before")
    @classmethod
    def _true_means_ram(cls, value: Any) -> Any:
        return "ram" if value is True else value
