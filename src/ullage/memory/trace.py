"""Run one training step on fake tensors, under the techniques and types of the target device, and keep its ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import _disable_current_modes  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_iter

from ullage.errors import ConfigError
from ullage.memory.apply import apply_techniques, block_names
from ullage.memory.fakes import fake_batch, faked, is_faked
from ullage.memory.ledger import Ledger
from ullage.memory.lowering import TargetAutocast
from ullage.memory.technique import Technique

Step: TypeAlias = Callable[[nn.Module, Any], Any]
PrecisionName: TypeAlias = Literal["float32", "bf16", "fp16"]
OptimizerLike: TypeAlias = "str | torch.optim.Optimizer | None"

_DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@runtime_checkable
class HasTotal(Protocol):
    """A loss as a sum: ``total`` is what backward starts from."""

    total: torch.Tensor


@dataclass(frozen=True)
class Setting:
    """What a step is run with, apart from the model and the batch.

    Attributes:
        precision: Type of matrix products; ``None`` leaves it to the step.
        device_type: The device that will train, present or not.
        optimizer: Name of a class of ``torch.optim``, an optimizer to imitate, or None for no update.
        average: A moving average of weights and buffers is kept.
        accumulates: Gradients of earlier micro-batches are there when the step begins.
        waiting_bytes: Images of the batch that are not in this pass, where they wait on the same device.
    """

    precision: PrecisionName | None = None
    device_type: str = "cpu"
    optimizer: OptimizerLike = None
    average: bool = False
    accumulates: bool = False
    waiting_bytes: int = 0


@dataclass
class Trace:
    """What a traced step told.

    Attributes:
        ledger: All storages, with their phases and blocks.
        backward_blocks: Blocks in the order in which backward reached them, with the position in the ledger's events.
        forward_end: Position of the first event after the model's forward pass.
        kept: Bytes alive at that point, by the innermost module that made them.
        left: Bytes alive at that point that were outputs of a module, by the module.
        static_bytes: Bytes that were there before the step.
    """

    ledger: Ledger
    forward_end: int = 0
    backward_blocks: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    kept: dict[str, int] = field(default_factory=dict[str, int])
    left: dict[str, int] = field(default_factory=dict[str, int])
    static_bytes: int = 0

    def backward_peaks(self) -> dict[str, int]:
        """Return the most bytes alive while backward is in each block."""
        peaks: dict[str, int] = {}
        marks = [*self.backward_blocks, ("", len(self.ledger.events))]
        level = position = 0
        block = ""
        for name, begins in marks:
            for event in self.ledger.events[position:begins]:
                level += self.ledger.pieces[event].nbytes if event >= 0 else -self.ledger.pieces[~event].nbytes
                peaks[block] = max(peaks.get(block, 0), level)
            block, position = name, begins
        peaks.pop("", None)
        return peaks


def trace_step(
    step: Step,
    model: nn.Module,
    batch: Any,
    *,
    techniques: Mapping[str, Technique],
    setting: Setting,
    blocks: Sequence[str] | None = None,
    forward_only: bool = False,
    ledger: Ledger | None = None,
) -> Trace:
    """Trace forward, backward and update of one step in the state that later steps find (optimizer state present).

    Raises:
        ConfigError: The step's course depends on the values of its tensors, which a trace does not know.
    """
    with contextlib.nullcontext() if is_faked(model) else faked(model):
        try:
            return run_step(
                step, model, fake_batch(batch), techniques=techniques, setting=setting, blocks=blocks,
                forward_only=forward_only, emulate=setting.device_type != "cpu", ledger=ledger,
            )  # fmt: skip
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ConfigError(
                f"the step cannot be traced without data: {str(error.args[0]) if error.args else error} needs values. "
                "Give the engine a step whose loss has fixed shapes (for example the mean of the outputs)"
            ) from error


def run_step(
    step: Step,
    model: nn.Module,
    batch: Any,
    *,
    techniques: Mapping[str, Technique],
    setting: Setting,
    blocks: Sequence[str] | None = None,
    forward_only: bool = False,
    emulate: bool = False,
    ledger: Ledger | None = None,
) -> Trace:
    """Run one step, of real or fake tensors, under a ledger. Gradients are dropped at the end."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    ledger = ledger if ledger is not None else Ledger(on_cpu=setting.device_type == "cpu")
    trace = Trace(ledger)
    for p in parameters:
        p.grad = torch.zeros_like(p) if setting.accumulates else None
    enter_standing(ledger, model, setting)
    ledger.enter((t for t in tree_iter(batch) if isinstance(t, torch.Tensor)), "inputs")
    ledger.enter((p.grad for p in parameters), "gradients")
    trace.static_bytes = ledger.current_bytes
    try:
        with apply_techniques(model, techniques), _watching(model, blocks, trace), ledger:
            ledger.phase = "forward"
            with precision_context(setting, emulate=emulate):
                loss = step(model, batch)
            total = loss.total if isinstance(loss, HasTotal) else loss
            del loss
            if not forward_only:
                ledger.phase, ledger.block = "backward", ""
                total.backward()  # pyright: ignore[reportUnknownMemberType]
                del total
                ledger.name((p.grad for p in parameters), "gradients")
                _update(ledger, parameters, setting)
    finally:
        for p in parameters:
            p.grad = None
    return trace


def enter_standing(ledger: Ledger, model: nn.Module, setting: Setting) -> None:
    """Count what stands in memory between two steps: weights, optimizer state, average."""
    ledger.enter((*model.parameters(), *model.buffers()), "weights")
    parameters = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    ledger.stand(_optimizer_state(setting.optimizer) * parameters, "optimizer")
    ledger.stand(setting.waiting_bytes, "inputs")
    if setting.average:
        ledger.stand(sum(_bytes(t) for t in (*model.parameters(), *model.buffers())), "average")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _optimizer_state(wanted: OptimizerLike) -> int:
    """Return how many tensors of a parameter's size the optimizer keeps for it, by letting it take one small step.

    Raises:
        ConfigError: ``torch.optim`` has no class of that name.
    """
    if wanted is None:
        return 0
    with _disable_current_modes():
        weight = nn.Parameter(torch.zeros(8, 8))
        weight.grad = torch.zeros_like(weight)
        if isinstance(wanted, torch.optim.Optimizer):
            optimizer = type(wanted)([weight], **wanted.defaults)  # pyright: ignore[reportCallIssue]
        else:
            kind = getattr(torch.optim, wanted, None)
            if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
                raise ConfigError(
                    f"optimizer={wanted!r} is not a class of torch.optim; use for example 'SGD' or 'AdamW'"
                )
            options: dict[str, Any] = {"lr": 0.01, **({"momentum": 0.9} if wanted in ("SGD", "RMSprop") else {})}
            optimizer = kind([weight], **options)
        optimizer.step()
        return sum(
            isinstance(t, torch.Tensor) and t.numel() == weight.numel() for t in optimizer.state[weight].values()
        )


def _update(ledger: Ledger, parameters: Sequence[nn.Parameter], setting: Setting) -> None:
    """Take the optimizer's scratch: on GPUs it works on all parameters at once, on CPUs on one after another."""
    if setting.optimizer is None:
        return
    ledger.phase, ledger.block = "optimizer", ""
    sizes = [_bytes(p) for p in parameters if p.grad is not None]
    ledger.fall(ledger.stand(max(sizes, default=0) if setting.device_type == "cpu" else sum(sizes), "optimizer"))


def precision_context(setting: Setting, *, emulate: bool) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which the step runs."""
    dtype = _DTYPES[setting.precision] if setting.precision is not None else None
    if dtype is None:
        return contextlib.nullcontext()
    return TargetAutocast(dtype) if emulate else torch.autocast(setting.device_type, dtype=dtype)


@contextlib.contextmanager
def _watching(model: nn.Module, blocks: Sequence[str] | None, trace: Trace) -> Generator[None]:
    """Tell the ledger which module runs, in forward and in backward."""
    ledger, names = trace.ledger, list(block_names(model) if blocks is None else blocks)
    stack: list[str] = []
    done = [0]
    outputs_of: dict[str, set[int]] = {name: set() for name in names}
    handles: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if ledger.phase != "forward":
                return
            if not stack:  # what was assembled for this block belongs to it
                for piece in ledger.pieces[done[0] :]:
                    piece.block = name if piece.phase == "forward" and not piece.block else piece.block
            stack.append(name)
            ledger.block = name

        return hook

    def leave(name: str) -> Callable[..., None]:
        def reached(grad: torch.Tensor) -> None:
            if ledger.block != name:
                ledger.block = name
                trace.backward_blocks.append((name, len(ledger.events)))

        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if ledger.phase != "forward":
                return
            stack.pop()
            done[0] = len(ledger.pieces)
            ledger.block = stack[-1] if stack else ""
            for tensor in tree_iter(outputs):
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(reached)  # pyright: ignore[reportUnknownMemberType]
                    outputs_of[name].add(ledger.index_of(tensor))

        return hook

    def end(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if ledger.phase == "forward":
            ledger.phase, ledger.block, trace.forward_end = "loss", "", len(ledger.events)
            alive = ledger.alive()
            for piece in alive.values():
                if piece.phase == "forward":
                    trace.kept[piece.block] = trace.kept.get(piece.block, 0) + piece.nbytes
            for name, indices in outputs_of.items():
                trace.left[name] = sum(alive[index].nbytes for index in indices if index in alive)

    for name in names:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
    handles.append(model.register_forward_hook(end))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
