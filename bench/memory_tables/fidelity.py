"""Every bitwise technique against plain training: loss, gradients, buffers and weights of ten steps, bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import nn

from memory_step import IN_PARTS, Case, crowded_batch, parsed, techniques_of
from records import Record
from train_step import NUM_CLASSES
from ullage.losses.detection import DetectionLoss
from ullage.memory import apply_techniques
from ullage.zoo.registry import build

DETECTORS = ("yolo11n", "yolo11s", "yolov12n", "yolov12s", "yolo12n", "yolo12s")
OTHERS = ("resnet50", "swin_t", "mobilenet_v3_large", "transformer")
TECHNIQUES = ("recompute", "block", "nested", IN_PARTS)
AGAIN = "plain again"  # the control: where it differs, the machine does not repeat itself
STEPS, SIZE, BATCH, BOXES_PER_IMAGE = 10, 96, 2, 10

Step = Callable[[nn.Module], torch.Tensor]


class Encoder(nn.Module):
    """A small transformer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, dropout=0.1)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.out = nn.Linear(64, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return a score per class."""
        return self.out(self.layers(tokens).mean(1))


def combinations() -> list[Record]:
    """Return what is compared."""
    return [
        {"model": model, "precision": precision, "technique": technique}
        for model in (*DETECTORS, *OTHERS)
        for precision in ("float32", "bf16")
        for technique in (AGAIN, *TECHNIQUES)
    ]


def make(model: str, precision: str) -> tuple[nn.Module, Step]:
    """Return a network in training mode and its step, which gives the loss."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)

    if model in DETECTORS:
        batch = crowded_batch(Case(model, BATCH, SIZE), BOXES_PER_IMAGE)
        loss = DetectionLoss(num_classes=NUM_CLASSES)

        def detect(network: nn.Module) -> torch.Tensor:
            with autocast():
                raw = network(batch.images_BCHW)
            return loss(raw, batch.targets).mean()

        return build(model, num_classes=NUM_CLASSES).train(), detect

    if model == "transformer":
        network, inputs = Encoder(), torch.randn(4, 48, 64)
    else:
        network = torchvision.models.get_model(model, weights=None, num_classes=10)
        inputs = torch.rand(4, 3, SIZE, SIZE)
    labels = torch.arange(4)

    def classify(network: nn.Module) -> torch.Tensor:
        with autocast():
            scores = network(inputs)
        return nn.functional.cross_entropy(scores.float(), labels)

    return network.train(), classify


def train(network: nn.Module, step: Step) -> dict[str, torch.Tensor]:
    """Train ten steps; return every loss, the gradients of every step summed up by bits, buffers and weights."""
    torch.manual_seed(1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    seen: dict[str, torch.Tensor] = {}
    for number in range(STEPS):
        loss = step(network)
        loss.backward()
        seen[f"loss {number}"] = loss.detach().clone()
        if number in (0, STEPS - 1):
            for name, p in network.named_parameters():
                if p.grad is not None:
                    seen[f"gradient {number} {name}"] = p.grad.clone()
        optimiser.step()
        optimiser.zero_grad()
    seen.update({f"weight {name}": p.detach().clone() for name, p in network.named_parameters()})
    seen.update({f"buffer {name}": b.clone() for name, b in network.named_buffers()})
    seen["random numbers"] = torch.get_rng_state()
    return seen


def differences(plain: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of what is not the same, bit by bit."""
    if plain.keys() != other.keys():
        return sorted(plain.keys() ^ other.keys())
    return [name for name, tensor in plain.items() if not same_bits(tensor, other[name])]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits; NaN equals NaN, 0 does not equal -0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8))


_plain: dict[tuple[str, str], dict[str, torch.Tensor]] = {}


def measure(key: Record, options: Any) -> Record:
    """Train plainly (once a network) and with the technique; compare."""
    network, step = make(key["model"], key["precision"])
    name = key["model"], key["precision"]
    if name not in _plain:
        _plain.clear()
        _plain[name] = train(copy.deepcopy(network), step)
    technique = "none" if key["technique"] == AGAIN else key["technique"]
    with apply_techniques(network, parsed(techniques_of(network, technique))):
        other = train(network, step)
    differing = differences(_plain[name], other)
    return {"compared": len(other), "differing": len(differing), "first": differing[:3]}


def line(record: Record) -> str:
    """Return one combination in one line."""
    verdict = "identical" if not record["differing"] else f"{record['differing']} DIFFER: {', '.join(record['first'])}"
    return (
        f"{record['model']} {record['precision']} {record['technique']}: {record['compared']} tensors of {STEPS} steps "
        f"(losses, first and last gradients, weights, buffers, random numbers): {verdict}"
    )


def summary(records: Sequence[Record]) -> str:
    """Return how many combinations are identical."""
    wrong = [f"{r['model']} {r['precision']} {r['technique']}" for r in records if r["differing"]]
    return f"{len(records) - len(wrong)} of {len(records)} combinations bit-identical" + (
        f"; not: {', '.join(wrong)}" if wrong else ""
    )
