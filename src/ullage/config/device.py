"""Where the work runs, and in which precision."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ullage.config.base import Section


class DeviceSettings(Section):
    """Device, precision, compilation."""

    device: str | None = Field(None, description="'cpu', 0, 'cuda:0', 'mps'; None takes the first GPU, else the CPU")
    amp: bool | Literal["fp16", "bf16"] = Field(True, description="mixed precision; True chooses what is faster")
    compile: bool = Field(False, description="compile the network with torch.compile")

    @field_validator("device", mode="before")
    @classmethod
    def _device_text(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return ",".join(str(part) for part in value)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
