"""The configuration of each verb: which sections it reads."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from ullage.config.augment import AugmentSettings
from ullage.config.base import VerbConfig
from ullage.config.data import DataSettings, EvalDataSettings, EvalLoaderSettings, LoaderSettings
from ullage.config.device import EvalDeviceSettings, PredictDeviceSettings, TrainDeviceSettings
from ullage.config.evaluate import EvalSettings
from ullage.config.loss import LossSettings
from ullage.config.memory import MemorySettings
from ullage.config.model import ModelSettings, TrainModelSettings
from ullage.config.optimise import OptimSettings
from ullage.config.predict import PredictSettings
from ullage.config.run import FolderSettings, TrainRunSettings


class TrainConfig(VerbConfig):
    """Everything that a training run is told."""

    verb: ClassVar[str] = "train"

    model: TrainModelSettings = Field(default_factory=TrainModelSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    loader: LoaderSettings = Field(default_factory=LoaderSettings)
    optim: OptimSettings = Field(default_factory=OptimSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    augment: AugmentSettings = Field(default_factory=AugmentSettings)
    device: TrainDeviceSettings = Field(default_factory=TrainDeviceSettings)
    memory: MemorySettings = Field(default_factory=MemorySettings)
    folder: FolderSettings = Field(default_factory=FolderSettings)
    run: TrainRunSettings = Field(default_factory=TrainRunSettings)

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        sizes = self.data.imgsz
        if isinstance(sizes, tuple) and sizes[0] > sizes[1]:
            raise ValueError(f"imgsz={sizes}: the smaller size comes first")
        if isinstance(sizes, tuple) and self.data.multi_scale:
            raise ValueError(f"imgsz={sizes} is multi-scale already: leave multi_scale=True out, or give one size")
        if self.data.rect and self.augment.mosaic > 0:
            raise ValueError("rect=True needs mosaic=0: a mosaic fills a square")
        return self


class ValConfig(VerbConfig):
    """Everything that an evaluation is told."""

    verb: ClassVar[str] = "val"

    model: ModelSettings = Field(default_factory=ModelSettings)
    data: EvalDataSettings = Field(default_factory=EvalDataSettings)
    loader: EvalLoaderSettings = Field(default_factory=EvalLoaderSettings)
    eval: EvalSettings = Field(default_factory=EvalSettings)
    device: EvalDeviceSettings = Field(default_factory=EvalDeviceSettings)
    folder: FolderSettings = Field(default_factory=FolderSettings)


class PredictConfig(VerbConfig):
    """Everything that a prediction is told."""

    verb: ClassVar[str] = "predict"

    model: ModelSettings = Field(default_factory=ModelSettings)
    predict: PredictSettings = Field(default_factory=PredictSettings)
    device: PredictDeviceSettings = Field(default_factory=PredictDeviceSettings)
    folder: FolderSettings = Field(default_factory=FolderSettings)
