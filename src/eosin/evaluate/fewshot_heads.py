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

    return _heads(pool, support, solve, torch.float32)


def logistic_heads(pool: Tensor, support: Rows, labels: Rows, strength: float) -> Heads:
    """Multinomial logistic regression with an L2 penalty, as scikit-learn's at C = `strength`, of every support.

    Args:
        pool: float32 [P, D], images that were drawn.
        support: int64 [K, n], rows of `pool`.
        labels: int64 [n], class of each place in a support, 0..C-1, each of them there.
        strength: C.
    """

    def solve(z: Tensor) -> tuple[Tensor, Tensor]:
        return solve_logistic(z @ z.transpose(1, 2), torch.as_tensor(labels), strength)

    return _heads(pool, support, solve, torch.float64)


def _heads(pool: Tensor, support: Rows, solve: _Solve, precision: torch.dtype) -> Heads:
    """Solve for the heads of every support, a block of them at a time."""
    step = max(1, _BLOCK // (2 * support.shape[1] * pool.shape[1]))

    def part(rows: slice) -> tuple[Tensor, ...]:
        return _solved(pool[torch.as_tensor(support[rows])].to(precision), solve)

    parts = _apart(part, _steps(len(support), step))
    return Heads(*(torch.cat(part).float().contiguous() for part in zip(*parts, strict=True)))


def _solved(images: Tensor, solve: _Solve) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Center and scale supports [K, n, D], solve for a and b, and write them as `Heads` does."""
    mean = images.mean(dim=1, keepdim=True)
    centered = images - mean
    length = centered.norm(dim=2, keepdim=True)
    longest = images.norm(dim=2, keepdim=True).amax(dim=1, keepdim=True)
    inverse = torch.where(length > _ALIKE * longest, 1.0 / length, torch.zeros_like(length))
    weights, bias = solve(centered * inverse)
    alpha = inverse * weights
    constant = (alpha.transpose(1, 2) @ (centered @ mean.transpose(1, 2))).squeeze(2)
    # <m, x> is the mean of the products with the support.
    alpha = alpha - alpha.sum(dim=1, keepdim=True) / images.shape[1]
    return alpha.transpose(1, 2), constant, bias, mean.square().sum(dim=(1, 2))


def solve_logistic(
    gram: Tensor, labels: Tensor, strength: float, *, iterations: int = 500, tolerance: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Fit many multinomial logistic regressions at once, from inner products alone.

    Each minimizes sum_i -log softmax(W z_i + b)[y_i] + |W|² / (2 C), as scikit-learn's LogisticRegression: b is not
    penalized, and with two classes the penalty is twice as large, which makes it the one of a single vector w.
    The solution is W = sum_i z_i a_i with a = C (Y - P). L-BFGS (Liu and Nocedal, 1989) starts each step from the
    inverse of the upper bound ½ X'X + I / C of the Hessian (Böhning, Annals of the Institute of Statistical
    Mathematics 1992).

    Args:
        gram: float64 [K, n, n], inner products of the n images of each fit.
        labels: int64 [n], their classes, 0..C-1, the same in every fit.
        strength: C.
        iterations: Most iterations.
        tolerance: Largest component of C times the gradient, which bounds the error of W, at which a search ends.

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
    penalty = torch.full((n + 1, 1), ridge, dtype=gram.dtype)
    penalty[n] = 0.0
    bound = 0.5 * design.transpose(1, 2) @ design + torch.diag(penalty[:, 0])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(bound))
    target = torch.nn.functional.one_hot(labels, classes).to(gram.dtype)

    def loss_and_gradient(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = design @ theta
        normalizer = torch.logsumexp(logits, dim=2, keepdim=True)
        residual = torch.exp(logits - normalizer) - target
        loss = (normalizer.squeeze(2) - (logits * target).sum(dim=2)).sum(dim=1)
        loss = loss + 0.5 * (penalty * theta.square()).sum(dim=(1, 2))
        return loss, design.transpose(1, 2) @ residual + penalty * theta, residual

    theta = _minimize(
        loss_and_gradient, design.new_zeros(count, n + 1, classes), inverse, iterations, tolerance * ridge
    )
    _, _, residual = loss_and_gradient(theta)
    return -residual / ridge, theta[:, n]


def _minimize(evaluate: _Evaluate, theta: Tensor, inverse_bound: Tensor, iterations: int, tolerance: float) -> Tensor:
    """L-BFGS on many convex problems at once: each has its own step length, and stays where it is once it has ended."""
    memory: list[tuple[Tensor, Tensor, Tensor]] = []
    loss, gradient, _ = evaluate(theta)
    for _ in range(iterations):
        active = gradient.abs().amax(dim=(1, 2)) > tolerance
        if not active.any():
            break
        direction = -_two_loops(gradient, memory, inverse_bound)
        slope = (direction * gradient).sum(dim=(1, 2))
        step = active.to(theta.dtype)
        for _ in range(30):
            trial = theta + step[:, None, None] * direction
            trial_loss, trial_gradient, _ = evaluate(trial)
            # Near the end differences of the loss are rounding: as much as that is forgiven.
            enough = trial_loss <= loss + 1e-4 * step * slope + 1e-13 * loss.abs()
            if enough.all():
                break
            step = torch.where(enough, step, 0.5 * step)
        moved, change = trial - theta, trial_gradient - gradient
        curvature = (moved * change).sum(dim=(1, 2))
        usable = curvature > 1e-300
        inverse = torch.where(usable, 1.0 / curvature.clamp_min(1e-300), torch.zeros_like(curvature))
        memory = [*memory[-9:], (moved, change, inverse)]
        theta, loss, gradient = trial, trial_loss, trial_gradient
    return theta


def _two_loops(gradient: Tensor, memory: list[tuple[Tensor, Tensor, Tensor]], inverse_bound: Tensor) -> Tensor:
    result, kept = gradient, []
    for moved, change, inverse in reversed(memory):
        weight = inverse * (moved * result).sum(dim=(1, 2))
        result = result - weight[:, None, None] * change
        kept.append(weight)
    result = inverse_bound @ result
    if memory:
        # Sure predictions bend the loss less than the bound: scale it to the last step (Nocedal and Wright, eq. 7.20).
        _, change, inverse = memory[-1]
        bent = (change * (inverse_bound @ change)).sum(dim=(1, 2)) * inverse
        scale = torch.where(bent > 0, 1.0 / bent.clamp_min(1e-300), torch.ones_like(bent))
        result = scale[:, None, None] * result
    for (moved, change, inverse), weight in zip(memory, reversed(kept), strict=True):
        other = inverse * (change * result).sum(dim=(1, 2))
        result = result + (weight - other)[:, None, None] * moved
    return result


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
                    out[rows, columns] = scores.argmax(dim=1).numpy()

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
