"""Which images, at which size, in which batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from ullage.config.base import Section, parse_value

STRIDE = 32


def check_imgsz(value: Any) -> Any:
    """Read ``640``, ``(320, 608)``, ``"320,608"`` and check that sizes are multiples of 32."""
    if isinstance(value, str):
        value = parse_value(value)
    sizes = cast(Sequence[Any], value if isinstance(value, (list, tuple)) else [value])
    for size in sizes:
        if isinstance(size, int) and not isinstance(size, bool) and (size < STRIDE or size % STRIDE):
            near = max(round(size / STRIDE), 1) * STRIDE
            raise ValueError(f"sizes must be multiples of {STRIDE}, {near} is the nearest")
    if isinstance(value, (list, tuple)):
        return sizes[0] if len(sizes) == 1 else tuple(sizes)
    return value


def check_ids(value: Any) -> Any:
    """Read one number or several as a list: ``3``, ``"0,2"``, ``[0, 2]``."""
    if isinstance(value, str):
        value = parse_value(value)
    return [value] if isinstance(value, int) and not isinstance(value, bool) else value


class SetSettings(Section):
    """The data set, or the part of it that counts."""

    data: str | None = Field(default=None, description="data set: YAML, COCO JSON, folder, CSV, or 'demo'")
    batch: int = Field(default=16, ge=1, description="images a step")
    single_cls: bool = Field(default=False, description="treat all classes as one")
    classes: list[int] | None = Field(default=None, description="use the boxes of these class ids only")
    fraction: float = Field(default=1.0, gt=0, le=1, description="use this part of the images")

    _ids = field_validator("classes", mode="before")(check_ids)

    @field_validator("data", mode="before")
    @classmethod
    def _data_is_text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value


class DataSettings(SetSettings):
    """The training data and how it is cut into batches."""

    imgsz: int | tuple[int, int] = Field(
        default=640, description="training size in pixels, or (min, max) for multi-scale"
    )
    rect: bool = Field(default=False, description="pad batches only to their longest side")
    multi_scale: bool = Field(default=False, description="vary the size from half to one and a half of imgsz")

    _sizes = field_validator("imgsz", mode="before")(check_imgsz)


class EvalDataSettings(SetSettings):
    """The data to judge on: every image once, with as little padding as possible."""

    imgsz: int | None = Field(
        default=None, description="size of the longer side in pixels; None: the exported file's, else 640"
    )
    rect: bool = Field(default=True, description="pad batches only to their longest side")

    _sizes = field_validator("imgsz", mode="before")(check_imgsz)


class EvalLoaderSettings(Section):
    """How images get from the disk to the network."""

    workers: int | None = Field(default=None, ge=0, description="loader processes; None chooses from the cores")


class LoaderSettings(EvalLoaderSettings):
    """How images get from the disk to the network, epoch after epoch."""

    cache: Literal[False, "ram", "disk"] = Field(
        default=False, description="keep decoded images: False, 'ram' or 'disk'"
    )

    @field_validator("cache", mode="before")
    @classmethod
    def _true_means_ram(cls, value: Any) -> Any:
        return "ram" if value is True else value
