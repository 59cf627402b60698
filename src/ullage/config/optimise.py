"""How weights are moved, and for how long."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ullage.config.base import Section


class OptimSettings(Section):
    """Optimiser, schedule, length of the run."""

    epochs: int = Field(default=100, ge=1, description="passes over the training images")
    time: float | None = Field(default=None, gt=0, description="stop after this many hours; overrides epochs")
    patience: int = Field(default=100, ge=0, description="stop after this many epochs without gain; 0 never")
    optimizer: Literal["auto", "SGD", "AdamW"] = Field(
        default="auto", description="'auto': AdamW for short runs, else SGD"
    )
    lr0: float = Field(default=0.01, gt=0, description="first learning rate ('auto' sets its own)")
    lrf: float = Field(default=0.01, gt=0, le=1, description="last learning rate as a part of lr0")
    momentum: float = Field(default=0.937, ge=0, lt=1, description="SGD momentum, or AdamW's first beta")
    weight_decay: float = Field(default=5e-4, ge=0, description="weight decay; none on biases and norms")
    warmup_epochs: float = Field(default=3.0, ge=0, description="epochs over which the rate rises")
    warmup_momentum: float = Field(default=0.8, ge=0, lt=1, description="momentum at the start of the warm-up")
    warmup_bias_lr: float = Field(default=0.0, ge=0, description="rate of the biases at the start of the warm-up")
    cos_lr: bool = Field(default=False, description="cosine instead of linear decay")
    nbs: int = Field(default=64, ge=1, description="nominal batch: smaller batches are accumulated up to it")

    @field_validator("optimizer", mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        return {"sgd": "SGD", "adamw": "AdamW", "auto": "auto"}.get(str(value).lower(), value)
