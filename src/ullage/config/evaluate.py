"""How a detector is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ullage.config.base import Section


class EvalSettings(Section):
    """Evaluation thresholds and outputs."""

    split: Literal["val", "test", "train"] = Field(default="val", description="which part of the data set")
    conf: float = Field(default=0.001, ge=0, lt=1, description="drop boxes that score below this")
    iou: float = Field(default=0.7, gt=0, le=1, description="overlap above which the weaker box is dropped")
    max_det: int = Field(default=300, ge=1, description="boxes an image at most")
    save_json: bool = Field(default=False, description="write predictions.json in COCO form")
    plots: bool = Field(default=True, description="draw curves, confusion matrix and sample pictures")
    verbose: bool = Field(default=True, description="show progress")
