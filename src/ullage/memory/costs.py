"""What each block keeps under each technique, and the time it adds, from forward traces and a model of time.

Time is modelled as operations over the device's arithmetic plus bytes over its memory bandwidth; only the ratio of
the two matters, since only slowdowns are reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ullage.memory.apply import block_names
from ullage.memory.choice import Block, Option
from ullage.memory.ledger import Ledger
from ullage.memory.technique import Technique
from ullage.memory.trace import Setting, Step, Trace, trace_step

# Operations that a device does while it moves one byte, for large convolutions. The CPU's figure was measured here
# (float32, one core of an AMD EPYC); the GPU's are ratios of published peak rates, halved.
BALANCE = {"cpu": 5.0, "cuda float32": 15.0, "cuda half": 60.0}
# Bytes moved to make a byte again that recompute does not keep. The CPU's figure makes the model agree with the step
# times that bench/memory.py measures; the GPU's is what its kernels read and write.
PASSES = {"cpu": 5.0, "cuda": 3.0}


@dataclass(frozen=True)
class BlockCost:
    """One block, for the traced batch.

    Attributes:
        name: Submodule.
        kept: Bytes kept under each technique, by its name.
        largest_bytes: Its largest map.
        parts: Its submodules when it is divided; empty when it is not.
        part_transients: What the worst of them needs while backward is in it, by technique.
        forward_seconds: Time of its forward pass.
        cheap_seconds: Time to make its cheap results again.
        gradient_bytes: Of its parameters.
        static_bytes: Of the whole model and its optimizer.
        gradients_bytes: Of the whole model.
        end_bytes: What the loss adds while everything is kept.
    """

    name: str
    kept: Mapping[str, int]
    largest_bytes: int
    parts: tuple[str, ...]
    part_transients: Mapping[str, int]
    forward_seconds: float
    cheap_seconds: float
    gradient_bytes: int
    static_bytes: int
    gradients_bytes: int
    end_bytes: int

    def block(self, share: float) -> Block:
        """Return the knapsack's item for a share of the batch."""

        def scaled(nbytes: float) -> int:
            return int(nbytes * share) + 1

        big, plain, cheap = self.largest_bytes, self.kept["none"], self.kept["recompute"]
        again = self.forward_seconds + self.cheap_seconds
        ways = [
            ("none", plain, big, 0.0, ("none",)),
            ("recompute", cheap, 2 * big, self.cheap_seconds, ("recompute",)),
            ("block", self.kept["block"], transient("block", plain, big), self.forward_seconds, ("block",)),
            ("nested", self.kept["block"], transient("nested", cheap, big), again, ("block+recompute",)),
        ]
        options = [
            Option(name, scaled(kept), scaled(transient), seconds * share, ((self.name, technique[0]),))
            for name, kept, transient, seconds, technique in ways
        ]  # fmt: skip
        for name, technique, seconds in (
            ("block in parts", "block", self.forward_seconds),
            ("nested in parts", "block+recompute", again),
        ):
            if self.parts:
                options.append(
                    Option(name, scaled(self.kept["parts"]), scaled(self.part_transients[technique]), seconds * share,
                           tuple((part, technique) for part in self.parts))
                )  # fmt: skip
        return Block(self.name, tuple(options), self.gradient_bytes)


def transient(way: str, kept_bytes: int, largest_bytes: int) -> int:
    """Model what a block that is run again needs while backward is in it; traces correct the model.

    What it keeps inside, and gradients and rebuilt maps beside it. The numbers fit the traces of our fifteen networks.
    """
    if way == "block":
        return kept_bytes + largest_bytes
    return int(1.1 * kept_bytes + 2.5 * largest_bytes)


class CostLedger(Ledger):
    """A ledger that also adds up operations and bytes written, by block."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: defaultdict[str, float] = defaultdict(float)
        self.written: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        pieces = len(self.pieces)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if len(self.pieces) > pieces:
            self.written[self.block] += sum(piece.nbytes for piece in self.pieces[pieces:])
            self.operations[self.block] += operations(func, args, out)
        return out


def operations(func: Any, args: Any, out: Any) -> float:
    """Count the multiplications and additions of a matrix product, convolution or attention; others count as none."""
    name = func._overloadpacket.__name__
    if name == "convolution":
        return 2.0 * out.numel() * args[1].numel() / args[1].shape[0]
    if name in ("mm", "bmm"):
        return 2.0 * out.numel() * args[0].shape[-1]
    if name == "addmm":
        return 2.0 * out.numel() * args[1].shape[-1]
    if name.startswith("_scaled_dot_product"):
        return 4.0 * args[0].numel() * args[1].shape[-2]
    return 0.0


def block_costs(step: Step, model: nn.Module, batch: Any, setting: Setting) -> tuple[list[BlockCost], float]:
    """Trace the forward pass three times; return the blocks, and the time of a plain step."""
    names = block_names(model)
    divided = {name: parts_of(model, name) for name in names}
    watched = [*names, *(part for parts in divided.values() for part in parts)]

    def traced(techniques: Mapping[str, Technique], ledger: Ledger | None = None) -> Trace:
        return trace_step(step, model, batch, techniques=techniques, setting=setting, blocks=watched, forward_only=True,
                          ledger=ledger)  # fmt: skip

    ledger = CostLedger()
    plain = traced({}, ledger)
    cheap = traced(dict.fromkeys(names, Technique(recompute=True)))
    fine = [part for name in names for part in divided[name] or (name,)]
    parted = traced(dict.fromkeys(fine, Technique(block=True)))

    balance = BALANCE["cpu" if setting.device_type == "cpu" else
                      "cuda half" if setting.precision in ("fp16", "bf16") else "cuda float32"]  # fmt: skip
    passes = PASSES["cpu" if setting.device_type == "cpu" else "cuda"]
    largest: defaultdict[str, int] = defaultdict(int)
    for piece in ledger.pieces:
        if piece.phase == "forward":
            largest[piece.block] = max(largest[piece.block], piece.nbytes)
    gradients = {
        name: sum(p.untyped_storage().nbytes() for p in model.get_submodule(name).parameters() if p.requires_grad)
        for name in names
    }
    all_gradients = sum(p.untyped_storage().nbytes() for p in model.parameters() if p.requires_grad)
    inputs = sum(p.nbytes for p in ledger.pieces if p.category == "inputs")
    end = max(_loss_bytes(trace) for trace in (plain, cheap, parted))
    costs: list[BlockCost] = []
    for index, name in enumerate(names):
        own = [name, *divided[name]]
        entering = inputs if index == 0 else 0
        transients = {
            technique: max((transient(way, kept.kept.get(part, 0), largest[part]) for part in own), default=0)
            for technique, way, kept in (("block", "block", plain), ("block+recompute", "nested", cheap))
        }
        kept = {"none": plain, "recompute": cheap, "parts": parted}
        arithmetic = sum(ledger.operations[part] for part in own) / balance
        moved = 2 * sum(ledger.written[part] for part in own)
        held = {key: entering + sum(trace.kept.get(part, 0) for part in own) for key, trace in kept.items()}
        held["block"] = entering + parted.left.get(name, 0)
        costs.append(
            BlockCost(
                name=name,
                kept=held,
                largest_bytes=max(largest[part] for part in own),
                parts=tuple(divided[name]),
                part_transients=transients,
                forward_seconds=arithmetic + moved,
                cheap_seconds=passes * max(held["none"] - held["recompute"], 0),
                gradient_bytes=gradients[name],
                static_bytes=plain.static_bytes - inputs,
                gradients_bytes=all_gradients,
                end_bytes=end,
            )
        )
    total_operations, total_written = sum(ledger.operations.values()), sum(ledger.written.values())
    return costs, 3 * total_operations / balance + 2.5 * 2 * total_written


def parts_of(model: nn.Module, name: str) -> list[str]:
    """Return the submodules into which a block may be divided; none when it is a convolution with its companions."""

    def is_composite(module: nn.Module) -> bool:
        return any(any(True for _ in child.children()) for child in module.children())

    def descend(prefix: str, module: nn.Module) -> list[str]:
        found: list[str] = []
        for key, child in module.named_children():
            lists = isinstance(child, nn.ModuleList | nn.ModuleDict)
            chain = isinstance(child, nn.Sequential) and all(is_composite(c) or _units(c) for c in child.children())
            if lists or chain:
                found += descend(f"{prefix}.{key}", child)
            elif any(True for _ in child.parameters()):
                found.append(f"{prefix}.{key}")
        return found

    module = model.get_submodule(name)
    parts = descend(name, module) if is_composite(module) else []
    return parts if len(parts) > 1 else []


def _units(module: nn.Module) -> bool:
    """Whether a module has several parts with parameters of their own."""
    return sum(any(True for _ in child.parameters()) for child in module.children()) > 1


def _loss_bytes(trace: Trace) -> int:
    """Return what the loss needs beyond what is alive after the forward pass."""
    level = peak = at_end = 0
    for position, event in enumerate(trace.ledger.events):
        if position == trace.forward_end:
            at_end = peak = level
        level += trace.ledger.pieces[event].nbytes if event >= 0 else -trace.ledger.pieces[~event].nbytes
        peak = max(peak, level)
    return peak - at_end
