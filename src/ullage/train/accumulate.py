"""Sum the gradients of one optimiser step, in as little memory as the plan says, and again in less when it ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from ullage.errors import MemoryBudgetError
from ullage.geometry.targets import Targets
from ullage.train.events import OutOfMemory
from ullage.train.precision import Precision
from ullage.train.protocols import Loss, LossSum, MemoryControl, TrainBatch
from ullage.units import format_bytes

Sums = tuple[torch.Tensor, torch.Tensor]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


class Accumulator:
    """Adds up the un-normalised gradients of a group of batches.

    A pass that runs out of memory leaves nothing behind: gradients are dropped, BatchNorm's statistics and the random
    numbers are put back, a more frugal plan is taken, and the group is summed again from its first image.

    Args:
        forward: The network, compiled or not.
        network: The network itself, whose buffers are restored.
        loss: Judges raw outputs.
        precision: Number format of the network's forward pass.
        scaler: Loss scaler.
        memory: The plan in force, and what to do when it was not enough.
        on_oom: ``"raise"`` stops at the first failed allocation.
        tell: Hears of every change of plan.
    """

    def __init__(
        self,
        forward: nn.Module,
        network: nn.Module,
        *,
        loss: Loss,
        precision: Precision,
        scaler: torch.amp.GradScaler,
        memory: MemoryControl | None = None,
        on_oom: Literal["replan", "raise"] = "replan",
        tell: Callable[[object], None] = lambda event: None,
    ) -> None:
        self.forward, self.network, self.loss, self.precision, self.scaler = forward, network, loss, precision, scaler
        self.memory, self.on_oom, self.tell = memory, on_oom, tell
        self.device = next(network.parameters()).device
        self._buffers = [b for b in network.buffers() if b is not None]
        self._before = [torch.empty_like(b) for b in self._buffers]

    def __call__(self, group: Sequence[TrainBatch]) -> Sums:
        """Return the sums of the loss's parts and of its normalisers; the gradients are in the parameters.

        Raises:
            MemoryBudgetError: Memory ran out, and no more frugal plan is left or wanted.
        """
        random = self._remember()
        while True:
            try:
                return self._sum(group)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            self._restore(random)  # outside the handler: the error held the failed pass's tensors
            self.retreat("a training step", reason)

    def retreat(self, where: str, reason: str) -> None:
        """Take the next more frugal plan.

        Raises:
            MemoryBudgetError: There is none, or none is wanted.
        """
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        taken = self.memory.tighten() if self.memory is not None and self.on_oom == "replan" else None
        if taken is None:
            predicted = self.memory.predicted_bytes if self.memory is not None else 0
            about = f" ({format_bytes(predicted)} predicted)" if predicted else ""
            hint = (
                "on_oom=replan goes on in less memory"
                if self.on_oom == "raise"
                else "use a smaller model or image size"
            )
            raise MemoryBudgetError(f"out of memory in {where}{about}: {reason}; last.pt keeps the run; {hint}")
        self.tell(OutOfMemory(where, reason, taken))

    def _sum(self, group: Sequence[TrainBatch]) -> Sums:
        parts, normaliser = torch.zeros(len(self.loss.part_names)), torch.zeros(())
        for images_B3HW, targets in self._micro_batches(group):
            sums = self.loss_of(images_B3HW, targets)
            self.scaler.scale(sums.total).backward()
            parts, normaliser = sums.parts.to(parts.device) + parts, sums.normaliser.to(parts.device) + normaliser
        return parts, normaliser

    def loss_of(self, images_B3HW: torch.Tensor, targets: Targets) -> LossSum:
        """Forward pass and loss; what they leave behind is only what backward needs."""
        with self.precision.autocast():  # the pixels have no name here: nothing holds them beyond the forward pass
            raw = self.forward(images_B3HW.to(self.device, non_blocking=True).float().div_(255))
        return self.loss(raw, targets.to(self.device, non_blocking=True))

    def _micro_batches(self, group: Sequence[TrainBatch]) -> Iterator[tuple[torch.Tensor, Targets]]:
        for batch in group:
            images = batch.images_BCHW.shape[0]
            size = images if self.memory is None or self.memory.micro_batch is None else self.memory.micro_batch
            for start in range(0, images, size):
                stop = min(start + size, images)
                whole = stop - start == images
                yield batch.images_BCHW[start:stop], batch.targets if whole else batch.targets.images(start, stop)

    def _remember(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)  # pyright: ignore[reportPrivateUsage]
        on_gpu = self.device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if on_gpu else None

    def _restore(self, random: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        for parameter in self.network.parameters():
            parameter.grad = None
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)  # pyright: ignore[reportPrivateUsage]
        torch.set_rng_state(random[0])
        if random[1] is not None:
            torch.cuda.set_rng_state(random[1], self.device)
