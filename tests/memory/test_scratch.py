"""What convolutions on a CPU take for themselves, against the profiler's allocation events."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ullage.memory.ledger import Ledger
from ullage.memory.scratch import scratch_bytes

FORWARD, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


@pytest.fixture(autouse=True)
def _two_threads() -> Generator[None]:
    """With a single thread PyTorch does not take oneDNN for 1 x 1 convolutions."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _hidden(call: Callable[[], Any]) -> int:
    """Return the most that a call had allocated beyond its results."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = call()
    level = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    results = [t for t in (out if isinstance(out, tuple) else (out,)) if t is not None]
    return peak - sum(t.untyped_storage().nbytes() for t in results)


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "groups"),
    [(256, 512, 1, 1, 1), (256, 256, 3, 1, 1), (256, 512, 3, 2, 1), (512, 512, 3, 1, 2)],
)
def test_channels_last_convolutions_take_what_is_said(
    channels: int, out: int, kernel: int, stride: int, groups: int
) -> None:
    x = torch.randn(2, channels, 16, 16).to(memory_format=torch.channels_last)
    weight = torch.randn(out, channels // groups, kernel, kernel).to(memory_format=torch.channels_last)
    setting = ([stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], groups)
    if torch._C._select_conv_backend(x, weight, None, *setting).name != "Mkldnn":
        pytest.skip("this build of PyTorch computes convolutions without oneDNN")
    y = FORWARD(x, weight, None, *setting)
    forward, backward = (
        (x, weight, None, *setting),
        (torch.ones_like(y), x, weight, None, *setting, [True, True, False]),
    )
    slack = 128 * 1024  # weights are padded to whole blocks of the processor
    assert _hidden(lambda: FORWARD(*forward)) == pytest.approx(scratch_bytes(FORWARD, forward, y), rel=0.05, abs=slack)
    assert _hidden(lambda: BACKWARD(*backward)) == pytest.approx(
        scratch_bytes(BACKWARD, backward, y), rel=0.05, abs=slack
    )


def test_only_convolutions_take_scratch_and_only_for_a_cpu() -> None:
    x = torch.randn(8, 8)
    assert scratch_bytes(torch.ops.aten.mm.default, (x, x), x) == 0
    x, weight = torch.randn(2, 64, 16, 16), torch.randn(64, 64, 3, 3)
    x = x.to(memory_format=torch.channels_last)
    peaks = {}
    for on_cpu in (True, False):
        with Ledger(on_cpu=on_cpu) as ledger:
            y = torch.nn.functional.conv2d(x, weight, padding=1)
        assert ledger.current_bytes == y.nbytes
        peaks[on_cpu] = ledger.peak().nbytes
    assert peaks[True] - peaks[False] >= weight.nbytes
