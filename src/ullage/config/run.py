"""Where a run writes, and how it is repeated."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from ullage.config.base import Section


class FolderSettings(Section):
    """The run's folder."""

    project: str | None = Field(None, description="folder of the runs; None means runs/detect")
    name: str | None = Field(None, description="folder of this run; None means the verb, numbered")
    exist_ok: bool = Field(False, description="write into an existing folder of that name")

    @field_validator("project", "name", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, (int, float)) or hasattr(value, "__fspath__") else value


class TrainRunSettings(Section):
    """Repeatability and what is kept of a run."""

    seed: int = Field(0, ge=0, description="seed of weights, order and augmentation")
    deterministic: bool = Field(True, description="refuse operations that vary from run to run")
    resume: bool | str = Field(False, description="go on with an interrupted run: True, or its last.pt")
    save_period: int = Field(-1, ge=-1, description="keep a checkpoint every n epochs; -1 keeps best and last")
    val: bool = Field(True, description="evaluate after every epoch")
    plots: bool = Field(True, description="draw curves and sample pictures")
    verbose: bool = Field(True, description="show progress")
