"""Putting a state dict into a network: strict by default, partial by name, and the keys of official checkpoints.

Official checkpoints number their blocks (``model.6.cv1.conv.weight``); our networks name them. A network maps numbers
to its names (`Detector.block_names`), below the block both use the same attribute names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ullage.errors import WeightsError

_OFFICIAL_KEY = re.compile(r"model\.(\d+)\.(.+)")
_SHOWN = 4
_SCALE_OF_STEM = {16: "n", 32: "s", 64: "ml", 96: "x"}  # output channels of block 0: 64 x the width factor
_HEAD_PARTS = {"cv2", "cv3", "dfl"}


@dataclass(frozen=True)
class LoadReport:
    """What a load did.

    Attributes:
        loaded: Keys whose tensors the network took over.
        skipped: (key, why) of tensors of the file that were left out; empty after a strict load.
        missing: Keys of the network that the file does not have; they keep their values. Empty after a strict load.
    """

    loaded: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.skipped)
        text = f"{len(self.loaded)} of {total} tensors loaded"
        if self.skipped:
            text += f", {len(self.skipped)} skipped: {_listed([f'{key} ({why})' for key, why in self.skipped])}"
        if self.missing:
            text += f"; {len(self.missing)} of the network are not in the file: {_listed(self.missing)}"
        return text


def load_into(network: nn.Module, state: Mapping[str, torch.Tensor], *, partial: bool = False) -> LoadReport:
    """Copy a state dict into a network; values are converted to the network's dtype and device.

    Args:
        network: Takes the tensors, in place.
        state: Key to tensor, in the network's own keys (see `official_to_ours`).
        partial: Load what fits and report the rest (a checkpoint with other classes, or of a related network).

    Returns:
        What was loaded, skipped and missing.

    Raises:
        WeightsError: Strict, and keys or shapes differ; or partial, and nothing fits. The network is then unchanged.
    """
    own = network.state_dict()
    skipped: list[tuple[str, str]] = []
    fitting: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        if key not in own:
            skipped.append((key, "the network has no such tensor"))
        elif own[key].shape != tensor.shape:
            skipped.append((key, f"{_shape(tensor)} in the file, {_shape(own[key])} in the network"))
        else:
            fitting[key] = tensor
    missing = tuple(key for key in own if key not in state)
    if not partial and (skipped or missing):
        raise WeightsError(_misfit(skipped, missing, own))
    if not fitting:
        raise WeightsError(
            f"nothing of the weights fits the network: it has {len(own)} tensors such as {_listed(list(own)[:1])}, "
            f"the file {len(state)} such as {_listed(list(state)[:1])}; are they of another model?"
        )
    network.load_state_dict(fitting, strict=False)
    return LoadReport(tuple(fitting), tuple(skipped), missing)


def _misfit(skipped: list[tuple[str, str]], missing: Sequence[str], own: Mapping[str, torch.Tensor]) -> str:
    unexpected = [key for key, _ in skipped if key not in own]
    reshaped = [f"{key} ({why})" for key, why in skipped if key in own]
    parts = [
        f"{len(keys)} {what}: {_listed(keys)}"
        for keys, what in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape"))
        if keys
    ]
    return (
        f"the weights do not fit the network: {'; '.join(parts)}. "
        "Load them into the model and number of classes that they were trained for, or load them partially"
    )


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(text if text.isprintable() else ascii(text) for text in (t[:160] for t in texts[:_SHOWN])) + more


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def is_official(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether all keys have the form of official checkpoints, ``model.NUMBER.…``."""
    return bool(state) and all(_OFFICIAL_KEY.fullmatch(key) for key in state)


def official_to_ours(state: Mapping[str, torch.Tensor], index_map: Mapping[int, str]) -> dict[str, torch.Tensor]:
    """Rename official keys to a network's own.

    Args:
        state: Keys of the form ``model.6.cv1.conv.weight``.
        index_map: Block number to the network's name of that block.

    Returns:
        The same tensors, ``model.6.…`` renamed to ``{index_map[6]}.…``.

    Raises:
        WeightsError: A key has another form, or a block number that the network does not have.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        match = _OFFICIAL_KEY.fullmatch(key)
        if match is None:
            raise WeightsError(
                f"{key[:120]!a} is no key of an official checkpoint; they look like 'model.0.conv.weight'"
            )
        index = int(match.group(1))
        if index not in index_map:
            raise WeightsError(
                f"the weights have a block {index} ({key[:120]!a}), this network has weights in blocks "
                f"{', '.join(map(str, sorted(index_map)))}; they are of another model"
            )
        renamed[f"{index_map[index]}.{match.group(2)}"] = tensor
    return renamed


def infer_model_name(state: Mapping[str, torch.Tensor]) -> str | None:
    """Tell which of the fifteen detectors an official state dict is of, whatever its number of classes.

    Args:
        state: Official keys to tensors (or anything with a ``shape``).

    Returns:
        A name such as ``"yolov12n"``, or None when it is none of them (also for other tasks than detection).
    """
    head = _head_index(state)
    parts = {key.split(".")[2] for key in state if key.startswith(f"model.{head}.") and key.count(".") >= 2}
    stem = state.get("model.0.conv.weight")
    if stem is None or not _HEAD_PARTS - {"dfl"} <= parts <= _HEAD_PARTS:
        return None
    if head == 23 and "model.10.m.0.attn.qkv.conv.weight" in state:
        family, is_deep = "yolo11", "model.2.m.1.cv1.conv.weight" in state
    elif head == 21 and "model.6.m.0.0.attn.qk.conv.weight" in state:
        family, is_deep = "yolov12", "model.6.gamma" in state
    elif head == 21 and "model.6.m.0.0.attn.qkv.conv.weight" in state:
        family, is_deep = "yolo12", "model.6.gamma" in state
    else:
        return None
    scales = _SCALE_OF_STEM.get(stem.shape[0], "") if len(stem.shape) else ""
    scale = scales[-1:] if is_deep else scales[:1]
    return family + scale if scale and is_deep == (scale in "lx") else None


def infer_num_classes(state: Mapping[str, torch.Tensor]) -> int | None:
    """Read the number of classes off the class branch of an official state dict; None when it has none."""
    bias = state.get(f"model.{_head_index(state)}.cv3.0.2.bias")
    return bias.shape[0] if bias is not None and len(bias.shape) == 1 else None


def _head_index(state: Mapping[str, torch.Tensor]) -> int:
    """The number of the last block, -1 when no key has one."""
    return max((int(match.group(1)) for match in map(_OFFICIAL_KEY.fullmatch, state) if match), default=-1)
