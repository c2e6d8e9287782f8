"""DINO's loss, exact, in one sweep over a few tiles at a time.

With student logits y_v of V crops, teacher logits u_0, u_1 of the two global crops and

    q_t = softmax((u_t - c) / tau_t),        z_v = y_v / tau_s,

the published loss is the mean over the 2 (V - 1) pairs t != v, and over the batch, of  - <q_t, log softmax(z_v)>.
Since <q, 1> = 1 and the cross-entropy is linear in its target, a crop's pairs are one term,

    w_v lse(z_v) - <r_v, z_v>,        d / d y_v = (w_v softmax(z_v) - r_v) / tau_s,

where r_v = q_1, q_0 for the two global crops (w = 1) and q_0 + q_1 for a local one (w = 2). The sweep takes a few
tiles, makes their targets, and leaves each crop's share of the loss and its gradient while the numbers are in the
cache. Neither targets nor log-softmax of the whole batch ever exist: beside the logits there is one buffer of their
size, the gradient. It is not written over the logits, which belong to the caller.

The softmax is written out: torch's adds up the exponentials of a row in few running sums, which in float32 and at
K = 65,536 costs up to 7e-6 of the gradient; its `sum` adds in a tree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["TeacherStatistics", "dino_loss", "dino_loss_and_statistics"]

# Logits in one temporary. On a CPU the handful of temporaries then stays in the cache; on a GPU small pieces gain
# nothing and cost the starting of kernels.
_CPU_CHUNK = 2**18
_GPU_CHUNK = 2**24


class TeacherStatistics(NamedTuple):
    """What the sweep sees of the teacher, without gradients.

    Attributes:
        target: [K] mean of the targets q over the batch.
        entropy: Mean entropy of the targets.
        logits: [K] mean of the logits u over the batch, from which the centre follows.
    """

    target: Tensor
    entropy: Tensor
    logits: Tensor


def dino_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Compute DINO's loss.

    Args:
        student_logits: [V x B, K], crop by crop, the two global ones first. bf16 and fp16 are computed with in float32.
        teacher_logits: [2 x B, K] of the global crops.
        center: [K], subtracted from the teacher's logits.
        student_temperature: tau_s.
        teacher_temperature: tau_t.

    Returns:
        Scalar; its gradient reaches the student's logits only and can be taken once.
    """
    return dino_loss_and_statistics(student_logits, teacher_logits, center, student_temperature, teacher_temperature)[0]


@torch.compiler.disable
def dino_loss_and_statistics(
    student_logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[Tensor, TeacherStatistics]:
    """Compute DINO's loss as `dino_loss` does, and what the sweep sees of the teacher on the way."""
    with torch.autocast(student_logits.device.type, enabled=False):
        needs_gradient = torch.is_grad_enabled() and student_logits.requires_grad
        temperatures = (student_temperature, teacher_temperature)
        loss, *statistics = _Sweep.apply(student_logits, teacher_logits, center, temperatures, needs_gradient)
    return loss, TeacherStatistics(*statistics)


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,
        teacher_logits: Tensor,
        center: Tensor,
        temperatures: tuple[float, float],
        needs_gradient: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gradient = torch.empty_like(student_logits, memory_format=torch.contiguous_format) if needs_gradient else None
        results = _sweep(student_logits, teacher_logits, center, temperatures, gradient)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: None) -> tuple[Tensor, None, None, None, None]:
        # Not among the saved tensors: the buffer is scaled in place and handed on, so it is gone after one call.
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("the gradient of the DINO loss can be taken once")
        # Asking a GPU whether the factor is 1 would wait for it; on a CPU the question saves a pass over the memory.
        if scale.device.type != "cpu" or scale != 1:
            gradient.mul_(scale)
        return gradient, None, None, None, None


def _sweep(
    student_logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    temperatures: tuple[float, float],
    gradient: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss and the teacher's statistics; write the student's gradient into `gradient`."""
    student_temperature, teacher_temperature = temperatures
    prototypes = student_logits.shape[1]
    teacher = teacher_logits.view(2, -1, prototypes)
    batch = teacher.shape[1]
    student = student_logits.view(-1, batch, prototypes)
    crops = len(student)
    gradients = gradient.view_as(student) if gradient is not None else None
    share = 1 / (2 * (crops - 1) * batch)
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    center = center.to(dtype)
    limit = _CPU_CHUNK if student.device.type == "cpu" else _GPU_CHUNK
    rows = max(1, limit // prototypes)
    target_sum, logit_sum = torch.zeros_like(center), torch.zeros_like(center)
    losses, entropies = [], []
    for start in range(0, batch, rows):
        piece = slice(start, start + rows)
        targets = []
        for logits in teacher[:, piece]:
            logits = logits.to(dtype)
            logit_sum += logits.sum(dim=0)
            scores = (logits - center).div_(teacher_temperature)
            scores -= scores.amax(dim=1, keepdim=True)
            target = scores.exp()
            total = target.sum(dim=1, keepdim=True)
            target /= total
            entropies.append(total.log().squeeze(1) - torch.linalg.vecdot(target, scores))
            targets.append(target)
        both = targets[0] + targets[1]
        target_sum += both.sum(dim=0)
        for crop in range(crops):
            wanted, weight = (targets[1 - crop], 1) if crop < 2 else (both, 2)
            scores = student[crop, piece].to(dtype) / student_temperature
            scores -= scores.amax(dim=1, keepdim=True)
            agreement = torch.linalg.vecdot(wanted, scores)
            scores.exp_()
            total = scores.sum(dim=1, keepdim=True)
            losses.append(weight * total.log().squeeze(1) - agreement)
            if gradients is not None:
                factor = share / student_temperature
                scores *= weight * factor / total
                torch.sub(scores, wanted, alpha=factor, out=scores)
                gradients[crop, piece] = scores
    loss = torch.cat(losses).sum() * share
    return loss, target_sum / (2 * batch), torch.cat(entropies).mean(), logit_sum / (2 * batch)
