"""How training is made to fit."""

from __future__ import annotations

from pydantic import Field

from ullage.config.base import Section


class MemorySettings(Section):
    """Memory techniques."""

    gradient_checkpointing: bool = Field(default=False, description="keep block boundaries only, recompute the rest")
