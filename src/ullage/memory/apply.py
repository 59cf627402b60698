"""Put techniques in force on a module's blocks, from outside, and take them back.

``forward`` of the chosen modules is wrapped on the instance. Parameters, buffers, hooks, names and outputs stay what
they are; so do copies: a deep copy carries the technique, a state dict does not know of it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from ullage.errors import ConfigError
from ullage.memory.activations import unpack
from ullage.memory.keeping import Exact, Held, Noise, Storage, without_graph
from ullage.memory.plan import Plan
from ullage.memory.replay import Collect, Enough, Entered, Replay
from ullage.memory.session import Recording, Session, has_plain_memory, key_of
from ullage.memory.technique import Technique

ROOT = ""  # the name of the model itself among its blocks: what happens between them


class _State(threading.local):
    """What is going on in this thread's forward pass."""

    recording: Recording | None = None
    collect: Collect | None = None  # a replay that gathers what autograd keeps
    dry: bool = False  # inside the first run of a block: nothing is kept
    entered: Entered = []  # noqa: RUF012  what came into a block that runs again


_state = _State()


class Applied:
    """Techniques in force, until ``remove`` or the end of the ``with`` block."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules

    def remove(self) -> None:
        """Return to plain training."""
        for module in self._modules:
            if isinstance(module.__dict__.get("forward"), _Wrapped):
                del module.__dict__["forward"]
        self._modules = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def apply(model: nn.Module, plan: Plan | None) -> Applied:
    """Put a plan in force; ``None`` means plain training.

    Micro-batches and precision are the caller's part: the plan says how many images go through the model at a time.

    Raises:
        ConfigError: The plan is for another model, or a technique is in force already.
    """
    return apply_techniques(model, {n: Technique.parse(t) for n, t in plan.blocks.items()} if plan else {})


def apply_techniques(model: nn.Module, techniques: Mapping[str, Technique]) -> Applied:
    """Put a technique on each named block.

    Args:
        model: Any module.
        techniques: By name of a submodule, ``""`` for what the model does between its blocks.

    Raises:
        ConfigError: No such submodule, it has a technique already, or a block would run inside itself.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())  # pyright: ignore[reportUnknownArgumentType]
    chosen = {name: t for name, t in techniques.items() if not t.is_none}
    if ROOT not in chosen and any(t.recompute or t.block for t in chosen.values()):
        chosen = {ROOT: Technique(recompute=True), **chosen}
    for name in chosen:
        if name not in modules:
            raise ConfigError(f"the model has no part named {name!r}; its blocks: {', '.join(block_names(model))}")
        if "forward" in modules[name].__dict__:
            raise ConfigError(f"{name or 'the model'} has a memory technique already; remove that first")
    named = {*chosen, *techniques}
    for name in named:
        if (
            name in modules
            and name not in chosen
            and any(name.startswith(f"{other}.") or not other for other in chosen)
        ):
            chosen[name] = Technique()
    for number, (name, technique) in enumerate(chosen.items()):
        modules[name].__dict__["forward"] = _Wrapped(modules[name], technique, number)
    return Applied([modules[name] for name in chosen])


def block_names(model: nn.Module) -> list[str]:
    """Return the parts of a model that techniques are chosen for, in the order of its attributes.

    These are its children; a child that only lists others (``Sequential``, ``ModuleList``), or that holds most of the
    parameters, is replaced by its own children. Parts without parameters belong to what is between the blocks.
    """
    total = sum(p.numel() for p in model.parameters())
    names: list[str] = []

    def descend(prefix: str, module: nn.Module) -> None:
        for key, child in module.named_children():
            name = f"{prefix}.{key}" if prefix else key
            count = sum(p.numel() for p in child.parameters())
            lists = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
            children = [c for c in child.children() if any(True for _ in c.parameters())]
            if count and (lists or (count > 0.5 * total and len(children) > 1)):
                descend(name, child)
            elif count:
                names.append(name)

    descend("", model)
    return names


class _Wrapped:
    """``forward`` of a module under a technique.

    It holds the module and looks everything else up when it is called, so a deep copy works as the original does.
    """

    def __init__(self, module: nn.Module, technique: Technique, number: int) -> None:
        self.module, self.technique = module, technique
        self.number, self.calls = number, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (
            torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or _state.dry
            or torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
        ):
            return self.plain(*args, **kwargs)
        self.calls += 1
        # The noise of rounding follows from torch.manual_seed, takes nothing from the model's random numbers, and is
        # another one in every call.
        noise = Noise(hash((torch.initial_seed(), self.number, self.calls)))
        if self.technique.block:
            return self._replayed(noise, args, kwargs)
        return self._inside(self.technique, noise, args, kwargs)

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module as its class defines it."""
        return type(self.module).forward(self.module, *args, **kwargs)

    def _inside(self, technique: Technique, noise: Noise, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module, keeping what a technique keeps."""
        recording = _state.recording
        if technique.is_none:
            if recording is None and _state.collect is None:
                return self.plain(*args, **kwargs)
            with _scope(recording, "exact"), _keeping(_as_it_is):
                return self.plain(*args, **kwargs)
        if recording is not None:
            with recording.scope(technique.storage, notes=technique.recompute), _keeping(recording.pack):
                return self.plain(*args, **kwargs)
        recording = Recording(Session(technique.storage, noise), notes=technique.recompute)
        for tensor, held in _state.entered:
            recording.session.note_entered(tensor, held)
        with _during(recording=recording), recording, _keeping(recording.pack):
            return self.plain(*args, **kwargs)

    def _replayed(self, noise: Noise, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module without keeping anything but what enters it."""
        recording = _state.recording
        inner = Technique(recompute=self.technique.recompute, storage=self.technique.storage)

        def again(arguments: tuple[Any, ...], keywords: dict[str, Any], collect: Collect, entered: Entered) -> None:
            with _during(recording=None, collect=collect, dry=False, entered=entered):
                self._inside(inner, noise, arguments, keywords)

        replay = Replay(self.module, again, (args, kwargs))
        keep = _as_it_is if recording is None else recording.session.keep
        with _scope(recording, self.technique.storage):
            aside = contextlib.nullcontext() if recording is None else recording.aside()
            try:
                with _during(dry=True), _keeping(replay.issue), aside, replay.first_run():
                    out = self.plain(*args, **kwargs)
            except Enough:  # of a block around this one
                replay.end_first_run(keep)
                raise
            replay.end_first_run(keep)
        return out


@contextlib.contextmanager
def _during(**changes: Any) -> Generator[None]:
    """Change the state of this thread for a while."""
    before = {name: getattr(_state, name) for name in changes}
    for name, value in changes.items():
        setattr(_state, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(_state, name, value)


def _scope(recording: Recording | None, storage: Storage) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if recording is None else recording.scope(storage, notes=False)


def _as_it_is(tensor: torch.Tensor) -> Held:
    for entered, held in _state.entered:
        if has_plain_memory(tensor) and key_of(tensor) == key_of(entered):
            return held
    return Exact(without_graph(tensor))


def _keeping(keep: Callable[[torch.Tensor], Held]) -> torch.autograd.graph.saved_tensors_hooks:
    collect = _state.collect

    def pack(tensor: torch.Tensor) -> Held:
        held = keep(tensor)
        if collect is not None:
            collect(held)
        return held

    return torch.autograd.graph.saved_tensors_hooks(pack if collect else keep, unpack)
