"""Which network, and from which weights."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from ullage.config.base import Section


class ModelSettings(Section):
    """Network and initial weights."""

    model: str = Field("yolov12n", description="network name or weights file")
    pretrained: bool | str = Field(True, description="start from the model file's weights; or name another file")
    freeze: int | list[int] | None = Field(None, description="freeze the first n blocks, or the listed ones")

    @field_validator("model", mode="before")
    @classmethod
    def _model_is_text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value
