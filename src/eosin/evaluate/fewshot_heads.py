"""Classifiers of few images, a thousand of them at a time.

A head of any kind here is linear in z, the features less the mean m of its few training images (the support), scaled to
length 1. Its weights are sums over the support, W = sum_s z_s a_s, so all that it needs of a test image x is the inner
products of x with the support: the score of class c, times the length of x - m (which changes no order of classes), is

    sum_s alpha_sc <x_s, x> - k_c + |x - m| b_c

These inner products are shared by all heads: one matrix product of the test images with the images that any head drew.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Heads", "decide", "logistic_heads", "simpleshot_heads", "solve_logistic"]

Rows = npt.NDArray[np.int64]

# Parameters of K problems to their losses [K], gradients, and anything else.
_Evaluate = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

# Features z [K, n, D] to weights a [K, n, C] and biases b [K, C].
_Solve = Callable[[Tensor], tuple[Tensor, Tensor]]

_Result = TypeVar("_Result")

# Values of a block: 4 M of 4 bytes stay near the cache of a processor.
_BLOCK = 1 << 22

# Lengths below this share of the longest are rounding, not direction.
_ALIKE = 1e-6

_JITTER = 1e-10

# At larger C, directions in float32 take more iterations.
_ROUGH = 100.0

# Steps that L-BFGS remembers.
_MEMORY = 5


@dataclass(frozen=True, eq=False)
class Heads:
    """K heads of C classes on n support images each.

    Attributes:
        alpha: float32 [K, C, n].
        constant: float32 [K, C], k of the module's formula.
        bias: float32 [K, C], b.
        square: float32 [K], |m|².
    """

    alpha: Tensor
    constant: Tensor
    bias: Tensor
    square: Tensor


def simpleshot_heads(pool: Tensor, support: Rows, labels: Rows) -> Heads:
    """Nearest centroid (SimpleShot, CL2N: Wang et al., arXiv:1911.04623, 2019) of every support.

    Args:
        pool: float32 [P, D], images that were drawn.
        support: int64 [K, n], rows of `pool`.
        labels: int64 [n], class of each place in a support, 0..C-1, each of them there.
    """
    share = torch.as_tensor(np.eye(labels.max() + 1)[labels] / np.bincount(labels)[labels][:, None]).float()

    def solve(z: Tensor) -> tuple[Tensor, Tensor]:
        # |z - w|² is smallest where <z, w> - |w|² / 2 is largest.
        centers = share.T @ z
        return share.expand(len(z), -1, -1), -0.5 * centers.square().sum(dim=2)

    return _heads(pool, support, solve)


def logistic_heads(pool: Tensor, support: Rows, labels: Rows, strength: float) -> Heads:
    """Multinomial logistic regression with an L2 penalty, as scikit-learn's at C = `strength`, of every support.

    Args:
        pool: float32 [P, D], images that were drawn.
        support: int64 [K, n], rows of `pool`.
        labels: int64 [n], class of each place in a support, 0..C-1, each of them there.
        strength: C.
    """

    def solve(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.double()
        return solve_logistic(z @ z.transpose(1, 2), torch.as_tensor(labels), strength)

    return _heads(pool, support, solve)


def _heads(pool: Tensor, support: Rows, solve: _Solve) -> Heads:
    """Solve for the heads of every support, a block of them at a time."""
    step = max(1, _BLOCK // (2 * support.shape[1] * pool.shape[1]))

    def part(rows: slice) -> tuple[Tensor, ...]:
        return _solved(pool[torch.as_tensor(support[rows])], solve)

    parts = _apart(part, _steps(len(support), step))
    return Heads(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _solved(images: Tensor, solve: _Solve) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Center and scale supports [K, n, D], solve for a and b, and write them as `Heads` does."""
    mean = images.mean(dim=1, keepdim=True)
    centered = images - mean
    length = centered.norm(dim=2, keepdim=True)
    longest = images.norm(dim=2, keepdim=True).amax(dim=1, keepdim=True)
    inverse = torch.where(length > _ALIKE * longest, 1.0 / length, torch.zeros_like(length))
    weights, bias = (part.float() for part in solve(centered * inverse))
    alpha = inverse * weights
    constant = (alpha.transpose(1, 2) @ (centered @ mean.transpose(1, 2))).squeeze(2)
    # <m, x> is the mean of the products with the support.
    alpha = alpha - alpha.sum(dim=1, keepdim=True) / images.shape[1]
    return alpha.transpose(1, 2).contiguous(), constant, bias, mean.square().sum(dim=(1, 2))


def solve_logistic(
    gram: Tensor, labels: Tensor, strength: float, *, iterations: int = 500, tolerance: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Fit many multinomial logistic regressions at once, from inner products alone.

    Each minimizes sum_i -log softmax(W z_i + b)[y_i] + |W|² / (2 C), as scikit-learn's LogisticRegression: b is not
    penalized, and with two classes the penalty is twice as large, which makes it the one of a single vector w.
    The solution is W = sum_i z_i a_i with a = C (Y - P). L-BFGS (Liu and Nocedal, 1989) starts each step from the
    inverse of X'X / classes + I / C, the Hessian at zero weights up to what moves all classes alike. Losses and
    gradients are float64; directions, which only have to point downhill, are float32 where C is at most 100.

    Args:
        gram: float64 [K, n, n], inner products of the n images of each fit.
        labels: int64 [n], their classes, 0..C-1, the same in every fit.
        strength: C.
        iterations: Most iterations.
        tolerance: Largest component of C times the gradient, which bounds the error of W, at which a search ends; of
            b's gradient without C where C is below 1.

    Returns:
        a float64 [K, n, C] and b float64 [K, C].
    """
    count, n, _ = gram.shape
    classes = int(labels.max()) + 1
    ridge = 1.0 / strength if classes > 2 else 2.0 / strength
    eye = torch.eye(n, dtype=gram.dtype)
    # Features with these inner products; the jitter keeps images that repeat from stopping it.
    features = torch.linalg.cholesky(
        gram + _JITTER * (1.0 + gram.diagonal(dim1=1, dim2=2).amax(1))[:, None, None] * eye
    )
    design = torch.cat([features, features.new_ones(count, n, 1)], dim=2)
    across = design.transpose(1, 2)
    penalty = torch.full((n + 1,), ridge, dtype=gram.dtype)
    penalty[n] = 0.0
    curved = across @ design / classes + torch.diag(penalty)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(curved))
    if strength <= _ROUGH:
        inverse = inverse.float()
    # What is learned without a penalty is bounded by the gradient alone.
    limits = torch.full((n + 1,), tolerance * ridge, dtype=gram.dtype)
    limits[n] = tolerance * min(1.0, ridge)
    target = torch.nn.functional.one_hot(labels, classes).T.to(gram.dtype).expand(count, -1, -1)

    def loss_and_gradient(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = theta @ across
        normalizer = torch.logsumexp(logits, dim=1, keepdim=True)
        residual = torch.exp(logits - normalizer) - target
        pull = penalty * theta
        loss = normalizer.sum(dim=(1, 2)) - _inner(logits, target) + 0.5 * _inner(pull, theta)
        return loss, torch.baddbmm(pull, residual, design), residual

    theta, residual = _minimize(loss_and_gradient, design.new_zeros(count, classes, n + 1), inverse, iterations, limits)
    return -residual.transpose(1, 2) / ridge, theta[:, :, n]


def _minimize(
    evaluate: _Evaluate, theta: Tensor, inverse: Tensor, iterations: int, tolerance: Tensor
) -> tuple[Tensor, Tensor]:
    """L-BFGS on many convex problems at once: each has its own step length, and stays where it is once it has ended."""
    memory: list[tuple[Tensor, Tensor]] = []
    loss, gradient, residual = evaluate(theta)
    failures = torch.zeros(len(theta))
    for _ in range(iterations):
        active = ((gradient.abs() > tolerance).flatten(1).any(dim=1)) & (failures < 2)
        if not active.any():
            break
        direction = -_two_loops(gradient.to(inverse.dtype), memory, inverse).to(theta.dtype)
        slope = _inner(direction, gradient).clamp_max(0.0)
        step = active.to(theta.dtype)
        for _ in range(30):
            trial = theta + step[:, None, None] * direction
            trial_loss, trial_gradient, trial_residual = evaluate(trial)
            # Near the end differences of the loss are rounding: as much as that is forgiven.
            enough = trial_loss <= loss + 1e-4 * step * slope + 1e-13 * loss.abs()
            if enough.all():
                break
            step = torch.where(enough, step, 0.5 * step)
        # A search that fails is tried once more without what it remembers, and then ends: rounding stops it.
        failures = torch.where(enough, 0.0, failures + 1.0)
        moved, change = trial - theta, trial_gradient - gradient
        bent = _inner(moved, change)
        usable = enough & (bent > 1e-300)
        # Scaled to a curvature of 1, which float32 can hold of the shortest steps too.
        scale = torch.where(usable, bent.clamp_min(1e-300).rsqrt(), torch.zeros_like(bent))[:, None, None]
        memory = [*memory[1 - _MEMORY :], ((scale * moved).to(inverse.dtype), (scale * change).to(inverse.dtype))]
        if enough.all():
            theta, loss, gradient, residual = trial, trial_loss, trial_gradient, trial_residual
        else:
            of_each = enough[:, None, None]
            theta, loss = torch.where(of_each, trial, theta), torch.where(enough, trial_loss, loss)
            gradient = torch.where(of_each, trial_gradient, gradient)
            residual = torch.where(of_each, trial_residual, residual)
            memory = [(one * of_each, other * of_each) for one, other in memory]
    return theta, residual


def _two_loops(gradient: Tensor, memory: list[tuple[Tensor, Tensor]], inverse: Tensor) -> Tensor:
    result, kept = gradient, []
    for moved, change in reversed(memory):
        weight = _inner(moved, result)[:, None, None]
        result = torch.addcmul(result, weight, change, value=-1.0)
        kept.append(weight)
    result = result @ inverse
    if memory:
        # Sure predictions bend the loss less than even ones: scale to the last step (Nocedal and Wright, eq. 7.20).
        _, change = memory[-1]
        bent = _inner(change, change @ inverse)
        result *= torch.where(bent > 0, 1.0 / bent, torch.ones_like(bent))[:, None, None]
    for (moved, change), weight in zip(memory, reversed(kept), strict=True):
        result.addcmul_(weight - _inner(change, result)[:, None, None], moved)
    return result


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """Inner products [K] of K pairs of matrices."""
    return torch.linalg.vecdot(first.flatten(1), second.flatten(1))


def decide(pool: Tensor, tests: Tensor, supports: list[Rows], heads: list[list[Heads]]) -> list[list[Rows]]:
    """Let every head decide every test image.

    Args:
        pool: float32 [P, D].
        tests: float32 [T, D].
        supports: Of each number of shots, int64 [K, n], rows of `pool`.
        heads: Of each number of shots, the heads on these supports.

    Returns:
        Of each of `heads`, int [K, T], the class of the highest score, the first one among equals.
    """
    widest = max(len(entry.bias[0]) for group in heads for entry in group)
    kind = np.uint8 if widest <= 256 else np.int32
    decisions = [[np.empty((len(entry.bias), len(tests)), dtype=kind) for entry in group] for group in heads]
    block = int(np.clip(4 * _BLOCK // len(pool), 64, 1024))

    def part(columns: slice) -> None:
        products = pool @ tests[columns].T
        square = tests[columns].square().sum(dim=1)
        for support, group, told in zip(supports, heads, decisions, strict=True):
            for rows in _steps(len(support), max(1, _BLOCK // (4 * support.shape[1] * len(square)))):
                chosen = torch.as_tensor(support[rows])
                near = products.index_select(0, chosen.flatten()).view(*chosen.shape, len(square))
                mean = near.mean(dim=1)
                for entry, out in zip(group, told, strict=True):
                    away = (square - 2.0 * mean + entry.square[rows, None]).clamp_min(1e-30).sqrt()
                    scores = torch.baddbmm(-entry.constant[rows, :, None], entry.alpha[rows], near)
                    scores.addcmul_(entry.bias[rows, :, None], away[:, None])
                    # torch.max takes the first of equals as argmax does, which is slow over this dimension.
                    out[rows, columns] = scores.max(dim=1).indices.numpy()

    _apart(part, _steps(len(tests), block))
    return decisions


def _apart(task: Callable[[slice], _Result], parts: list[slice]) -> list[_Result]:
    """Do parts in as many threads as torch has, each of them by itself: no thread waits for another's small product.

    Two threads to a product took ten times as long on a busy machine.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(task, parts))
    finally:
        torch.set_num_threads(threads)


def _steps(count: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]
