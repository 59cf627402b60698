"""Where the work runs, and in which precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import Field, field_validator

from ullage.config.base import Section


class DeviceSettings(Section):
    """Device."""

    device: str | None = Field(
        default=None, description="'cpu', 0, 'cuda:0', 'mps'; None takes the first GPU, else the CPU"
    )

    @field_validator("device", mode="before")
    @classmethod
    def _device_text(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return ",".join(str(part) for part in cast(Sequence[Any], value))
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class PredictDeviceSettings(DeviceSettings):
    """Devices."""

    device: str | None = Field(
        default=None, description="'cpu', 0, 'cuda:0', 'mps', or several, '0,1'; None: the first GPU, or CPU"
    )


class EvalDeviceSettings(DeviceSettings):
    """Device and precision."""

    amp: bool | Literal["fp16", "bf16"] = Field(
        default=True, description="mixed precision; True chooses what is faster"
    )


class TrainDeviceSettings(EvalDeviceSettings):
    """Device, precision, compilation."""

    device: str | None = Field(
        default=None,
        description="'cpu', 0, 'mps', or several, '0,1'; None: the first GPU, or CPU",
    )
    sync_bn: bool = Field(default=False, description="BatchNorm over the images of all processes")
    compile: bool = Field(default=False, description="compile the network with torch.compile")
