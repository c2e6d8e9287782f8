"""MoCo's loss, exact, in one sweep over a few keys of the queue at a time.

With logits p = q.k / T and s_j = q.n_j / T, and pi_j = exp(s_j) / (exp(p) + sum_i exp(s_i)),

    loss = lse(p, s_1, ..., s_K) - p,        d loss / d q = sum_j pi_j (n_j - k) / T,

averaged over the batch. A slice of the queue adds its exponentials to one running sum, and its keys, weighted with
them, to another; both are taken relative to the largest logit so far and shrink when a larger one turns up. The [B, K]
logits and their gradient never exist, and a slice's are still in the cache when its keys are added up.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["moco_loss"]

# Logits in one slice. On a CPU they stay in the cache; on a GPU small slices gain nothing and cost the starting of
# kernels.
_CPU_CHUNK = 2**18
_GPU_CHUNK = 2**24


def moco_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute InfoNCE against a queue.

    Args:
        queries: Float [B, d], L2-normalised.
        keys: Float [B, d], L2-normalised, row by row the positives.
        queue: Float [d, K], L2-normalised, the negatives of every query.
        temperature: T.

    Returns:
        The loss, whose gradient reaches the queries only, and the share of queries whose positive scores highest.
    """
    needs_gradient = torch.is_grad_enabled() and queries.requires_grad
    loss, accuracy = _Sweep.apply(queries, keys, queue, temperature, needs_gradient)
    return loss, accuracy


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, needs_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        scaled = queries / temperature
        positive = torch.linalg.vecdot(scaled, keys).unsqueeze(1)
        highest = positive
        others, pull = torch.zeros_like(positive), torch.zeros_like(queries)
        limit = _CPU_CHUNK if queries.device.type == "cpu" else _GPU_CHUNK
        for part in queue.split(max(1, limit // len(queries)), dim=1):
            scores = scaled @ part
            before, highest = highest, torch.maximum(highest, scores.amax(dim=1, keepdim=True))
            shrink = (before - highest).exp_()
            scores.sub_(highest).exp_()
            others.mul_(shrink).add_(scores.sum(dim=1, keepdim=True))
            if needs_gradient:
                pull.mul_(shrink).addmm_(scores, part.T)
        total = others + (positive - highest).exp_()
        if needs_gradient:
            # Without the positive's own weight, 1 less its share: no digits cancel when the loss is near 0.
            gradient = pull.addcmul_(others, keys, value=-1).div_(total * (temperature * len(queries)))
            ctx.save_for_backward(gradient)
        accuracy = (positive >= highest).float().mean()
        ctx.mark_non_differentiable(accuracy)
        ctx.set_materialize_grads(False)
        return (total.log() + highest - positive).mean(), accuracy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: None) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None, None, None, None
