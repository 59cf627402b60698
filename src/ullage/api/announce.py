"""What a training run says before it begins."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ullage.api.train_checks import TrainData
from ullage.config import OptimSettings, TrainConfig


def announcement(
    config: TrainConfig,
    data: TrainData,
    network: nn.Module,
    *,
    name: str,
    optimiser: str,
    lr0: float,
    where: str,
    precision: str,
    accumulate: int,
    folder: Path,
) -> list[str]:
    """Return one sentence about the network, one about the data, and what the user may want to change.

    Args:
        config: All settings.
        data: The images.
        network: What is trained.
        name: Its name.
        optimiser: The one that was chosen.
        lr0: Its rate.
        where: Device, or processes.
        precision: Of matrix products.
        accumulate: Batches that make a step.
        folder: Where the results go.
    """
    parameters, judged = sum(p.numel() for p in network.parameters()), len(data.val) if data.val is not None else 0
    accumulated = f", {accumulate} batches a step" if accumulate > 1 else ""
    texts = [
        f"{name}: {parameters:,} parameters, {len(data.train.names)} classes, on {where} in {precision}; {optimiser}, "
        f"lr0 {lr0:g}{accumulated}",
        f"{len(data.train):,} training images with {len(data.train.class_ids_N):,} boxes, {judged:,} validation "
        f"images; results in '{folder}'",
    ]
    problems = len(data.train.problems) + (len(data.val.problems) if data.val is not None else 0)
    if problems:
        texts.append(f"{problems} problems in the data; 'ullage data check data={config.data.data}' lists them")
    if unused := unused_by_auto(config.optim):
        texts.append(
            f"optimizer=auto sets its own lr0 and momentum, {unused} is not used: name an optimizer to keep it"
        )
    return texts


def unused_by_auto(settings: OptimSettings) -> str:
    """Name what was set although ``optimizer="auto"`` decides it; empty when nothing was."""
    if settings.optimizer != "auto":
        return ""
    fields = {key: OptimSettings.model_fields[key].default for key in ("lr0", "momentum")}
    return " and ".join(
        f"{key}={getattr(settings, key):g}" for key, default in fields.items() if getattr(settings, key) != default
    )
