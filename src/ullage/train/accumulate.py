"""Sum the gradients of one optimiser step, in as little memory as the plan says, and again in less when it ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from ullage.geometry.targets import Targets
from ullage.train.precision import Precision
from ullage.train.protocols import Loss, LossSum, TrainBatch
from ullage.train.ranks import Ranks
from ullage.train.relief import Relief, is_out_of_memory, reason_of
from ullage.train.sync_norm import Circle


@dataclass(frozen=True)
class GroupSums:
    """What a group of batches adds up to, over all processes.

    Attributes:
        parts: Un-normalised loss parts.
        normaliser: What they are divided by.
        images: How many there were.
        boxes: In them.
    """

    parts: tuple[float, ...]
    normaliser: float
    images: int
    boxes: int

    @property
    def means(self) -> list[float]:
        """The parts of the loss of the group as one batch."""
        return [part / max(self.normaliser, 1.0) for part in self.parts]


class Accumulator:
    """Adds up the un-normalised gradients of a group of batches, over micro-batches and processes.

    A pass that runs out of memory leaves nothing behind: gradients are dropped, BatchNorm's statistics and the random
    numbers are put back, a more frugal plan is taken, and the group is summed again from its first image. All processes
    do so together, for they agree on how it went before they add up their gradients.

    Args:
        forward: The network, compiled or not; it takes images as bytes.
        network: The network itself, whose buffers are restored.
        loss: Judges raw outputs.
        precision: Number format of the network's forward pass.
        scaler: Loss scaler.
        relief: What is done when memory runs out; it holds the plan in force.
        ranks: The processes; each gets its part of every batch.
        circle: The processes that normalise together; None when each does so for itself.
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
        ranks: Ranks,
        circle: Circle | None = None,
    ) -> None:
        self.forward, self.network, self.loss, self.precision, self.scaler = forward, network, loss, precision, scaler
        self.relief, self.ranks, self.circle = relief, ranks, circle
        self.device = next(network.parameters()).device
        self._buffers = [b for b in network.buffers() if b is not None]
        self._before = [torch.empty_like(b) for b in self._buffers]
        self._random: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def __call__(self, group: Sequence[TrainBatch], *, is_stopped: Callable[[], bool]) -> GroupSums | None:
        """Return the sums; the gradients of the whole group are in the parameters, the same ones in every process.

        Args:
            group: This process's parts of the batches; a part may be empty.
            is_stopped: Asked before every pass; once a process says yes, nothing is left of the group, and None comes
                back in all of them.

        Raises:
            MemoryBudgetError: Memory ran out, and no more frugal plan is left or wanted.
            RankLost: Another process is gone.
        """
        self._remember()
        while True:
            sums, reason = [0.0] * (len(self.loss.part_names) + 1), ""
            try:
                sums = self._sum(group, is_stopped)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
                if self.is_awaited:
                    raise self.relief.refusal("a training step with sync_bn=True", reason) from None
            images = sum(batch.images_BCHW.shape[0] for batch in group)
            boxes = sum(len(batch.targets) for batch in group)
            *sums, failed, stopped, all_images, all_boxes = self.ranks.total(
                [*sums, bool(reason), is_stopped(), images, boxes]
            )
            if not failed and not stopped:
                self._add_up(images, int(all_images))
                return GroupSums(tuple(sums[:-1]), sums[-1], int(all_images), int(all_boxes))
            self.undo()  # outside the handler: the error held the failed pass's tensors
            if stopped:
                return None
            self.relief.retreat("a training step", self._one_reason(reason))

    @property
    def is_awaited(self) -> bool:
        """Whether the others wait for this process inside their passes: it cannot leave one out, nor ask them."""
        return self.circle is not None and self.ranks.size > 1

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

    def passes(self, group: Sequence[TrainBatch]) -> Iterator[tuple[torch.Tensor, Targets]]:
        """Cut a group into what goes through the network at a time."""
        for batch in group:
            images = batch.images_BCHW.shape[0]
            for start, stop in self._cuts(images):
                whole = stop - start == images
                yield batch.images_BCHW[start:stop], batch.targets if whole else batch.targets.images(start, stop)

    def _cuts(self, images: int) -> Iterator[tuple[int, int]]:
        memory = self.relief.memory
        size = images if memory is None or memory.micro_batch is None else memory.micro_batch
        if self.circle is None:
            yield from ((start, min(start + size, images)) for start in range(0, images, size or 1))
            return
        # Normalising together, all processes take as many passes; where images run out, the circle is smaller.
        counts = self.ranks.collect(images)
        passes = 1 if memory is None or memory.micro_batch is None else -(-counts[0] // memory.micro_batch)
        for number in range(passes):
            cuts = [(count * number // passes, count * (number + 1) // passes) for count in counts]
            self.circle.begin(sum(stop > start for start, stop in cuts))
            start, stop = cuts[self.ranks.rank]
            if stop > start:
                yield start, stop

    def loss_of(self, images_B3HW: torch.Tensor, targets: Targets) -> LossSum:
        """Forward pass and loss; what they leave behind is only what backward needs."""
        with self.precision.autocast():  # the pixels have no name here: nothing holds them beyond the forward pass
            raw = self.forward(images_B3HW.to(self.device, non_blocking=True))
        return self.loss(raw, targets.to(self.device, non_blocking=True))

    def _sum(self, group: Sequence[TrainBatch], is_stopped: Callable[[], bool]) -> list[float]:
        """Return this process's sums of the loss's parts, and of its normaliser."""
        found: list[torch.Tensor] = []
        for images_B3HW, targets in self.passes(group):
            if is_stopped() and not self.is_awaited:
                break
            sums = self.loss_of(images_B3HW, targets)
            self.scaler.scale(sums.total).backward()
            found.append(torch.cat((sums.parts.detach().reshape(-1), sums.normaliser.detach().reshape(1))))
        if not found:
            return [0.0] * (len(self.loss.part_names) + 1)
        return torch.stack(found).cpu().double().sum(0).tolist()  # read once a group: a GPU must not wait every pass

    def _add_up(self, images: int, all_images: int) -> None:
        """Add the gradients of all processes, and average what their BatchNorms have learned."""
        if self.ranks.size == 1:
            return
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        present = self.ranks.total([p.grad is not None for p in parameters])
        used = [p for p, count in zip(parameters, present, strict=True) if count]
        for p in used:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        self.ranks.add(p.grad for p in used if p.grad is not None)
        statistics = [b for b in _learned_statistics(self.network) if b.is_floating_point()]
        for b in statistics:
            b.mul_(images / all_images)
        self.ranks.add(statistics)

    def _one_reason(self, reason: str) -> str:
        """Return the first of the processes' reasons."""
        reasons = self.ranks.collect(reason)
        rank = next(number for number, one in enumerate(reasons) if one)
        return reasons[rank] if self.ranks.size == 1 else f"process {rank}: {reasons[rank]}"

    def _remember(self) -> None:
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)  # pyright: ignore[reportPrivateImportUsage]
        on_gpu = self.device.type == "cuda"
        self._random = torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if on_gpu else None


def _learned_statistics(network: nn.Module) -> list[torch.Tensor]:
    """Return the buffers of the norms that learn from the batch; those of frozen ones stay as they are."""
    norms = [m for m in network.modules() if isinstance(m, _NormBase) and m.training]
    return [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
