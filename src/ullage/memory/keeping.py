"""What the engine holds in place of a tensor that autograd wants to keep, and how it gives the tensor back.

Three ways to hold: as it is, in eight bits, or in the host's memory. A fourth, the recipe, is in ``recipes``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch._subclasses.fake_tensor import FakeTensor

Storage: TypeAlias = Literal["exact", "int8", "fp8", "offload"]

TINY_BYTES = 4 * 1024  # below, a tensor is kept without a thought: to know where it comes from would cost more
SMALL_BYTES = 64 * 1024  # below, a tensor is kept as it is: to pack it would cost more than it saves
PIECES = 16  # a tensor is rounded in so many pieces, so that little scratch is needed


class Held(Protocol):
    """Something from which a tensor can be had again, as often as asked."""

    def get(self) -> torch.Tensor:
        """Return the tensor."""
        ...

    def take(self) -> tuple[torch.Tensor, bool]:
        """Return the tensor, and whether it was made just now and nobody else has it."""
        ...


class Noise:
    """Random numbers for rounding, beside those of the model, which are not touched.

    Args:
        seed: The same seed rounds the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, tensor: torch.Tensor) -> torch.Generator | None:
        """Return the generator for a tensor's device, None for a fake tensor: it has no values to round."""
        if isinstance(tensor, FakeTensor):
            return None
        if tensor.device not in self._generators:
            self._generators[tensor.device] = torch.Generator(tensor.device).manual_seed(self._seed)
        return self._generators[tensor.device]


def storage_id(tensor: torch.Tensor) -> int:
    """Identify the memory of a tensor for as long as it lives."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def version_of(tensor: torch.Tensor) -> int:
    """Count the changes in place that a tensor and its views have seen."""
    return tensor._version  # pyright: ignore[reportPrivateUsage]


def storage_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the whole memory that a tensor or view keeps alive."""
    return tensor.untyped_storage().nbytes()


def without_graph(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor to hold: with its graph, which holds it, it would make a circle that is never freed."""
    return tensor.detach() if tensor.requires_grad else tensor


def hold(tensor: torch.Tensor, storage: Storage, noise: Noise) -> Held:
    """Keep a tensor in the given way.

    Args:
        tensor: Detached.
        storage: Tensors that are small, or not of a floating type, are kept exactly whatever is asked. In eight bits
            only maps are held, which have four dimensions or more: statistics (of a layer norm, of attention's softmax)
            go into exponents and denominators, where rounding is not forgiven.
        noise: Random numbers for ``"int8"``.
    """
    nbytes = storage_bytes(tensor)
    overlaps = tensor.nbytes > nbytes  # an expanded tensor is larger than its memory
    if storage == "exact" or nbytes < SMALL_BYTES or overlaps or not tensor.numel() or not tensor.is_floating_point():
        return Exact(tensor)
    if storage == "offload":
        return InHostMemory(tensor)
    if tensor.dim() < 4 or tensor.shape[-1] == 1 == tensor.shape[-2]:
        return Exact(tensor)
    return InEightBits(tensor, storage, noise)


class Exact:
    """The tensor itself, guarded against changes in place."""

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: torch.Tensor) -> None:
        # Autograd hands over tensors with their graph; kept like that, graph and tensor would keep each other alive.
        self._tensor = tensor if tensor.grad_fn is None else tensor.detach()
        self._version = tensor._version  # pyright: ignore[reportPrivateUsage]

    def is_unchanged(self) -> bool:
        """Whether nothing was written into it since."""
        return self._tensor._version == self._version  # pyright: ignore[reportPrivateUsage]

    def get(self) -> torch.Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: It was changed in place since, so backward would compute something else.
        """
        if not self.is_unchanged():
            raise RuntimeError(
                "a tensor that backward needs was changed in place after the memory engine kept it "
                f"(shape {tuple(self._tensor.shape)}); change a copy, or train with technique='none'"
            )
        return self._tensor

    def take(self) -> tuple[torch.Tensor, bool]:
        """Return the tensor; it stays here."""
        return self.get(), False


def exactly(values: Iterable[Any]) -> list[Any]:
    """Hold the tensors among some values as they are."""
    return [Exact(without_graph(x)) if isinstance(x, torch.Tensor) else x for x in values]


class InEightBits:
    """One byte a value and one scale a channel. Integers are rounded stochastically: right on average, not exact.

    Floats of eight bits (e4m3) are rounded to the nearest.
    """

    __slots__ = ("_codes", "_dtype", "_scale", "_stride")

    def __init__(self, tensor: torch.Tensor, storage: Literal["int8", "fp8"], noise: Noise) -> None:
        self._dtype, self._stride = tensor.dtype, tensor.stride()
        others = [d for d in range(tensor.dim()) if d != 1]
        dtype, top = (torch.int8, 127) if storage == "int8" else (torch.float8_e4m3fn, 448)
        largest = torch.maximum(tensor.amax(others, keepdim=True), -tensor.amin(others, keepdim=True))
        self._scale = largest.float().clamp_(min=1e-30) / top
        self._codes = torch.empty_like(tensor, dtype=dtype)
        generator = noise.generator(tensor) if storage == "int8" else None
        for part, into in _pieces(tensor, self._codes):
            scaled = part / self._scale
            if storage == "int8":
                scaled.add_(torch.empty_like(scaled).uniform_(generator=generator)).floor_().clamp_(-top, top)
            into.copy_(scaled)

    def get(self) -> torch.Tensor:
        """Return the tensor, rounded."""
        values = _like(self._codes, self._stride, self._dtype)
        for codes, into in _pieces(self._codes, values):
            into.copy_(codes.float() * self._scale)
        return values

    def take(self) -> tuple[torch.Tensor, bool]:
        """Return the tensor, rounded and new."""
        return self.get(), True


class InHostMemory:
    """A copy in pinned host memory. It leaves on a stream of its own, beside the computation.

    The copy starts when the tensor is kept; the caching allocator reuses the device's memory only after it ended. It
    comes back on the stream that asks. On devices without streams the copies are ordinary ones.
    """

    __slots__ = ("_device", "_host", "_ready", "_stride")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._device, self._stride = tensor.device, tensor.stride()
        on_gpu = tensor.device.type == "cuda"
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
        self._ready: Any = None  # a CUDA event
        if not on_gpu:
            self._host.copy_(tensor)
            return
        side = _side_stream(tensor.device)
        side.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(side):
            self._host.copy_(tensor, non_blocking=True)
            self._ready = side.record_event()
        tensor.record_stream(side)

    def get(self) -> torch.Tensor:
        """Return the tensor on its device."""
        if self._ready is not None:
            torch.cuda.current_stream(self._device).wait_event(self._ready)
        back = _like(self._host, self._stride, self._host.dtype, self._device)
        return back.copy_(self._host, non_blocking=self._ready is not None)

    def take(self) -> tuple[torch.Tensor, bool]:
        """Return the tensor on its device, new."""
        return self.get(), True


def _like(
    dense: torch.Tensor, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """Return room for a tensor with the strides it had: kernels add in the order of memory, so bits depend on it."""
    return torch.empty_strided(dense.shape, stride, dtype=dtype, device=device or dense.device)


def _pieces(one: torch.Tensor, other: torch.Tensor) -> zip[tuple[torch.Tensor, torch.Tensor]]:
    size = math.ceil(len(one) / PIECES) or 1
    return zip(torch.split(one, size), torch.split(other, size), strict=True)


_SIDE_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _SIDE_STREAMS:
        _SIDE_STREAMS[device] = torch.cuda.Stream(device)
    return _SIDE_STREAMS[device]
