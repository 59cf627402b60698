"""How training images are varied."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ullage.config.base import Section


class AugmentSettings(Section):
    """Augmentation; probabilities and ranges. 0 switches a part off."""

    hsv_h: float = Field(default=0.015, ge=0, le=1, description="hue shift, fraction of the circle")
    hsv_s: float = Field(default=0.7, ge=0, le=1, description="saturation gain, +- fraction")
    hsv_v: float = Field(default=0.4, ge=0, le=1, description="brightness gain, +- fraction")
    degrees: float = Field(default=0.0, ge=0, le=180, description="rotation, +- degrees")
    translate: float = Field(default=0.1, ge=0, le=1, description="shift, +- fraction of the image")
    scale: float = Field(default=0.5, ge=0, lt=1, description="size gain, +- fraction")
    shear: float = Field(default=0.0, ge=0, le=80, description="shear, +- degrees")
    perspective: float = Field(default=0.0, ge=0, le=0.001, description="perspective, +- per pixel")
    flipud: float = Field(default=0.0, ge=0, le=1, description="probability of a vertical flip")
    fliplr: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    mosaic: float = Field(default=1.0, ge=0, le=1, description="probability of four images in one")
    mixup: float = Field(default=0.0, ge=0, le=1, description="probability of blending two images")
    copy_paste: float = Field(default=0.0, ge=0, le=1, description="probability of pasting objects from another image")
    close_mosaic: int = Field(default=10, ge=0, description="last epochs without mosaic, mixup and copy-paste")
    partners: Literal["window", "all"] = Field(
        default="window", description="mosaic and mixup partners: images due shortly before, or any"
    )
