"""Settings as frozen, validated sections. No torch here.

Users type flat keys (``lr0=0.01 mosaic=1.0``); each key lives in exactly one section, and a verb's configuration is a
handful of sections. ``TrainConfig.load(...)`` routes flat keys to sections; ``flat()`` is the way back.
"""

from ullage.config.augment import AugmentSettings
from ullage.config.base import KeyHelp, VerbConfig, parse_value
from ullage.config.data import DataSettings, EvalDataSettings, EvalLoaderSettings, LoaderSettings
from ullage.config.device import DeviceSettings, EvalDeviceSettings, TrainDeviceSettings
from ullage.config.evaluate import EvalSettings
from ullage.config.export import ExportConfig, ExportSettings
from ullage.config.loss import LossSettings
from ullage.config.memory import MemorySettings
from ullage.config.model import ModelSettings, TrainModelSettings
from ullage.config.optimise import OptimSettings
from ullage.config.predict import PredictSettings
from ullage.config.run import FolderSettings, TrainRunSettings
from ullage.config.verbs import PredictConfig, TrainConfig, ValConfig

__all__ = [
    "AugmentSettings",
    "DataSettings",
    "DeviceSettings",
    "EvalDataSettings",
    "EvalDeviceSettings",
    "EvalLoaderSettings",
    "EvalSettings",
    "ExportConfig",
    "ExportSettings",
    "FolderSettings",
    "KeyHelp",
    "LoaderSettings",
    "LossSettings",
    "MemorySettings",
    "ModelSettings",
    "OptimSettings",
    "PredictConfig",
    "PredictSettings",
    "TrainConfig",
    "TrainDeviceSettings",
    "TrainModelSettings",
    "TrainRunSettings",
    "ValConfig",
    "VerbConfig",
    "parse_value",
]
