"""Technique ``block``: keep what enters a block, run the block again when backward needs its inside (arXiv:1604.06174).

The first run leaves a numbered ticket wherever autograd would keep a tensor. The first ticket that comes back runs the
block again, up to the last tensor that was wanted, and collects them in the same order. Inside the second run other
techniques may be active (``block+recompute``, blocks in blocks): then what is collected is what they keep.

Fidelity: bitwise. The second run repeats random numbers and autocast's types, and leaves BatchNorm's running statistics
alone: they move once a step.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator, Iterable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from ullage.errors import ConfigError
from ullage.memory.activations import call
from ullage.memory.keeping import Exact, Held, exactly, version_of, without_graph
from ullage.memory.lowering import autocast_now, lowered_dtype
from ullage.memory.recipes import Function, Recipe
from ullage.memory.rules import NORMS
from ullage.memory.session import autocast_of, has_plain_memory, is_tiny, key_of

Collect = Callable[[Any], None]
Entered = list[tuple[torch.Tensor, Recipe]]  # what enters a block, and how it can be made once more
Again = Callable[[tuple[Any, ...], dict[str, Any], Collect, Entered], None]


_functorch_is_active: Any = torch._C._are_functorch_transforms_active  # pyright: ignore[reportPrivateUsage]


class Enough(Exception):
    """Everything that backward asks for has been made."""


class _Input:
    """A tensor that enters a block."""

    __slots__ = ("held", "requires_grad")

    def __init__(self, held: Held, requires_grad: bool) -> None:
        self.held, self.requires_grad = held, requires_grad

    def get(self) -> torch.Tensor:
        """Return the tensor without its past."""
        tensor = self.held.make() if type(self.held) is Recipe else self.held.get()
        return tensor.detach().requires_grad_(self.requires_grad)

    def done(self) -> None:
        """End the first run's claim; what the second run keeps has claims of its own."""
        if type(self.held) is Recipe:
            self.held.release()


class Ticket:
    """Stands for one tensor that a block will make again."""

    __slots__ = ("_number", "_replay")

    def __init__(self, replay: Replay, number: int) -> None:
        self._replay, self._number = replay, number

    def get(self) -> torch.Tensor:
        """Return the tensor, running the block again if need be."""
        return self.take()[0]

    def take(self) -> tuple[torch.Tensor, bool]:
        """Return the tensor, and whether nobody else has it."""
        return self._replay.redeem(self._number)


class Replay:
    """One call of one block.

    Args:
        module: The block.
        again: Runs it in the techniques that hold inside it, collecting what autograd keeps. It is told which of its
            inputs were made by a recipe, so that they are made again and not kept.
        inputs: Positional and named arguments.
    """

    def __init__(self, module: nn.Module, again: Again, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self._module, self._again = module, again
        self._inputs, self._structure = tree_flatten(inputs)
        self._surroundings = _Surroundings(module, self._inputs)
        self._buffers = [(name, b, version_of(b)) for name, b in _buffers_beside_norms(module)]
        self._versions = [version_of(x) if isinstance(x, torch.Tensor) else 0 for x in self._inputs]
        self._wanted: list[tuple[torch.Size, torch.dtype] | None] = []  # None: kept from the first run
        self._last = -1  # of those that the second run makes
        self._norm: _Normalised | None = None
        self._made: dict[int, Held] = {}

    def first_run(self) -> TorchFunctionMode:
        """Return the mode in which the block runs the first time."""
        return _FirstRun(self)

    def issue(self, tensor: torch.Tensor) -> Ticket | Exact:
        """Autograd wants to keep a tensor of the first run."""
        number = len(self._wanted)
        if has_plain_memory(tensor) and is_tiny(tensor):  # to make it again would need the statement after it to run
            self._wanted.append(None)
            return Exact(without_graph(tensor))
        self._wanted.append((tensor.shape, tensor.dtype))
        if self._norm is not None and self._norm.is_result(tensor):
            self._norm.number = number
        return Ticket(self, number)

    def norm(self, func: Any, x: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """Run a BatchNorm the first time, and note how its result can be made from ``x`` alone."""
        issued, key = len(self._wanted), key_of(x) if has_plain_memory(x) else None
        out, again, others = NORMS[func](x, *arguments, **keywords)
        self._norm = None
        if key is not None and len(self._wanted) > issued and self._wanted[issued] is not None:
            self._norm = _Normalised(out, issued, again, exactly(others))
        return out

    def end_first_run(self, keep: Callable[[torch.Tensor], Held]) -> None:
        """Keep what entered the block, if there will be a second run; also when the first was cut short.

        Args:
            keep: Chooses how.

        Raises:
            ConfigError: The block has changed its buffers or its inputs.
        """
        if any(self._wanted):
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
        numbers = [number for number, wanted in enumerate(self._wanted) if wanted is not None]
        if self._norm is not None and numbers and self._norm.number == numbers[-1]:
            numbers.pop()  # the block ends with it: the second run can stop at what enters BatchNorm
        else:
            self._norm = None
        self._last = numbers[-1] if numbers else -1
        if numbers:
            # One tensor that enters twice is one tensor the second time too: attention asks whether query is key.
            kept = {id(x): _Input(keep(x), x.requires_grad) for x in self._inputs if isinstance(x, torch.Tensor)}
            self._inputs = [kept[id(x)] if isinstance(x, torch.Tensor) else x for x in self._inputs]

    def redeem(self, number: int) -> tuple[torch.Tensor, bool]:
        """Return a tensor of the first run, and whether nobody else has it; each is handed out once a replay.

        Raises:
            RuntimeError: The block did not do the same the second time, or its weights were changed in between.
        """
        norm = self._norm if self._norm is not None and self._norm.number == number else None
        source = number if norm is None else norm.entered
        if source not in self._made:
            self._run_again()
        tensor, is_owned = self._made.pop(number).take() if norm is None else norm.make(self._made[source])
        wanted = self._wanted[number]
        if (tensor.shape, tensor.dtype) != wanted:
            shape, dtype = wanted or (tensor.shape, tensor.dtype)
            raise RuntimeError(
                f"{type(self._module).__name__} made a tensor of shape {tuple(shape)} ({dtype}) the first time and "
                f"{tuple(tensor.shape)} ({tensor.dtype}) when it was run again: {_ADVICE}"
            )
        return tensor, is_owned

    def _run_again(self) -> None:
        made: dict[int, Held] = {}
        seen = 0

        def collect(held: Held) -> None:
            nonlocal seen
            if self._wanted[seen] is not None:
                made[seen] = held
            seen += 1
            if seen > self._last:
                raise Enough

        entered = {x: x.get() for x in self._inputs if isinstance(x, _Input)}
        by_recipe: Entered = [(tensor, x.held) for x, tensor in entered.items() if type(x.held) is Recipe]
        flat = [entered[x] if isinstance(x, _Input) else x for x in self._inputs]
        del entered
        arguments, keywords = tree_unflatten(flat, self._structure)
        with contextlib.suppress(Enough), self._surroundings.again(), torch.enable_grad():
            self._again(arguments, keywords, collect, by_recipe)
        for x in self._inputs:
            if isinstance(x, _Input):
                x.done()
        if seen <= self._last:
            raise RuntimeError(
                f"{type(self._module).__name__} kept {len(self._wanted)} tensors the first time and {seen} when it was "
                f"run again: {_ADVICE}"
            )
        self._made = made


_ADVICE = "its forward depends on something that changes; train it with technique='recompute' or 'none'"


class _FirstRun(TorchFunctionMode):
    """Watches a block's first run."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self._replay = replay

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords: dict[str, Any] = kwargs or {}
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or _functorch_is_active():
            return func(*args, **keywords)
        if func in NORMS:
            return self._replay.norm(func, *args, **keywords)
        return call(func, args, keywords)


class _Normalised:
    """The result of the latest BatchNorm of a first run.

    Attributes:
        entered: Number of the tensor that entered it.
        number: Number of the result, once autograd wants it.
    """

    def __init__(self, out: torch.Tensor, entered: int, again: Function, others: list[Any]) -> None:
        self.entered, self.number = entered, -1
        self._again, self._others, self._autocast = again, others, autocast_of(out)
        self._key, self._version, self._storage = key_of(out), version_of(out), weakref.ref(out.untyped_storage())

    def is_result(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is the result, still there and unchanged."""
        there = self._storage() is not None and has_plain_memory(tensor)
        return there and key_of(tensor) == self._key and version_of(tensor) == self._version

    def make(self, entered: Held) -> tuple[torch.Tensor, bool]:
        """Make the result again, from what entered."""
        arguments = [Exact(entered.get()), *self._others]
        return Recipe(self._again, arguments, {}, autocast=self._autocast, scope=0, nbytes=1).take()


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
