"""The configuration of the data verbs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ullage.config.base import Section, VerbConfig


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


class DataCheckConfig(VerbConfig):
    """Everything that ``data check`` is told."""

    verb: ClassVar[str] = "data check"

    check: CheckSettings


class DataConvertConfig(VerbConfig):
    """Everything that ``data convert`` is told."""

    verb: ClassVar[str] = "data convert"

    convert: ConvertSettings
