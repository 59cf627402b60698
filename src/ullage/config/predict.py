"""How a detector is used."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from ullage.config.base import Section
from ullage.config.data import check_imgsz


class PredictSettings(Section):
    """Sources, thresholds and outputs of prediction."""

    source: str | None = Field(None, description="image, video, folder, glob, URL")
    imgsz: int | tuple[int, int] = Field(640, description="size of the longer side, or (h, w)")
    conf: float = Field(0.25, ge=0, lt=1, description="drop boxes that score below this")
    iou: float = Field(0.7, gt=0, le=1, description="overlap above which the weaker box is dropped")
    max_det: int = Field(300, ge=1, description="boxes an image at most")
    classes: list[int] | None = Field(None, description="keep these class ids only")
    agnostic_nms: bool = Field(False, description="suppress overlaps across classes")
    batch: int = Field(1, ge=1, description="images a pass")
    half: bool = Field(False, description="16-bit inference")
    save: bool = Field(False, description="save annotated pictures or video")
    save_txt: bool = Field(False, description="save boxes as YOLO text files")
    stream: bool | None = Field(None, description="yield results one by one; None does so for videos")

    _sizes = field_validator("imgsz", mode="before")(check_imgsz)

    @field_validator("classes", mode="before")
    @classmethod
    def _one_class(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",")]
        return [value] if isinstance(value, int) else value
