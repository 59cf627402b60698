"""Where a run writes, and how it is repeated."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ullage.config.base import Section


class FolderSettings(Section):
    """The run's folder."""

    project: str | None = Field(default=None, description="folder of the runs; None means runs/detect")
    name: str | None = Field(default=None, description="folder of this run; None means the verb, numbered")
    exist_ok: bool = Field(default=False, description="write into an existing folder of that name")

    @field_validator("project", "name", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return str(value) if is_number or hasattr(value, "__fspath__") else value


class TrainRunSettings(Section):
    """Repeatability and what is kept of a run."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="seed of weights, order and augmentation")
    deterministic: bool = Field(default=True, description="refuse operations that vary from run to run")
    resume: bool | str = Field(default=False, description="go on with an interrupted run: True, or its last.pt")
    detach: bool = Field(default=False, description="train in the background; the terminal may be closed")
    save_period: int = Field(default=-1, ge=-1, description="keep a checkpoint every n epochs; -1 keeps best and last")
    save_minutes: float = Field(
        default=5.0, ge=0, description="age at which last.pt is written within an epoch; 0: at its end"
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop", description="gradient not finite: end the run, or leave the step out"
    )
    val: bool = Field(default=True, description="evaluate after every epoch")
    plots: bool = Field(default=True, description="draw curves and sample pictures")
    verbose: bool = Field(default=True, description="show progress")

    @field_validator("resume", mode="before")
    @classmethod
    def _resume_is_text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value
