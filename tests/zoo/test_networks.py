"""The networks: sizes, work, wiring, attention kernels, gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from ullage.errors import ConfigError
from ullage.nn.attention import ExplicitAttention, FusedAttention, set_attention
from ullage.nn.detector import Scale
from ullage.nn.flops import count_flops
from ullage.zoo.registry import MODELS, SCALES, build, model_entry


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        network = build(name)
    assert sum(p.numel() for p in network.parameters()) == MODELS[name].parameters


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = build(name)
    flops = count_flops(network, size_hw=(640, 640))
    assert flops.convolutions / 1e9 == pytest.approx(MODELS[name].gflops, rel=0.004)
    assert flops.attention > 0


def test_flops_of_a_hand_counted_convolution() -> None:
    layer = torch.nn.Conv2d(3, 4, 3, padding=1)
    assert count_flops(layer, size_hw=(8, 8)).convolutions == 2 * 4 * 8 * 8 * 3 * 9


@pytest.mark.parametrize("name", ["yolo11n", "yolov12n", "yolo12n", "yolov12l"])
@pytest.mark.parametrize("classes", [1, 3, 200])
def test_outputs_have_the_shapes_they_say(name: str, classes: int) -> None:
    network = build(name, num_classes=classes).eval()
    with torch.inference_mode():
        raw = network(torch.zeros(2, 3, 64, 96))
    anchors = 8 * 12 + 4 * 6 + 2 * 3
    assert raw.bins_BAR.shape == (2, anchors, 64)
    assert raw.logits_BAK.shape == (2, anchors, classes)
    assert raw.centres_A2.shape == (anchors, 2)
    assert raw.strides_A.unique(return_counts=True)[1].tolist() == [96, 24, 6]


@pytest.mark.parametrize("name", ["yolo11n", "yolov12n", "yolo12n", "yolov12x"])
def test_every_parameter_but_the_constants_gets_a_gradient(name: str) -> None:
    network = build(name, num_classes=2)
    raw = network(torch.rand(2, 3, 64, 64))
    (raw.bins_BAR.square().sum() + raw.logits_BAK.square().sum()).backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == ["head.dfl.conv.weight"]


@pytest.mark.parametrize("name", ["yolo11s", "yolov12s", "yolo12s"])
def test_explicit_attention_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    network = build(name).eval()
    explicit = copy.deepcopy(network)
    set_attention(explicit, ExplicitAttention)
    assert not any(isinstance(module, FusedAttention) for module in explicit.modules())
    assert explicit.state_dict().keys() == network.state_dict().keys()
    images = torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        fused, plain = network(images), explicit(images)
    torch.testing.assert_close(plain.logits_BAK, fused.logits_BAK, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain.bins_BAR, fused.bins_BAR, rtol=1e-4, atol=1e-4)


def test_area_attention_stays_inside_its_area() -> None:
    from ullage.zoo.yolov12 import AreaAttention

    torch.manual_seed(0)
    attention = AreaAttention(64, area=4).eval()
    before = torch.rand(1, 64, 8, 8)
    after = before.clone()
    after[:, :, 7] += 1  # the last row belongs to the last area, rows 6 and 7
    with torch.inference_mode():
        q, k, v = attention.project(before)
        q2, k2, v2 = attention.project(after)
        moved = (attention.attend_in_areas(q, k, v) - attention.attend_in_areas(q2, k2, v2)).abs().amax((0, 1, 3))
    assert (moved[:48] == 0).all()
    assert (moved[48:] > 0).all()


def test_an_image_that_does_not_divide_into_areas_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="multiple of 32"):
        build("yolov12n").eval()(torch.zeros(1, 3, 48, 48))


def test_names_are_found_and_misspelt_ones_explained() -> None:
    assert model_entry("YOLOv12n.yaml").name == "yolov12n"
    assert model_entry("yolo12s.pt").family == "yolo12"
    with pytest.raises(ConfigError, match="Did you mean 'yolo11n'"):
        build("yolo11nn")
    with pytest.raises(ConfigError, match="at least one class"):
        build("yolo11n", num_classes=0)


def test_scaling_rounds_up_to_eight_and_repeats_at_least_once() -> None:
    assert [SCALES["n"].channels(c) for c in (64, 128, 1024)] == [16, 32, 256]
    assert SCALES["x"].channels(1024) == 768
    assert Scale("t", 0.1, 0.3, 1024).channels(64) == 24
    assert Scale("t", 0.1, 0.3, 1024).repeats(2) == 1


def test_biases_start_with_few_objects() -> None:
    head = build("yolo11n", num_classes=80).head
    biases = [dict(head.named_parameters())[f"cv3.{level}.2.bias"] for level in range(3)]
    for bias, stride in zip(biases, (8, 16, 32), strict=True):
        expected = 80 * (640 / stride) ** 2 * float(bias[0].exp())
        assert expected == pytest.approx(5, rel=1e-5)
    assert float(dict(head.named_parameters())["cv2.0.2.bias"][0]) == 1.0
