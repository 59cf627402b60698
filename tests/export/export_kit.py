"""Networks to export, and the calls that do it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import interpolate

from ullage import api
from ullage.api.models import LoadedModel, fresh
from ullage.config import ExportConfig
from ullage.data.decode import read_image
from ullage.data.source import open_dataset
from ullage.export.proof import letterboxed
from ullage.export.writers import FORMATS
from ullage.nn.detector import Detector
from ullage.nn.head import DetectHead
from ullage.nn.layers import BN_MOMENTUM, ConvUnit
from ullage.nn.outputs import RawDetections
from ullage.zoo.yolov12 import AreaAttention

SIDE = 96


class Mini(Detector):
    """Three levels, one area attention: everything that an export must get right, in a few layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.p3 = nn.Sequential(ConvUnit(3, 16, 3, 2), ConvUnit(16, 32, 3, 2), ConvUnit(32, 32, 3, 2))
        self.p4, self.p5 = ConvUnit(32, 32, 3, 2), ConvUnit(32, 32, 3, 2)
        self.attention = AreaAttention(32, area=4)
        self.head = DetectHead(num_classes, (32, 32, 32), self.strides)

    def forward(self, images_B3HW: torch.Tensor) -> RawDetections:
        c3 = self.p3(images_B3HW)
        c4 = self.p4(c3)
        c4 = c4 + self.attention(c4)
        c5 = self.p5(c4)
        return self.head((c3, c4 + interpolate(c5, scale_factor=2.0), c5))


def filled(name: str, names: tuple[str, ...], *, side: int = SIDE) -> LoadedModel:
    """A network that is not trained, but whose every layer sees numbers of a trained one's size, scores spread out."""
    torch.manual_seed(0)
    network = (Mini(len(names)) if name == "mini" else fresh(name, len(names))).train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    paths = open_dataset("demo", split="val").paths[:4]
    with torch.no_grad():
        for branch in network.head.cv3:
            branch[-1].bias.zero_()  # type: ignore[index]
            branch[-1].weight.normal_(std=0.12)  # type: ignore[index]
        network(letterboxed([read_image(path) for path in paths], (side, side)).float() / 255)
    for norm in norms:
        norm.momentum = BN_MOMENTUM
    return LoadedModel(network.eval(), name, names)


def write(model: LoadedModel, folder: Path, **settings: object) -> Path:
    values = {"imgsz": SIDE, "device": "cpu", **settings}
    ending = FORMATS[str(settings["format"])].ending
    return api.export(ExportConfig.load({**values, "out": folder / f"best{ending}"}), model=model).path
