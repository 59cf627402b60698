"""What the engine holds in place of a tensor that autograd wants to keep, and how it gives the tensor back.

Three ways to hold: as it is, in eight bits, or in the host's memory. A fourth, the recipe, is in ``recipes``.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import torch

Storage: TypeAlias = Literal["exact", "int8", "fp8", "offload"]

SMALL_BYTES = 64 * 1024  # below, a tensor is kept as it is: bookkeeping would cost more than it saves


class Held(Protocol):
    """Something from which a tensor can be had again, as often as asked."""

    def get(self) -> torch.Tensor:
        """Return the tensor."""
        ...


def storage_id(tensor: torch.Tensor) -> int:
    """Identify the memory of a tensor for as long as it lives."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def storage_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the whole memory that a tensor or view keeps alive."""
    return tensor.untyped_storage().nbytes()


def hold(tensor: torch.Tensor, storage: Storage, generator: torch.Generator | None) -> Held:
    """Keep a tensor in the given way.

    Args:
        tensor: Detached.
        storage: Tensors that are small, or not of a floating type, are kept exactly whatever is asked.
        generator: Random numbers for ``"int8"``.
    """
    if storage == "exact" or storage_bytes(tensor) < SMALL_BYTES or not tensor.is_floating_point():
        return Exact(tensor)
    if storage == "offload":
        return InHostMemory(tensor)
    return InEightBits(tensor, storage, generator)


class Exact:
    """The tensor itself, guarded against changes in place."""

    __slots__ = ("_tensor", "_version")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._version = tensor._version  # pyright: ignore[reportPrivateUsage]

    def get(self) -> torch.Tensor:
        """Return the tensor.

        Raises:
            RuntimeError: It was changed in place since, so backward would compute something else.
        """
        if self._tensor._version != self._version:  # pyright: ignore[reportPrivateUsage]
            raise RuntimeError(
                "a tensor that backward needs was changed in place after the memory engine kept it "
                f"(shape {tuple(self._tensor.shape)}); change a copy, or train with technique='none'"
            )
        return self._tensor


class InEightBits:
    """One byte a value and one scale a channel. Integers are rounded stochastically: right on average, not exact."""

    __slots__ = ("_codes", "_dtype", "_scale")

    def __init__(
        self, tensor: torch.Tensor, storage: Literal["int8", "fp8"], generator: torch.Generator | None
    ) -> None:
        self._dtype = tensor.dtype
        channel = 1 if tensor.dim() > 1 else 0
        others = [d for d in range(tensor.dim()) if d != channel]
        largest = torch.linalg.vector_norm(tensor, torch.inf, others, keepdim=True).float().clamp_(min=1e-30)
        dtype, top = (torch.int8, 127) if storage == "int8" else (torch.float8_e4m3fn, 448)
        self._scale = largest / top
        self._codes = torch.empty_like(tensor, dtype=dtype)
        for part, into in zip(
            tensor.split(1), self._codes.split(1), strict=True
        ):  # one image at a time: little scratch
            scaled = part / self._scale
            if storage == "int8":
                scaled.add_(torch.empty_like(scaled).uniform_(generator=generator)).floor_().clamp_(-127, 127)
            into.copy_(scaled)

    def get(self) -> torch.Tensor:
        """Return the tensor, rounded."""
        values = torch.empty_like(self._codes, dtype=self._dtype)
        for codes, into in zip(self._codes.split(1), values.split(1), strict=True):
            into.copy_(codes.float() * self._scale)
        return values


class InHostMemory:
    """A copy in pinned host memory, made and fetched on a stream of its own beside the computation.

    The copy starts when the tensor is kept; the caching allocator reuses the device's memory only after it ended.
    On devices without streams the copy is an ordinary one.
    """

    __slots__ = ("_device", "_host", "_ready")

    def __init__(self, tensor: torch.Tensor) -> None:
        self._device = tensor.device
        on_gpu = tensor.device.type == "cuda"
        self._host = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
        self._ready: torch.cuda.Event | None = None
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
        if self._ready is None:
            return self._host.clone()
        torch.cuda.current_stream(self._device).wait_event(self._ready)
        return self._host.to(self._device, non_blocking=True)


_SIDE_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _SIDE_STREAMS:
        _SIDE_STREAMS[device] = torch.cuda.Stream(device)
    return _SIDE_STREAMS[device]
