"""How errors are weighted."""

from __future__ import annotations

from pydantic import Field

from ullage.config.base import Section


class LossSettings(Section):
    """Gains of the three parts of the loss."""

    box: float = Field(default=7.5, ge=0, description="weight of the box overlap loss")
    cls: float = Field(default=0.5, ge=0, description="weight of the class loss")
    dfl: float = Field(default=1.5, ge=0, description="weight of the distance distribution loss")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="how far class targets move towards even")
