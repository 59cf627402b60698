"""The configuration of ``runs``: which run, and what is done to it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from ullage.config.base import Section, VerbConfig


class ProjectSettings(Section):
    """Where the runs are."""

    project: str | None = Field(default=None, description="folder of the runs; None means runs/detect")

    @field_validator("*", mode="before")
    @classmethod
    def _text(cls, value: Any, info: Any) -> Any:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        is_text = info.field_name in ("project", "name")
        return str(value) if is_text and (is_number or hasattr(value, "__fspath__")) else value


class WhichRunSettings(ProjectSettings):
    """Which run."""

    name: str | None = Field(default=None, description="name or folder of a run; None: the only one that is running")


class FollowSettings(WhichRunSettings):
    """Which run, and how much of its log."""

    lines: int = Field(default=10, ge=0, description="lines of the log that are shown first")


class StopSettings(WhichRunSettings):
    """Which run, and how it is stopped."""

    force: bool = Field(default=False, description="kill it: what came after its last checkpoint is lost")
    wait: float = Field(default=120.0, ge=0, description="seconds to wait until it has stopped")


class ResumeSettings(ProjectSettings):
    """Which run."""

    name: str = Field(description="name or folder of a run")
    force: bool = Field(default=False, description="also a run of which nobody here can say that it has ended")


class RunsListConfig(VerbConfig):
    """Everything that ``runs list`` is told."""

    verb: ClassVar[str] = "runs"

    runs: ProjectSettings = Field(default_factory=ProjectSettings)


class RunsFollowConfig(VerbConfig):
    """Everything that ``runs follow`` is told."""

    verb: ClassVar[str] = "runs follow"

    runs: FollowSettings = Field(default_factory=FollowSettings)


class RunsStopConfig(VerbConfig):
    """Everything that ``runs stop`` is told."""

    verb: ClassVar[str] = "runs stop"

    runs: StopSettings = Field(default_factory=StopSettings)


class RunsResumeConfig(VerbConfig):
    """Everything that ``runs resume`` is told."""

    verb: ClassVar[str] = "runs resume"

    runs: ResumeSettings
