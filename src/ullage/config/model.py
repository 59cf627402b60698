"""Which network, and from which weights."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from ullage.config.base import Section
from ullage.config.data import check_ids


class ModelSettings(Section):
    """The network."""

    model: str | None = Field(default=None, description="weights file, or a network's name for new weights")

    @field_validator("model", mode="before")
    @classmethod
    def _model_is_text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value


class TrainModelSettings(ModelSettings):
    """Network, initial weights, and what of them stays as it is."""

    model: str = Field(default="yolov12n", description="network name or weights file")  # pyright: ignore[reportIncompatibleVariableOverride]
    pretrained: bool | str = Field(
        default=True, description="start from the model file's weights; or name another file"
    )
    freeze: int | list[int] | None = Field(default=None, description="freeze the first n blocks, or the listed ones")

    @field_validator("pretrained", mode="before")
    @classmethod
    def _pretrained_is_text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value

    @field_validator("freeze", mode="before")
    @classmethod
    def _freeze_list(cls, value: Any) -> Any:
        return check_ids(value) if isinstance(value, str) and "," in value else value
