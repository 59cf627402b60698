"""``val``: judge a model on a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ullage.api.evaluate import check_classes, evaluate
from ullage.api.exported import ExportedModel, device_of, open_model
from ullage.api.folders import make_run_folder, write_text
from ullage.api.models import LoadedModel, named_model
from ullage.api.pictures import EvalPictures
from ullage.config import ValConfig
from ullage.data.index import DetectionSet
from ullage.data.loader import EvalLoader
from ullage.data.source import open_dataset
from ullage.errors import ConfigError
from ullage.metrics.result import Metrics
from ullage.nn.detector import Detector
from ullage.runtime.predictor import Precision, Predictor, TorchPredictor, check_suppression, input_size


def val(config: ValConfig, *, model: LoadedModel | ExportedModel | None = None) -> Metrics:
    """Judge a model.

    Writes a run folder with curves and pictures when ``plots``, with ``predictions.json`` when ``save_json``.

    Args:
        config: What to judge, on which data, how.
        model: An already loaded model; None loads ``config.model.model``.

    Raises:
        ConfigError: No data set was named, or settings contradict each other.
        DataError: The data set cannot be used, or knows other classes than the model.
    """
    if config.data.data is None:
        raise ConfigError("val needs data=: a YAML, COCO JSON, folder, CSV, or 'demo'")
    model = open_model(named_model(config.model, verb="val")) if model is None else model
    device = device_of(config.device.device, model)
    dataset = open_dataset(
        config.data.data,
        split=config.eval.split,
        classes=config.data.classes,
        single_cls=config.data.single_cls,
        fraction=config.data.fraction,
    )
    if isinstance(model, LoadedModel) and model.source is None:
        model, _ = model.with_classes(dataset.names)
    check_classes(len(model.names), dataset)  # before a folder is made
    _compare_names(model.names, dataset.names)
    if isinstance(model, ExportedModel):
        predictor = model.on(config.device.device)
    else:
        predictor = eval_predictor(model.network, dataset, device, half=config.device.amp is not False)
    imgsz, rect = eval_size(predictor, config.data.imgsz, rect=config.data.rect)
    limits = config.eval
    check_suppression(predictor, conf=limits.conf, iou=limits.iou, max_det=limits.max_det, class_agnostic=False)
    folder = None
    if config.eval.plots or config.eval.save_json:
        folder = make_run_folder(config.folder, verb="val")
        write_text(folder / "args.yaml", config.dump())
    batches = EvalLoader(
        dataset,
        imgsz=imgsz,
        batch=config.data.batch,
        rect=rect,
        workers=config.loader.workers,
        device_type=device.type,
    )
    try:
        metrics = evaluate(
            predictor,
            batches=batches,
            dataset=dataset,
            settings=config.eval,
            predictions_file=folder / "predictions.json" if folder and config.eval.save_json else None,
            on_batch=EvalPictures(folder=folder, names=dataset.names) if folder and config.eval.plots else None,
        ).metrics
    finally:
        batches.close()
    if folder and config.eval.plots:
        save_figures(metrics, folder)
    return metrics


def _compare_names(of_model: Sequence[str], of_data: Sequence[str]) -> None:
    """Warn of classes that are as many but called differently: boxes are compared by number."""
    if all(name == f"class{index}" for index, name in enumerate(of_model)):
        return  # the weights do not say
    for index, (mine, theirs) in enumerate(zip(of_model, of_data, strict=True)):
        if mine.casefold() != theirs.casefold():
            warnings.warn(
                f"class {index} is '{mine}' to the model, '{theirs}' in the data set; classes are compared by number",
                stacklevel=3,
            )
            return


def eval_size(predictor: Predictor, imgsz: int | None, *, rect: bool) -> tuple[int, bool]:
    """Return the longer side to judge at, and whether batches are padded only to their longest side.

    Raises:
        ConfigError: An exported file takes another size only, or one that is not square.
    """
    size = input_size(predictor, imgsz)
    if isinstance(size, int):
        return size, rect
    if predictor.fixed_size and size[0] != size[1]:
        raise ConfigError(
            f"the exported file takes {size[0]}x{size[1]} only, and val needs square images or any size: export it "
            "with dynamic=True, or with one imgsz"
        )
    return max(size), rect and not predictor.fixed_size


def eval_predictor(network: Detector, dataset: DetectionSet, device: torch.device, *, half: bool) -> TorchPredictor:
    """Make the predictor that judges: float16 on a GPU when allowed, else float32."""
    precision: Precision = "fp16" if half and device.type == "cuda" else "fp32"
    names = dataset.names if network.num_classes == len(dataset.names) else [str(i) for i in range(network.num_classes)]
    return TorchPredictor(network, names=names, device=device, precision=precision)


def save_figures(metrics: Metrics, folder: Path) -> None:
    """Draw curves and confusion matrices, and write the figures as JSON."""
    from ullage.metrics.plots import plot_all  # brings in matplotlib, which takes a second

    plot_all(metrics, folder)
    write_text(folder / "metrics.json", metrics.to_json())
