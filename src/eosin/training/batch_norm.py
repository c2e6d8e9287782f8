"""Batch norm whose statistics are over the tiles of all processes.

With n_i, m_i and M_i the values per channel, their mean and their sum of squared deviations in process i,

    n = sum n_i,    m = sum n_i m_i / n,    v = sum (M_i + n_i (m_i - m)^2) / n            (Chan et al., 1979)
    y = (x - m) / sqrt(v + eps) * weight + bias

and backwards, with the means of dy and of dy (x - m) again over all processes,

    dx = weight / sqrt(v + eps) * (dy - mean(dy) - (x - m) / (v + eps) mean(dy (x - m)))

which is the gradient of the sum of the processes' losses. Gradients of weight and bias are this process's share of
theirs. On GPUs PyTorch's own `SyncBatchNorm` does this; it takes no CPU tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from eosin.core.collective import gather, processes, total

__all__ = ["SynchronizedBatchNorm", "synchronize_batch_norm"]

M = TypeVar("M", bound=nn.Module)


def synchronize_batch_norm(module: M) -> M:
    """Let every batch norm of a module take its statistics over all processes, in training.

    Parameters and buffers stay the same objects under the same names, so checkpoints fit any number of processes.

    Args:
        module: On the device where it stays; its batch norms are replaced in place.

    Returns:
        The module, or what replaces it if it is a batch norm itself.
    """
    held = next(itertools.chain(module.parameters(), module.buffers()), None)
    convert = convert_sync_batchnorm if held is not None and held.is_cuda else SynchronizedBatchNorm.of
    return cast(M, _replace(module, convert, {}))


def _replace(
    module: nn.Module, convert: Callable[[_BatchNorm], nn.Module], done: dict[nn.Module, nn.Module]
) -> nn.Module:
    """Replace batch norms from the top down; one that is used in several places stays one."""
    if module not in done:
        done[module] = module
        if isinstance(module, _BatchNorm) and not isinstance(module, (SynchronizedBatchNorm, nn.SyncBatchNorm)):
            done[module] = convert(module)
        for name, child in module._modules.items():
            if child is not None:
                done[module].add_module(name, _replace(child, convert, done))
    return done[module]


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm over the [B, C, ...] CPU tensors of all processes; in a single one, `nn.BatchNorm`."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> SynchronizedBatchNorm:
        """Take over a batch norm's fields, parameters and buffers, and what timm's fused layers do after it."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
        new.num_batches_tracked = norm.num_batches_tracked
        new.train(norm.training)
        if isinstance(norm, BatchNormAct2d):
            new.drop, new.act = norm.drop, norm.act
        return new

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the statistics of all processes in training, by the running ones in evaluation."""
        output = self._over_all(input) if self.training and processes() > 1 else super().forward(input)
        for name in ("drop", "act"):
            after = self._modules.get(name)
            output = output if after is None else after(output)
        return output

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of 2 or more dimensions, got {input.dim()}")

    def _over_all(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        output, mean, variance, count = _Normalize.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, variance * (count / (count - 1)))
        return output

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.mul_(1 - share).add_(value.to(running.dtype), alpha=share)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        values = _precise(input)
        own_count = values.numel() // values.shape[1]
        own_variance, own_mean = torch.var_mean(values, dim=_all_but_channels(values), correction=0)
        own = torch.cat([own_mean, own_variance, own_mean.new_tensor([own_count])])
        means, variances, counts = gather(own.double()[None]).split([len(own_mean), len(own_mean), 1], dim=1)
        count = counts.sum()
        mean = (counts * means).sum(dim=0) / count
        variance = (counts * (variances + (means - mean) ** 2)).sum(dim=0) / count
        mean, variance = mean.to(values.dtype), variance.to(values.dtype)
        scale = torch.rsqrt(variance + eps)
        output = (values - _spread(mean, values)) * _spread(scale if weight is None else scale * weight, values)
        if bias is not None:
            output += _spread(bias, values)
        ctx.save_for_backward(input, weight, mean, scale)
        ctx.count = float(count)
        ctx.mark_non_differentiable(mean, variance)
        return output.to(input.dtype), mean, variance, float(count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        input, weight, mean, scale = ctx.saved_tensors
        gradient, deviations = _precise(gradient), _precise(input) - _spread(mean, input)
        dims = _all_but_channels(input)
        sums = torch.stack([gradient.sum(dim=dims), (gradient * deviations).sum(dim=dims)])
        means = total(sums) / ctx.count
        of_input = None
        if ctx.needs_input_grad[0]:
            of_input = gradient - _spread(means[0], input) - deviations * _spread(scale**2 * means[1], input)
            of_input = (of_input * _spread(scale if weight is None else scale * weight, input)).to(input.dtype)
        of_weight = (sums[1] * scale).to(weight.dtype) if ctx.needs_input_grad[1] else None
        of_bias = sums[0].to(weight.dtype) if ctx.needs_input_grad[2] else None
        return of_input, of_weight, of_bias, None


def _precise(tensor: Tensor) -> Tensor:
    """Return at least float32: statistics of bf16 values must not be bf16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [dim for dim in range(tensor.dim()) if dim != 1]


def _spread(per_channel: Tensor, tensor: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (tensor.dim() - 2))
