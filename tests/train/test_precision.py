"""Devices and number formats."""

from __future__ import annotations

import pytest
import torch

from ullage.errors import BackendUnavailable, ConfigError
from ullage.train.precision import Precision, choose_device, choose_precision

CPU = torch.device("cpu")


def test_float32_and_bf16_on_the_cpu() -> None:
    assert choose_precision(CPU, False) == Precision("cpu", None)
    assert choose_precision(CPU, "bf16") == Precision("cpu", torch.bfloat16)
    assert choose_precision(CPU, True).dtype in (None, torch.bfloat16)
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_precision(CPU, "fp16")


def test_autocast_multiplies_in_the_format_it_says() -> None:
    layer = torch.nn.Conv2d(3, 4, 1)
    for dtype, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        precision = Precision("cpu", dtype)
        with precision.autocast():
            assert layer(torch.rand(1, 3, 4, 4)).dtype is expected
        assert not precision.scaler().is_enabled()
    assert Precision("cpu", None).name == "float32"


@pytest.mark.parametrize("device", ["cpu", " CPU "])
def test_the_cpu_is_always_there(device: str) -> None:
    assert choose_device(device) == CPU


def test_a_missing_device_is_named_with_what_is_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(BackendUnavailable, match="no CUDA device here; use device='cpu'"):
        choose_device("0")
    assert choose_device(None).type in ("cpu", "mps")


@pytest.mark.parametrize(("device", "message"), [("gpu", "not a device"), ("0,1", "takes one device"), ("xla", "not")])
def test_words_that_are_no_device(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_device(device)


@pytest.mark.gpu
def test_cuda_precisions() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = choose_device("0")
    assert choose_precision(device, "fp16").scaler().is_enabled()
    assert choose_precision(device, True).dtype in (torch.float16, torch.bfloat16)
