"""A gradient that is not finite: which images, which layer, and what then. Shape letters as in ``protocols``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._pytree import tree_iter

from ullage.errors import TrainingError
from ullage.train.accumulate import Accumulator, GroupSums
from ullage.train.events import StepSkipped
from ullage.train.protocols import TrainBatch
from ullage.train.ranks import Ranks
from ullage.train.state import Position

MOST_SKIPPED = 20  # steps in a row: a run that learns nothing should not look as if it did
SHOWN_IMAGES = 8


class FiniteGuard:
    """Finds where a step stopped being finite, and refuses or skips it.

    Args:
        accumulate: Sums the group once more, layer by layer.
        ranks: The processes; each looks at its own images.
        part_names: Of the loss.
        on_nan: ``"stop"`` ends the run, ``"skip"`` leaves the weights as they are and goes on.
        name_image: Names an image of the data set.
        tell: Hears of skipped steps.
    """

    def __init__(
        self,
        accumulate: Accumulator,
        ranks: Ranks,
        part_names: Sequence[str],
        *,
        on_nan: Literal["stop", "skip"],
        name_image: Callable[[int], str],
        tell: Callable[[object], None],
    ) -> None:
        self.accumulate, self.ranks, self.part_names = accumulate, ranks, part_names
        self.on_nan, self.name_image, self.tell = on_nan, name_image, tell
        self._skipped = 0

    def passed(self) -> None:
        """Note a step whose gradient was finite."""
        self._skipped = 0

    def met(self, group: Sequence[TrainBatch], sums: GroupSums, position: Position) -> None:
        """Undo a step whose gradient is not finite; say what it was.

        Raises:
            TrainingError: The run is to stop, or has skipped too many steps in a row; ``last.pt`` stays what it was.
        """
        gradient = self._of_gradients()
        own = self._where(group)
        found = [(rank, *one) for rank, one in enumerate(self.ranks.collect(own)) if one[0]]
        rank, where, images = found[0] if found else (self.ranks.rank, gradient, own[1])
        losses = ", ".join(f"{n} {v:.3g}" for n, v in zip(self.part_names, sums.means, strict=True))
        place = f" in process {rank}" if self.ranks.size > 1 else ""
        more = f" and {len(images) - SHOWN_IMAGES} more" if len(images) > SHOWN_IMAGES else ""
        text = (
            f"the gradient is not finite in epoch {position.epoch + 1}, batch {position.batch + 1}{place}, with images "
            f"{', '.join(images[:SHOWN_IMAGES])}{more}: {where or 'a sum'} is the first that is not "
            f"(losses: {losses})"
        )
        self._skipped += 1
        if self.on_nan == "stop":
            raise TrainingError(f"{text}; lower lr0, set amp=False, or on_nan=skip to leave such steps out")
        if self._skipped >= MOST_SKIPPED:
            raise TrainingError(f"{text}; {self._skipped} steps in a row were skipped: lower lr0, or set amp=False")
        self.tell(StepSkipped(position.epoch, position.batch, text))

    def _of_gradients(self) -> str:
        """Name the parameter, of the last layers first, whose gradient is not finite."""
        named = list(self.accumulate.network.named_parameters())
        for name, parameter in reversed(named):
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                return f"the gradient of '{name}'"
        return ""

    def _where(self, group: Sequence[TrainBatch]) -> tuple[str, list[str]]:
        """Undo the step; return the first place of the forward pass that is not finite, with the images there."""
        self.accumulate.undo()
        images = [self.name_image(index) for batch in group for index in batch.indices]
        indices, first = iter(images), ("", images)
        for images_B3HW, targets in self.accumulate.passes(group):
            names = [next(indices) for _ in range(images_B3HW.shape[0])]
            with torch.no_grad(), _first_not_finite(self.accumulate.network) as found:
                sums = self.accumulate.loss_of(images_B3HW, targets)
            if first[0]:  # the passes that are left are for the other processes, which may wait for this one in them
                continue
            if found:
                first = f"the output of '{found[0]}'", names
            elif wrong := [
                n for n, v in zip(self.part_names, sums.parts.tolist(), strict=True) if not math.isfinite(v)
            ]:
                first = f"the {' and '.join(wrong)} loss", names
        self.accumulate.undo()
        return first


@contextlib.contextmanager
def _first_not_finite(network: nn.Module) -> Generator[list[str]]:
    """Gather the names of the layers whose outputs are not finite, in the order in which they ran."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
            tensors = [t for t in tree_iter(outputs) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            if not found and not all(bool(torch.isfinite(t).all()) for t in tensors):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
