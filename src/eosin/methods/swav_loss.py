"""SwAV's loss, exact, with one exponential per score and no memory beside the gradient.

With scores s_v of V crops, z_v = s_v / T, and assignments q_0, q_1 of the two global crops, the published loss is

    mean over i in {0, 1} of  mean over v != i of  - <q_i, log softmax(z_v)>,        averaged over the batch.

Since <q, 1> = 1 and the cross-entropy is linear in its target, a crop's terms are one,

    w_v lse(z_v) - <r_v, z_v>,        d / d s_v = (w_v softmax(z_v) - r_v) / T,

where r_v = q_1, q_0 for the two global crops (w = 1) and q_0 + q_1 for a local one (w = 2). Loss and gradient are made
together, crop by crop, in the buffer that ends up holding the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["swav_loss"]


def swav_loss(scores: Tensor, assignments: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """Compute SwAV's loss.

    Args:
        scores: Float [V x B, K], similarities of the crops and the prototypes, the two global crops first.
        assignments: [B, K] of each global crop, rows adding up to 1.
        temperature: T.

    Returns:
        Scalar; its gradient reaches the scores only and can be taken once.
    """
    with torch.autocast(scores.device.type, enabled=False):
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        loss: Tensor = _Sweep.apply(exact, *assignments, temperature)
    return loss


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, first: Tensor, second: Tensor, temperature: float) -> Tensor:
        batch = len(first)
        crops = len(scores) // batch
        share = 1 / (2 * (crops - 1) * batch)
        factor = share / temperature
        both = first + second
        gradient = torch.empty_like(scores, memory_format=torch.contiguous_format)
        losses = []
        for crop, (given, work) in enumerate(zip(scores.split(batch), gradient.split(batch), strict=True)):
            wanted, weight = ((second, first)[crop], 1) if crop < 2 else (both, 2)
            torch.div(given, temperature, out=work)
            work -= work.amax(dim=1, keepdim=True)
            agreement = torch.linalg.vecdot(wanted, work)
            work.exp_()
            total = work.sum(dim=1, keepdim=True)
            losses.append(weight * total.log().squeeze(1) - agreement)
            work.mul_(weight * factor / total).sub_(wanted, alpha=factor)
        ctx.gradient = gradient
        return torch.cat(losses).sum() * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        # Not among the saved tensors: the buffer is scaled in place and handed on, so it is gone after one call.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of the SwAV loss can be taken once")
        # Asking a GPU whether the factor is 1 would wait for it; on a CPU the question saves a pass over the memory.
        if scale.device.type != "cpu" or scale != 1:
            gradient.mul_(scale)
        return gradient, None, None, None
