"""What each block keeps under each technique, and the time it adds, from four traces and a model of time.

Time is modelled as operations over the device's arithmetic plus bytes over its memory bandwidth; only the ratio of
the two matters, since only slowdowns are reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

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
DEEPEST = 3  # blocks in one another

Techniques: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Part:
    """A block, or a submodule of one, as it was traced. All figures include what is inside.

    Attributes:
        name: Submodule.
        children: Submodules into which it may be divided; empty when it is not.
        kept: Bytes kept under ``none`` and ``recompute``, and where its ``parts`` are blocks.
        own_bytes: What is made between its children and kept where they are blocks.
        left_bytes: Of its outputs, where only outputs of blocks are kept.
        largest_bytes: Its largest map.
        forward_seconds: Time of its forward pass.
        cheap_seconds: Time to make its cheap results again.
    """

    name: str
    children: tuple[Part, ...]
    kept: Mapping[str, int]
    own_bytes: int
    left_bytes: int
    largest_bytes: int
    forward_seconds: float
    cheap_seconds: float

    def transient(self, technique: str) -> int:
        """Model what is there while backward is inside, when it is one block."""
        return transient(technique, self.kept["none" if technique == "block" else "recompute"], self.largest_bytes)

    @property
    def between_bytes(self) -> int:
        """What is kept between its children when they are blocks. Its own outputs are not: others need those."""
        return max(self.own_bytes + sum(child.left_bytes for child in self.children) - self.left_bytes, 0)

    @property
    def depth(self) -> int:
        """How many times blocks may lie in one another here."""
        return 1 + max((child.depth for child in self.children), default=0)

    def inside(self, depth: int) -> Nest:
        """Return the cost of blocks inside blocks, so many deep, the innermost ones nested."""
        if depth == 1 or not self.children:
            seconds = self.forward_seconds + self.cheap_seconds
            return Nest(self.transient("nested"), seconds, ((self.name, "block+recompute"),))
        nests = [child.inside(depth - 1) for child in self.children]
        return Nest(
            self.between_bytes + max(nest.transient_bytes for nest in nests),
            self.forward_seconds + sum(nest.seconds for nest in nests),
            ((self.name, "block"), *(technique for nest in nests for technique in nest.techniques)),
        )


@dataclass(frozen=True)
class Nest:
    """Blocks inside a block: what is there while backward is inside, the time added, the technique of each."""

    transient_bytes: int
    seconds: float
    techniques: Techniques


@dataclass(frozen=True)
class BlockCost:
    """One block, for the traced batch.

    Attributes:
        part: The block and its parts.
        entering_bytes: What enters it from outside the network.
        gradient_bytes: Of its parameters.
        static_bytes: Of the whole model and its optimizer.
        gradients_bytes: Of the whole model.
        end_bytes: What the loss adds while everything is kept.
        waiting_bytes: What a trace of nested blocks needs here beyond the model, below zero where it needs less.
    """

    part: Part
    entering_bytes: int
    gradient_bytes: int
    static_bytes: int
    gradients_bytes: int
    end_bytes: int
    waiting_bytes: int = 0

    def block(self, share: float) -> Block:
        """Return the knapsack's item for a share of the batch."""
        part = self.part
        seconds, again = part.forward_seconds, part.forward_seconds + part.cheap_seconds
        big, left = part.largest_bytes, part.left_bytes
        ways: list[tuple[str, int, int, float, Techniques]] = [
            ("none", part.kept["none"], big, 0.0, ((part.name, "none"),)),
            ("recompute", part.kept["recompute"], 2 * big, part.cheap_seconds, ((part.name, "recompute"),)),
            ("block", left, part.transient("block"), seconds, ((part.name, "block"),)),
            ("nested", left, part.transient("nested"), again, ((part.name, "block+recompute"),)),
        ]
        if part.children:
            for name, way, added in (("block", "block", seconds), ("nested", "block+recompute", again)):
                worst = max(child.transient(name) for child in part.children)
                techniques = tuple((child.name, way) for child in part.children)
                ways.append((f"{name} in parts", part.kept["parts"], worst, added, techniques))
        for depth in range(2, part.depth + 1):
            nest = part.inside(depth)
            ways.append((f"nested {depth} deep", left, nest.transient_bytes, nest.seconds, nest.techniques))

        def scaled(nbytes: float) -> int:
            return int(nbytes * share) + 1

        options = [
            Option(
                name, scaled(self.entering_bytes + kept), scaled(worst + self._waiting(name)), added * share, techniques
            )
            for name, kept, worst, added, techniques in ways
        ]
        return Block(part.name, tuple(options), self.gradient_bytes)

    def _waiting(self, way: str) -> int:
        if way in ("none", "recompute"):  # their peaks are near the end of the forward pass, before much waits
            return 0
        return self.waiting_bytes if way == "nested" else max(self.waiting_bytes, 0)


def transient(way: str, kept_bytes: int, largest_bytes: int) -> int:
    """Model what a block that is run again needs while backward is in it; traces correct the model.

    What it keeps inside, and gradients and rebuilt maps beside it. The numbers fit the traces of our fifteen networks.
    """
    if way == "block":
        return kept_bytes + largest_bytes
    return int(kept_bytes + 2.1 * largest_bytes)


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


@dataclass(frozen=True)
class Costs:
    """What the traces of a whole batch told.

    Attributes:
        blocks: One a block.
        plain_seconds: Time of a plain step, in the unit of the blocks' times.
    """

    blocks: list[BlockCost]
    plain_seconds: float


def block_costs(step: Step, model: nn.Module, batch: Any, setting: Setting) -> Costs:
    """Trace three forward passes and one nested step."""
    names = block_names(model)
    trees = {name: tree_of(model, name) for name in names}
    watched = [one for tree in trees.values() for one in tree.all()]

    def traced(techniques: Mapping[str, Technique], ledger: Ledger | None = None) -> Trace:
        return trace_step(step, model, batch, techniques=techniques, setting=setting, blocks=watched, forward_only=True,
                          ledger=ledger)  # fmt: skip

    ledger = CostLedger()
    plain = traced({}, ledger)
    cheap = traced(dict.fromkeys(names, Technique(recompute=True)))
    parts = [child.name for tree in trees.values() for child in tree.children or (tree,)]
    forwards = {"none": plain, "recompute": cheap, "parts": traced(dict.fromkeys(parts, Technique(block=True)))}
    nested = trace_step(
        step, model, batch, techniques=dict.fromkeys(names, Technique(block=True, recompute=True)), setting=setting,
        blocks=names,
    )  # fmt: skip
    largest: defaultdict[str, int] = defaultdict(int)
    for piece in ledger.pieces:
        if piece.phase == "forward":
            largest[piece.block] = max(largest[piece.block], piece.nbytes)
    balance = BALANCE["cpu" if setting.device_type == "cpu" else
                      "cuda half" if setting.precision in ("fp16", "bf16") else "cuda float32"]  # fmt: skip
    passes = PASSES["cpu" if setting.device_type == "cpu" else "cuda"]

    def part(tree: Tree) -> Part:
        own = tree.all()
        kept = {key: sum(trace.kept.get(one, 0) for one in own) for key, trace in forwards.items()}
        arithmetic = sum(ledger.operations[one] for one in own) / balance
        return Part(
            name=tree.name,
            children=tuple(part(child) for child in tree.children),
            kept=kept,
            own_bytes=plain.kept.get(tree.name, 0),
            left_bytes=plain.left.get(tree.name, 0),
            largest_bytes=max(largest[one] for one in own),
            forward_seconds=arithmetic + 2 * sum(ledger.written[one] for one in own),
            cheap_seconds=passes * max(kept["none"] - kept["recompute"], 0),
        )

    inputs = sum(p.nbytes for p in ledger.pieces if p.category == "inputs")
    end = max(_loss_bytes(trace) for trace in (plain, cheap))
    costs = [
        BlockCost(
            part=part(trees[name]),
            entering_bytes=inputs if name == names[0] else 0,
            gradient_bytes=_gradient_bytes(model.get_submodule(name)),
            static_bytes=plain.static_bytes - inputs,
            gradients_bytes=_gradient_bytes(model),
            end_bytes=end,
        )
        for name in names
    ]
    costs = _corrected(costs, nested.backward_peaks())
    total_operations, total_written = sum(ledger.operations.values()), sum(ledger.written.values())
    return Costs(costs, 3 * total_operations / balance + 2.5 * 2 * total_written)


def _corrected(costs: list[BlockCost], peaks: Mapping[str, int]) -> list[BlockCost]:
    """Put what a trace of nested blocks showed into the model: gradients wait for blocks that are yet to come."""
    level, gradients = costs[0].static_bytes, costs[0].gradients_bytes
    corrected: list[BlockCost] = []
    for cost in costs:
        level += cost.entering_bytes + cost.part.left_bytes
        modelled = level + cost.part.transient("nested") + gradients
        corrected.append(replace(cost, waiting_bytes=peaks.get(cost.part.name, modelled) - modelled))
        gradients -= cost.gradient_bytes
    return corrected


def _gradient_bytes(module: nn.Module) -> int:
    return sum(p.untyped_storage().nbytes() for p in module.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Tree:
    """A block and the parts into which it may be divided, and those parts' parts."""

    name: str
    children: tuple[Tree, ...]

    def all(self) -> list[str]:
        """Return its name and those of all in it."""
        return [self.name, *(name for child in self.children for name in child.all())]


def tree_of(model: nn.Module, name: str, depth: int = DEEPEST) -> Tree:
    """Divide a block into parts, so many levels of blocks in all."""
    parts = parts_of(model, name) if depth > 1 else []
    return Tree(name, tuple(tree_of(model, part, depth - 1) for part in parts))


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
