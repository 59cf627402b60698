"""How a detector is used."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from ullage.config.base import Section
from ullage.config.data import check_ids, check_imgsz


class PredictSettings(Section):
    """Sources, thresholds and outputs of prediction."""

    source: str | None = Field(default=None, description="image, video, folder, glob, URL, camera, stream")
    imgsz: int | tuple[int, int] | None = Field(
        default=None, description="size of the longer side, or (h, w); None: the exported file's, else 640"
    )
    conf: float = Field(default=0.25, ge=0, lt=1, description="drop boxes that score below this")
    iou: float = Field(default=0.7, gt=0, le=1, description="overlap above which the weaker box is dropped")
    max_det: int = Field(default=300, ge=1, description="boxes an image at most")
    classes: list[int] | None = Field(default=None, description="keep these class ids only")
    agnostic_nms: bool = Field(default=False, description="suppress overlaps across classes")
    batch: int = Field(default=1, ge=1, description="images a pass, of streams the most")
    half: bool = Field(default=False, description="16-bit inference")
    save: bool = Field(default=False, description="save annotated pictures or video")
    save_txt: bool = Field(default=False, description="save boxes as YOLO text files")
    save_frames: bool = Field(default=False, description="save the annotated frames of videos as pictures, too")
    save_jsonl: bool = Field(default=False, description="save results.jsonl, one line an image or frame")
    save_coco: bool = Field(default=False, description="save coco.json, all boxes in COCO's format")
    verbose: bool = Field(default=True, description="print one line an image")
    stream: bool | None = Field(
        default=None, description="yield results one by one; None does so for videos and streams"
    )
    vid_stride: int = Field(default=1, ge=1, description="of videos and streams, use every so manieth frame")
    policy: Literal["oldest", "latest"] | None = Field(
        default=None, description="waiting frames: oldest first, or the latest only; None: by the kind"
    )
    latency: float | None = Field(
        default=None, gt=0, description="ms from a stream's frame to its result; what is later is dropped"
    )
    reconnect: float | None = Field(
        default=None, ge=0, description="seconds that a lost stream is called again; None: for ever"
    )

    _sizes = field_validator("imgsz", mode="before")(check_imgsz)
    _ids = field_validator("classes", mode="before")(check_ids)

    @field_validator("source", mode="before")
    @classmethod
    def _source_is_text(cls, value: Any) -> Any:
        return str(value) if hasattr(value, "__fspath__") else value
