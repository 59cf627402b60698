"""Technique ``block``: keep what enters a block, run the block again when backward needs its inside (arXiv:1604.06174).

The first run leaves a numbered ticket wherever autograd would keep a tensor. The first ticket that comes back runs the
block again, up to the last tensor that was wanted, and collects them in the same order. Inside the second run other
techniques may be active (``block+recompute``, blocks in blocks): then what is collected is what they keep.

Fidelity: bitwise. The second run repeats random numbers and autocast's types, and leaves BatchNorm's running statistics
alone: they move once a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_flatten, tree_unflatten

from ullage.errors import ConfigError
from ullage.memory.keeping import Held, version_of
from ullage.memory.lowering import autocast_now, lowered_dtype

Collect = Callable[[Any], None]
Again = Callable[[tuple[Any, ...], dict[str, Any], Collect], None]


class _Enough(Exception):
    """Everything that backward asks for has been made."""


class _Input:
    """A tensor that enters a block."""

    __slots__ = ("held", "requires_grad")

    def __init__(self, held: Held, requires_grad: bool) -> None:
        self.held, self.requires_grad = held, requires_grad

    def get(self) -> torch.Tensor:
        """Return the tensor without its past."""
        return self.held.get().detach().requires_grad_(self.requires_grad)


class Ticket:
    """Stands for one tensor that a block will make again."""

    __slots__ = ("_number", "_replay")

    def __init__(self, replay: Replay, number: int) -> None:
        self._replay, self._number = replay, number

    def get(self) -> torch.Tensor:
        """Return the tensor, running the block again if need be."""
        return self._replay.redeem(self._number)


class Replay:
    """One call of one block.

    Args:
        module: The block.
        again: Runs it in the techniques that hold inside it, collecting what autograd keeps.
        inputs: Positional and named arguments.
    """

    def __init__(self, module: nn.Module, again: Again, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self._module, self._again = module, again
        self._inputs, self._structure = tree_flatten(inputs)
        self._surroundings = _Surroundings(module, self._inputs)
        self._buffers = [(name, b, version_of(b)) for name, b in _buffers_beside_norms(module)]
        self._versions = [version_of(x) if isinstance(x, torch.Tensor) else 0 for x in self._inputs]
        self._wanted: list[tuple[torch.Size, torch.dtype]] = []
        self._made: dict[int, Held] = {}

    def issue(self, tensor: torch.Tensor) -> Ticket:
        """Autograd wants to keep a tensor of the first run."""
        self._wanted.append((tensor.shape, tensor.dtype))
        return Ticket(self, len(self._wanted) - 1)

    def end_first_run(self, keep: Callable[[torch.Tensor], Held]) -> None:
        """Keep what entered the block, if there will be a second run.

        Args:
            keep: Chooses how.

        Raises:
            ConfigError: The block has changed its buffers or its inputs.
        """
        if self._wanted:
            name = type(self._module).__name__
            for key, buffer, version in self._buffers:
                if version_of(buffer) != version:
                    raise ConfigError(
                        f"{name} changes its buffer '{key}' while it runs, so it cannot be run twice; "
                        "use technique='recompute' for this block"
                    )
            for x, version in zip(self._inputs, self._versions, strict=True):
                if isinstance(x, torch.Tensor) and version_of(x) != version:
                    raise ConfigError(
                        f"{name} changes its input (shape {tuple(x.shape)}) in place, so it cannot be run twice; "
                        "use technique='recompute' for this block"
                    )
        self._buffers.clear()
        if self._wanted:
            # One tensor that enters twice is one tensor the second time too: attention asks whether query is key.
            kept = {id(x): _Input(keep(x), x.requires_grad) for x in self._inputs if isinstance(x, torch.Tensor)}
            self._inputs = [kept[id(x)] if isinstance(x, torch.Tensor) else x for x in self._inputs]

    def redeem(self, number: int) -> torch.Tensor:
        """Return a tensor of the first run; each is handed out once a replay.

        Raises:
            RuntimeError: The block did not do the same the second time, or its weights were changed in between.
        """
        if number not in self._made:
            self._run_again()
        tensor = self._made.pop(number).get()
        shape, dtype = self._wanted[number]
        if tensor.shape != shape or tensor.dtype != dtype:
            raise RuntimeError(
                f"{type(self._module).__name__} made a tensor of shape {tuple(shape)} ({dtype}) the first time and "
                f"{tuple(tensor.shape)} ({tensor.dtype}) when it was run again: {_ADVICE}"
            )
        return tensor

    def _run_again(self) -> None:
        made: list[Held] = []
        wanted = len(self._wanted)

        def collect(held: Held) -> None:
            made.append(held)
            if len(made) == wanted:
                raise _Enough

        entered = {x: x.get() for x in self._inputs if isinstance(x, _Input)}
        flat = [entered[x] if isinstance(x, _Input) else x for x in self._inputs]
        del entered
        arguments, keywords = tree_unflatten(flat, self._structure)
        with contextlib.suppress(_Enough), self._surroundings.again(), torch.enable_grad():
            self._again(arguments, keywords, collect)
        if len(made) != wanted:
            raise RuntimeError(
                f"{type(self._module).__name__} kept {wanted} tensors the first time and {len(made)} when it was run "
                f"again: {_ADVICE}"
            )
        self._made = dict(enumerate(made))


_ADVICE = "its forward depends on something that changes; train it with technique='recompute' or 'none'"


class _Surroundings:
    """What a second run must find as the first did: weights, random numbers, autocast, statistics out of the way."""

    def __init__(self, module: nn.Module, inputs: list[Any]) -> None:
        self._module = module
        self._weights = _weights(module)
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)] or list(module.parameters())[:1]
        self._devices = {t.device for t in tensors if t.device.type not in ("cpu", "meta")}
        self._autocast = {
            kind: None if lowered_dtype(kind) is None else autocast_now(kind)
            for kind in ("cpu", *{d.type for d in self._devices})
        }
        self._is_fake = any(isinstance(t, FakeTensor) for t in tensors)
        self._random = None if self._is_fake else _random_states(self._devices)

    @contextlib.contextmanager
    def again(self) -> Generator[None]:
        """Bring them back for a while.

        Raises:
            RuntimeError: The weights have changed.
        """
        if any(version_of(weight) != version for weight, version in self._weights):
            raise RuntimeError(
                f"a weight of {type(self._module).__name__} was changed in place between forward and backward; "
                "step the optimizer after backward"
            )
        with contextlib.ExitStack() as stack:
            for kind, context in self._autocast.items():
                if context is not None:
                    stack.enter_context(context())
                elif lowered_dtype(kind) is not None:
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(_statistics_at_rest(_norms(self._module)))
            if self._random is not None:
                stack.callback(_set_random_states, _random_states(self._devices))
                _set_random_states(self._random)
            yield


RandomStates = dict[torch.device, torch.Tensor]
_CPU = torch.device("cpu")


def _random_states(devices: Iterable[torch.device]) -> RandomStates:
    others = {device: torch.get_device_module(device).get_rng_state(device) for device in devices}
    return {_CPU: torch.get_rng_state(), **others}


def _set_random_states(states: RandomStates) -> None:
    for device, state in states.items():
        if device == _CPU:
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


def _modules(module: nn.Module) -> list[nn.Module]:
    """Return a module and all in it, each once; ``modules()``, only quicker."""
    found = {module: None}
    waiting = [module]
    for one in waiting:
        for child in one._modules.values():  # pyright: ignore[reportPrivateUsage]
            if child is not None and child not in found:
                found[child] = None
                waiting.append(child)
    return waiting


def _norms(module: nn.Module) -> list[_NormBase]:
    return [m for m in _modules(module) if isinstance(m, _NormBase)]


def _weights(module: nn.Module) -> list[tuple[nn.Parameter, int]]:
    return [
        (p, version_of(p))
        for m in _modules(module)
        for p in m._parameters.values()  # pyright: ignore[reportPrivateUsage]
        if p is not None
    ]


def _buffers_beside_norms(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        (name, buffer)
        for m in _modules(module)
        if not isinstance(m, _NormBase)
        for name, buffer in m._buffers.items()  # pyright: ignore[reportPrivateUsage]
        if buffer is not None
    ]


@contextlib.contextmanager
def _statistics_at_rest(norms: list[_NormBase]) -> Generator[None]:
    """Let BatchNorm record a second run in copies that are thrown away."""
    recorded = [norm._buffers for norm in norms]  # pyright: ignore[reportPrivateUsage]
    for norm, buffers in zip(norms, recorded, strict=True):
        norm._buffers = {  # pyright: ignore[reportPrivateUsage]
            name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()
        }
    try:
        yield
    finally:
        for norm, buffers in zip(norms, recorded, strict=True):
            norm._buffers = buffers  # pyright: ignore[reportPrivateUsage]
