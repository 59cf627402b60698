"""BatchNorm over the images of all processes, on any device. Shape letters: B images, C channels, H W size.

PyTorch's own ``SyncBatchNorm`` runs on GPUs only. This one is the same arithmetic on all devices and for any number of
processes, one included: each tells the others mean, variance and count of its part (Chan et al. 1979 puts them
together), and in backward two sums a channel. ``state_dict`` and evaluation are those of the ``BatchNorm2d`` it was.

Differs from ``BatchNorm2d`` in rounding: PyTorch's kernel for CPUs gathers a batch's statistics less exactly (on real
images up to .4 % of a deep layer's mean in float32, against .006 % here).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from ullage.memory import register_norm
from ullage.train.ranks import named_losses

Statistics: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_backward: Any = torch.ops.aten.native_batch_norm_backward


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """``BatchNorm2d`` whose batch, in training, is that of all processes of its circle."""

    circle: Circle

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise; every process of the circle must be here as often as the others."""
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return synced_batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.momentum, self.eps, self.circle
        )


class Circle:
    """The processes that have images for the present pass: always the first ones.

    Args:
        ranks: How many processes there are; all of them must make the circle.
    """

    def __init__(self, ranks: int) -> None:
        self.size = ranks
        self._groups: dict[int, Any] = {size: dist.new_group(list(range(size))) for size in range(2, ranks + 1)}
        self._found: dict[int, list[tuple[torch.Tensor, Statistics]]] = {}

    def begin(self, size: int) -> None:
        """Begin a pass in which the first so many processes take part."""
        self.size = size
        self._found.clear()

    def statistics(self, layer: int, own: torch.Tensor) -> Statistics:
        """Return mean, variance and count of all values, from what this process has found in its own.

        A block that backward runs once more asks nobody: the others may not run theirs again.

        Args:
            layer: Tells layers apart.
            own: Means, variances, count.
        """
        found = self._found.setdefault(layer, [])
        if torch._C._current_graph_task_id() != -1:  # pyright: ignore  # inside backward
            same = found if len(found) == 1 else [one for one in found if torch.equal(one[0], own)]
            if not same:
                raise RuntimeError("a block did not do the same when it was run again; use technique='recompute' there")
            return same[0][1]
        together = _put_together(self.gather(own))
        found.append((own, together))
        return together

    def __deepcopy__(self, memo: object) -> Circle:
        return self  # it stands for the same processes

    def gather(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Return what every process tells."""
        if self.size == 1 or isinstance(own, FakeTensor):  # a plan is made: memory alone is asked for
            return [own]
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with named_losses():
            dist.all_gather(parts, own, group=self._groups[self.size])
        return parts

    def add(self, own: torch.Tensor) -> None:
        """Add up what every process tells, in place."""
        if self.size > 1 and not isinstance(own, FakeTensor):
            with named_losses():
                dist.all_reduce(own, group=self._groups[self.size])


def synchronise_norms(network: nn.Module, ranks: int) -> Circle:
    """Turn every ``BatchNorm2d`` of a network into one over all of so many processes; all of them must do so."""
    circle = Circle(ranks)
    for norm in network.modules():
        if type(norm) is nn.BatchNorm2d:
            norm.__class__ = SyncedBatchNorm2d
            assert isinstance(norm, SyncedBatchNorm2d)
            norm.circle = circle
    return circle


def synced_batch_norm(
    x_BCHW: torch.Tensor,
    running_mean_C: torch.Tensor | None,
    running_var_C: torch.Tensor | None,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    momentum: float,
    eps: float,
    circle: Circle,
) -> torch.Tensor:
    """Normalise over the images of all processes, and record the statistics."""
    arguments = (x_BCHW, running_mean_C, running_var_C, weight_C, bias_C, momentum, eps, circle)
    if has_torch_function_unary(x_BCHW):  # a mode that watches, such as the memory engine's
        return handle_torch_function(synced_batch_norm, (x_BCHW,), *arguments)
    return _run(*arguments)[0]


def _run(
    x_BCHW: torch.Tensor,
    running_mean_C: torch.Tensor | None,
    running_var_C: torch.Tensor | None,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    momentum: float,
    eps: float,
    circle: Circle,
) -> tuple[torch.Tensor, Any, tuple[Any, ...]]:
    """Return the result, and what makes it again: the affine half, with the statistics of all."""
    mean_C, var_C, count = circle.statistics(id(weight_C), _statistics(x_BCHW))
    if running_mean_C is not None and running_var_C is not None:
        with torch.no_grad():
            running_mean_C.lerp_(mean_C.to(running_mean_C.dtype), momentum)
            running_var_C.lerp_((var_C * (count / (count - 1))).to(running_var_C.dtype), momentum)
    out = _Normalise.apply(x_BCHW, weight_C, bias_C, mean_C, var_C, count, eps, circle)
    return out, _again, (weight_C, bias_C, mean_C, var_C, eps)  # pyright: ignore[reportReturnType]


def _again(
    x_BCHW: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    mean_C: torch.Tensor,
    var_C: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    return F.batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, False, 0.0, eps)


@torch.no_grad()
def _statistics(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Return means, variances (biased) and the count of the values of every channel, in float32, in one row."""
    var_C, mean_C = torch.var_mean(x_BCHW.float(), (0, 2, 3), correction=0)
    return torch.cat((mean_C, var_C, mean_C.new_full((1,), x_BCHW.numel() // x_BCHW.shape[1])))


@torch.no_grad()
def _put_together(rows: list[torch.Tensor]) -> Statistics:
    all_RN = torch.stack(rows) if rows[0].device.type == "mps" else torch.stack(rows).double()
    counts_R1, channels = all_RN[:, -1:], all_RN.shape[1] // 2
    total = counts_R1.sum()
    means_RC, vars_RC = all_RN[:, :channels], all_RN[:, channels:-1]
    mean_C = (means_RC * counts_R1).sum(0) / total
    var_C = ((vars_RC + (means_RC - mean_C).square()) * counts_R1).sum(0) / total
    return mean_C.float(), var_C.float(), total.float()


class _Normalise(torch.autograd.Function):
    """The affine half; its backward asks the other processes for their sums."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCHW: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        mean_C: torch.Tensor,
        var_C: torch.Tensor,
        count: torch.Tensor,
        eps: float,
        circle: Circle,
    ) -> torch.Tensor:
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, var_C, count)
        ctx.eps, ctx.circle = eps, circle
        return _again(x_BCHW, weight_C, bias_C, mean_C, var_C, eps)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_BCHW,) = grads
        x_BCHW, weight_C, mean_C, var_C, count = ctx.saved_tensors
        scale_C = (var_C + ctx.eps).rsqrt()
        # Sums over this process's images: of gradient times normalised value, and of the gradient.
        _, dweight_C, dbias_C = _backward(grad_BCHW, x_BCHW, weight_C, None, None, mean_C, scale_C, True, ctx.eps,
                                          [False, True, True])  # fmt: skip
        sums_2C = torch.cat((dweight_C.float(), dbias_C.float()))
        ctx.circle.add(sums_2C)
        products_C, gradients_C = (sums_2C / count).chunk(2)
        of_grad_C = weight_C.float() * scale_C
        of_x_C = -of_grad_C * scale_C * products_C
        constant_C = -of_grad_C * gradients_C - of_x_C * mean_C
        dx_BCHW = _affine(grad_BCHW, of_grad_C, constant_C).add_(_affine(x_BCHW, of_x_C, None))
        return dx_BCHW, dweight_C, dbias_C, None, None, None, None, None


def _affine(x_BCHW: torch.Tensor, scale_C: torch.Tensor, shift_C: torch.Tensor | None) -> torch.Tensor:
    """Scale and shift every channel, in float32 inside, whatever the type of the map."""
    zero_C, one_C = torch.zeros_like(scale_C), torch.ones_like(scale_C)
    return F.batch_norm(x_BCHW, zero_C, one_C, scale_C, shift_C, False, 0.0, 0.0)


register_norm(synced_batch_norm, _run)
