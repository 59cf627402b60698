"""The configuration of each verb: which sections it reads."""

from __future__ import annotations

from typing import ClassVar

from pydantic import model_validator

from ullage.config.augment import AugmentSettings
from ullage.config.base import VerbConfig
from ullage.config.data import DataSettings, LoaderSettings
from ullage.config.device import DeviceSettings
from ullage.config.evaluate import EvalSettings
from ullage.config.loss import LossSettings
from ullage.config.model import ModelSettings
from ullage.config.optimise import OptimSettings
from ullage.config.predict import PredictSettings
from ullage.config.run import FolderSettings, TrainRunSettings


class TrainConfig(VerbConfig):
    """Everything that a training run is told."""

    verb: ClassVar[str] = "train"

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    loader: LoaderSettings = LoaderSettings()
    optim: OptimSettings = OptimSettings()
    loss: LossSettings = LossSettings()
    augment: AugmentSettings = AugmentSettings()
    device: DeviceSettings = DeviceSettings()
    folder: FolderSettings = FolderSettings()
    run: TrainRunSettings = TrainRunSettings()

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

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings(rect=True)
    loader: LoaderSettings = LoaderSettings()
    eval: EvalSettings = EvalSettings()
    device: DeviceSettings = DeviceSettings()
    folder: FolderSettings = FolderSettings()


class PredictConfig(VerbConfig):
    """Everything that a prediction is told."""

    verb: ClassVar[str] = "predict"

    model: ModelSettings = ModelSettings()
    predict: PredictSettings = PredictSettings()
    device: DeviceSettings = DeviceSettings()
    folder: FolderSettings = FolderSettings()
