"""Sum the gradients of one optimiser step, in as little memory as the plan says, and again in less when it ran out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ullage.geometry.targets import Targets
from ullage.train.precision import Precision
from ullage.train.protocols import Loss, LossSum, TrainBatch
from ullage.train.relief import Relief, is_out_of_memory, reason_of

Sums = tuple[torch.Tensor, torch.Tensor]


class Accumulator:
    """Adds up the un-normalised gradients of a group of batches.

    A pass that runs out of memory leaves nothing behind: gradients are dropped, BatchNorm's statistics and the random
    numbers are put back, a more frugal plan is taken, and the group is summed again from its first image.

    Args:
        forward: The network, compiled or not; it takes images as bytes.
        network: The network itself, whose buffers are restored.
        loss: Judges raw outputs.
        precision: Number format of the network's forward pass.
        scaler: Loss scaler.
        relief: What is done when memory runs out; it holds the plan in force.
    """

    def __init__(
        self,
        forward: nn.Module,
        network: nn.Module,
        *,
        loss: Loss,
        precision: Precision,
        scaler: torch.amp.GradScaler,
        relief: Relief,
    ) -> None:
        self.forward, self.network, self.loss, self.precision, self.scaler = forward, network, loss, precision, scaler
        self.relief = relief
        self.device = next(network.parameters()).device
        self._buffers = [b for b in network.buffers() if b is not None]
        self._before = [torch.empty_like(b) for b in self._buffers]
        self._random: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def __call__(self, group: Sequence[TrainBatch]) -> Sums:
        """Return the sums of the loss's parts and of its normalisers; the gradients are in the parameters.

        Raises:
            MemoryBudgetError: Memory ran out, and no more frugal plan is left or wanted.
        """
        self._remember()
        while True:
            try:
                return self._sum(group)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            self.undo()  # outside the handler: the error held the failed pass's tensors
            self.relief.retreat("a training step", reason)

    def undo(self) -> None:
        """Return to before the group: no gradients, and BatchNorm's statistics and random numbers as they were."""
        for parameter in self.network.parameters():
            parameter.grad = None
        if self._random is None:
            return
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)  # pyright: ignore[reportPrivateImportUsage]
        torch.set_rng_state(self._random[0])
        if self._random[1] is not None:
            torch.cuda.set_rng_state(self._random[1], self.device)

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
            raw = self.forward(images_B3HW.to(self.device, non_blocking=True))
        return self.loss(raw, targets.to(self.device, non_blocking=True))

    def _micro_batches(self, group: Sequence[TrainBatch]) -> Iterator[tuple[torch.Tensor, Targets]]:
        for batch in group:
            images = batch.images_BCHW.shape[0]
            memory = self.relief.memory
            size = images if memory is None or memory.micro_batch is None else memory.micro_batch
            for start in range(0, images, size):
                stop = min(start + size, images)
                whole = stop - start == images
                yield batch.images_BCHW[start:stop], batch.targets if whole else batch.targets.images(start, stop)

    def _remember(self) -> None:
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)  # pyright: ignore[reportPrivateImportUsage]
        on_gpu = self.device.type == "cuda"
        self._random = torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if on_gpu else None
