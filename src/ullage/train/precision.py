"""Number formats: which one a device multiplies in, and how gradients survive float16."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ullage.errors import BackendUnavailable, ConfigError


@dataclass(frozen=True)
class Precision:
    """Float32 weights throughout; matrix products in ``dtype``, or in float32 when it is None.

    The loss and the parts that torch's autocast lists name keep float32.
    """

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the network runs."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler; it does nothing unless the format is float16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype is torch.float16)

    @property
    def name(self) -> Literal["float32", "bf16", "fp16"]:
        """What is multiplied."""
        if self.dtype is None:
            return "float32"
        return "bf16" if self.dtype is torch.bfloat16 else "fp16"


def choose_precision(device: torch.device, amp: bool | Literal["fp16", "bf16"]) -> Precision:
    """Choose the number format.

    Args:
        device: Where the network runs.
        amp: False for float32; True for the fastest that is safe here: bf16 on GPUs that multiply it natively, else
            fp16; on CPUs bf16 where the instructions exist (AVX512-BF16 or AMX), else float32.

    Raises:
        ConfigError: The device cannot do what was named.
    """
    if amp is False:
        return Precision(device.type, None)
    if device.type == "cpu":
        if amp == "fp16":
            raise ConfigError("amp='fp16' needs a GPU; a CPU trains in 'bf16' or, with amp=False, in float32")
        return Precision("cpu", torch.bfloat16 if amp == "bf16" or cpu_multiplies_bf16() else None)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        if amp == "bf16" and not native:
            raise ConfigError(
                f"amp='bf16' needs a GPU of compute capability 8.0; {torch.cuda.get_device_name(device)} has "
                f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}. Use amp='fp16'"
            )
        return Precision("cuda", torch.bfloat16 if native and amp != "fp16" else torch.float16)
    if amp is True:
        return Precision(device.type, None)
    return Precision(device.type, torch.float16 if amp == "fp16" else torch.bfloat16)


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has bf16 instructions; without them bf16 is slower than float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def device_names(device: str | None) -> list[str]:
    """Split the user's word into the names of devices; empty when the choice is left to us."""
    return [name.strip() for name in (device or "").split(",") if name.strip()]


def rank_device(device: str | None) -> torch.device:
    """Return the device of this process, one of those that a launcher may have started on this machine.

    Args:
        device: Several names give each process the one at its place; one or none is for a single process, except
            ``"cpu"``, which all may share. None gives each process a GPU of its own where there are GPUs.

    Raises:
        BackendUnavailable: That device is not on this machine.
        ConfigError: Not a device, or fewer than processes.
    """
    names, local = device_names(device), int(os.environ.get("LOCAL_RANK", "0"))
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if count == 1 and len(names) < 2:
        return choose_device(device)
    if not names:
        return choose_device(str(local) if torch.cuda.is_available() else "cpu")
    names = names * count if names == ["cpu"] else names
    if len(names) < count:
        raise ConfigError(f"device={device!r} names {len(names)} for {count} processes on this machine; name one each")
    return choose_device(names[local])


def choose_device(device: str | None) -> torch.device:
    """Turn the user's word into a device.

    Args:
        device: ``None`` takes the first GPU, else Apple's, else the CPU; ``"0"`` means ``"cuda:0"``.

    Raises:
        BackendUnavailable: That device is not on this machine.
        ConfigError: Not a device, or several.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    text = device.strip().lower()
    if "," in text:
        raise ConfigError(f"device={device!r}: this takes one device, like device=0; train and predict take several")
    try:
        chosen = torch.device(f"cuda:{text}" if text.isdigit() else text)
    except RuntimeError:
        raise ConfigError(f"device={device!r} is not a device; use 'cpu', 'mps', 0 or 'cuda:0'") from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            found = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
            raise BackendUnavailable(f"device={device!r} was asked for, but there is {found} here; use device='cpu'")
        return torch.device("cuda", chosen.index or 0)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise BackendUnavailable("device='mps' was asked for, but there is no Apple GPU here; use device='cpu'")
    if chosen.type not in ("cpu", "mps"):
        raise ConfigError(f"device={device!r} is not supported; use 'cpu', 'mps', 0 or 'cuda:0'")
    return chosen
