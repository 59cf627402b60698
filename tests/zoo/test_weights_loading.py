"""Strict and partial loading, official keys, and which of the fifteen a state dict is of."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ullage.errors import WeightsError
from ullage.zoo.checkpoint_file import read_weights
from ullage.zoo.registry import build
from ullage.zoo.weights import infer_model_name, infer_num_classes, is_official, load_into, official_to_ours

FAMILIES = ("yolo11", "yolo12", "yolov12")
NAMES = [family + scale for family in FAMILIES for scale in "nsmlx"]


def network(classes: int = 3) -> nn.Module:
    return nn.ModuleDict(
        {"stem": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "head": nn.Conv2d(4, classes, 1)}
    )


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def test_strict_loading_takes_everything() -> None:
    source, target = network(), network()
    report = load_into(target, snapshot(source))
    assert set(report.loaded) == set(source.state_dict())
    assert report.skipped == report.missing == ()
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


def test_values_take_the_network_dtype() -> None:
    target = network().half()
    load_into(
        target,
        {key: value.double() if value.is_floating_point() else value for key, value in snapshot(network()).items()},
    )
    assert target["head"].weight.dtype == torch.float16


def test_strict_loading_names_what_is_wrong_and_changes_nothing() -> None:
    target = network()
    before, state = snapshot(target), snapshot(network(classes=5))
    del state["stem.1.bias"]
    state |= {f"extra.{i}": torch.ones(1) for i in range(9)}
    with pytest.raises(WeightsError) as caught:
        load_into(target, state)
    text = str(caught.value)
    assert "1 missing: stem.1.bias" in text
    assert "9 unexpected: extra.0, extra.1, extra.2, extra.3 and 5 more" in text
    assert "2 of another shape: head.weight (5x4x1x1 in the file, 3x4x1x1 in the network)" in text
    assert "\n" not in text
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_keys_of_a_file_are_shown_safely() -> None:
    with pytest.raises(WeightsError) as caught:
        load_into(network(), snapshot(network()) | {"a\nb" * 1000: torch.ones(1)})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_partial_loading_reports_what_it_left_out() -> None:
    target = network()
    state = snapshot(network(classes=5)) | {"old": torch.ones(1)}
    del state["stem.1.bias"]
    head = target["head"].weight.clone()
    report = load_into(target, state, partial=True)
    assert dict(report.skipped) == {
        "head.weight": "5x4x1x1 in the file, 3x4x1x1 in the network",
        "head.bias": "5 in the file, 3 in the network",
        "old": "the network has no such tensor",
    }
    assert report.missing == ("stem.1.bias",)
    assert torch.equal(target["head"].weight, head)
    assert torch.equal(target["stem"][0].weight, state["stem.0.weight"])
    assert str(report).startswith(f"{len(report.loaded)} of {len(state)} tensors loaded, 3 skipped: ")


@pytest.mark.parametrize("state", [{}, {"other": torch.ones(1)}, {"head.bias": torch.ones(99)}])
def test_partial_loading_of_nothing_is_an_error(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(WeightsError, match="nothing of the weights fits"):
        load_into(network(), state, partial=True)


def test_official_keys_are_renamed() -> None:
    state = {"model.0.conv.weight": torch.ones(1), "model.10.m.0.attn.qkv.conv.weight": torch.zeros(1)}
    ours = official_to_ours(state, {0: "stem", 10: "stage.attention"})
    assert list(ours) == ["stem.conv.weight", "stage.attention.m.0.attn.qkv.conv.weight"]
    assert ours["stem.conv.weight"] is state["model.0.conv.weight"]


@pytest.mark.parametrize("key", ["model.9.conv.weight", "stem.conv.weight", "model.x.conv", "model.0"])
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(WeightsError, match=r"key of an official checkpoint|another model"):
        official_to_ours({key: torch.ones(1)}, {0: "stem"})


def shapes(shared: Path, name: str) -> dict[str, SimpleNamespace]:
    keys = json.loads((shared / "parity" / "keys" / f"{name}.json").read_text())
    return {key: SimpleNamespace(shape=tuple(shape)) for key, shape in keys.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_recognised(shared: Path, name: str) -> None:
    state = shapes(shared, name)
    assert is_official(state)
    assert infer_model_name(state) == name
    assert infer_num_classes(state) == 80
    for key in state:
        if ".cv3." in key and 80 in state[key].shape:  # the class branch of a network with three classes
            state[key] = SimpleNamespace(shape=tuple(3 if side == 80 else side for side in state[key].shape))
    assert infer_model_name(state) == name
    assert infer_num_classes(state) == 3


def test_other_networks_are_not_mistaken_for_one(shared: Path) -> None:
    state = shapes(shared, "yolo11n")
    segmentation = state | {"model.23.proto.cv1.conv.weight": SimpleNamespace(shape=(64, 64, 3, 3))}
    assert infer_model_name(segmentation) is None
    wider = state | {"model.0.conv.weight": SimpleNamespace(shape=(24, 3, 3, 3))}
    assert infer_model_name(wider) is None
    backbone = {key: value for key, value in state.items() if not key.startswith("model.23.")}
    assert infer_model_name(backbone) is None
    assert infer_num_classes(backbone) is None
    scalar = state | {"model.0.conv.weight": SimpleNamespace(shape=())}
    assert infer_model_name(scalar) is None
    assert infer_model_name({}) is None
    assert infer_model_name({"fc.weight": SimpleNamespace(shape=(2, 2))}) is None


@pytest.mark.parametrize("name", ["yolo11n", "yolov12n"])
def test_official_checkpoints_reproduce_the_stored_outputs(shared: Path, name: str) -> None:
    """File to network to numbers, the whole way; and into three classes, where only the classes stay new."""
    parity = shared / "parity"
    spec = importlib.util.spec_from_file_location("parity_fill", parity / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    weights = read_weights(parity / "checkpoints" / f"{name}-filled.pt")
    detector = build(name).eval()
    load_into(detector, official_to_ours(weights.state_dict, detector.block_names))
    with torch.no_grad():
        raw = detector(torch.from_numpy(fill.image(1, 128, 160)))
    ours = torch.cat((raw.bins_BAR, raw.logits_BAK), 2).transpose(1, 2).numpy()
    with np.load(parity / "outputs" / f"{name}.npz") as outputs:
        assert np.abs(ours - outputs["raw"]).max() <= 1e-4 * np.abs(outputs["raw"]).max()

    fewer = build(name, num_classes=3)
    state = official_to_ours(weights.state_dict, fewer.block_names)
    with pytest.raises(WeightsError, match="of another shape"):
        load_into(fewer, state)
    report = load_into(fewer, state, partial=True)
    assert report.missing == ()
    assert {key.split(".cv3.")[0] for key, _ in report.skipped} == {"head"}
    assert len(report.loaded) + len(report.skipped) == len(state)
