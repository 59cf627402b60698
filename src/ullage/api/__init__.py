"""One verb per task, each from a typed configuration to a typed result: the only place that puts the rooms together."""

from ullage.api.export import ExportResult, export
from ullage.api.exported import ExportedModel, open_model
from ullage.api.models import LoadedModel, ModelInfo, load_model
from ullage.api.plan import estimate, plan
from ullage.api.predict import predict
from ullage.api.train import TrainResult, train
from ullage.api.val import val

__all__ = [
    "ExportResult",
    "ExportedModel",
    "LoadedModel",
    "ModelInfo",
    "TrainResult",
    "estimate",
    "export",
    "load_model",
    "open_model",
    "plan",
    "predict",
    "train",
    "val",
]
