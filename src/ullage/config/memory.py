"""How training is made to fit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ullage.config.base import Section
from ullage.errors import ConfigError
from ullage.units import parse_bytes


class BudgetSettings(Section):
    """Memory budget and techniques."""

    memory: str | None = Field(
        default=None,
        description="budget, like '8GB': tensors (CPU), whole process (GPU)",
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        default="auto", description="True recomputes everywhere, False nowhere, auto as needed"
    )
    technique: str = Field(default="auto", description="none, recompute, block, nested, recompute+int8 ... or auto")
    micro_batch: int | None = Field(default=None, ge=1, description="images of one forward pass; None plans it")

    @field_validator("memory", "host_memory", mode="before", check_fields=False)
    @classmethod
    def _bytes(cls, value: object) -> object:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{value!r} is not an amount of memory; write it like '8GB'")
        try:
            parse_bytes(value)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return str(value)

    @model_validator(mode="after")
    def _consistent(self) -> BudgetSettings:
        if self.technique != "auto" and self.gradient_checkpointing != "auto":
            raise ValueError(
                f"technique={self.technique} and gradient_checkpointing={self.gradient_checkpointing} both choose how "
                "to save memory: give one of them"
            )
        return self

    @property
    def wanted_technique(self) -> str:
        """The technique that was asked for, ``"auto"`` when the budget decides."""
        if self.gradient_checkpointing == "auto":
            return self.technique
        return "recompute" if self.gradient_checkpointing else "none"


class MemorySettings(BudgetSettings):
    """Memory budget and techniques, and what happens when they were not enough."""

    on_oom: Literal["replan", "raise"] = Field(
        default="replan", description="out of memory: redo the step in less memory, or stop"
    )
    host_memory: str | None = Field(
        default=None, description="budget for image cache and loader, like '4GB'; None: no limit"
    )
