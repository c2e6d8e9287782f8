"""Linear heads on features that are at hand, many trained at once: one product of matrices serves a whole grid.

Heads of one fit see the same mini-batches, so their weights stand side by side in one matrix [D, C * J] and a step of
SGD (Sutskever et al., ICML 2013, as `torch.optim.SGD` computes it) is two products and two passes over it:

    G = X^T (softmax(X W) - Y) / B,    M <- mu M + G + decay W,    W <- W - rate_t M

with rate_t = rate (1 + cos(pi t / S)) / 2 (Loshchilov and Hutter, ICLR 2017). Momentum is added inside the second
product. With n < D training images all gradients lie in the images' span: training runs on n coordinates of that span,
and what the first weights have outside it only shrinks, by a factor known without any image. Both are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.draws import stream_seed

__all__ = ["AdamW", "Scaling", "Span", "class_means", "cosine", "outside_factor", "sgd_heads", "shuffled", "with_ones"]

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_BLOCK = 1 << 22
"""Values converted to float64 at once: 32 MiB."""
_GATHERED = 1 << 19
"""Values of mini-batches fetched at once: 2 MiB, which stay in the cache until they are used."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean and standard deviation of the training images' features, float64 [D]."""

    mean: Floats
    spread: Floats

    @classmethod
    def of(cls, features: npt.NDArray[np.float32], rows: Rows) -> Scaling:
        """Measure the rows of float32 [N, D], block by block, in float64."""
        step = max(1, _BLOCK // features.shape[1])
        parts = [rows[start : start + step] for start in range(0, len(rows), step)]
        mean = sum(features[part].sum(axis=0, dtype=np.float64) for part in parts) / len(rows)
        squares = sum(((features[part].astype(np.float64) - mean) ** 2).sum(axis=0) for part in parts)
        spread = np.sqrt(squares / len(rows))
        # A constant feature says nothing about the training images; rounding must not blow it up on the others.
        spread[spread <= 1e-7 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)] = np.inf
        return cls(np.asarray(mean), spread)

    def apply(self, features: npt.NDArray[np.float32], rows: Rows, kind: type = np.float32) -> npt.NDArray[Any]:
        """Take off the mean and divide by the spread: [n, D] of `kind`."""
        result: npt.NDArray[Any] = np.empty((len(rows), features.shape[1]), dtype=kind)
        step = max(1, _BLOCK // features.shape[1])
        for start in range(0, len(rows), step):
            part = features[rows[start : start + step]].astype(np.float64)
            result[start : start + step] = (part - self.mean) / self.spread
        return result


@dataclass(frozen=True, eq=False)
class Span:
    """Coordinates in which fewer images than features train exactly: X = (X basis) basis^T for the training images.

    Attributes:
        basis: [D, n], orthonormal columns; None where there are at least as many images as features.
    """

    basis: Tensor | None

    @classmethod
    def of(cls, images: Tensor) -> Span:
        """Find the span of images [n, D]; float64 inside."""
        if len(images) >= images.shape[1]:
            return cls(None)
        return cls(torch.linalg.qr(images.double().T)[0].to(images.dtype))

    def inside(self, values: Tensor) -> Tensor:
        """Coordinates [..., n] of values [..., D]."""
        return values if self.basis is None else values @ self.basis

    def start(self, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split first weights [D, C] into those inside the span, [n, C], and those outside, [D, C] or None."""
        if self.basis is None:
            return weights, None
        inside = self.basis.T @ weights
        return inside, weights - self.basis @ inside

    def whole(self, inside: Tensor, outside: Tensor | None, shrunk: Tensor) -> Tensor:
        """Join trained weights [n, C, J] and first ones outside, times their factors [J], to [D, C, J]."""
        if self.basis is None or outside is None:
            return inside
        return torch.einsum("dn,ncj->dcj", self.basis, inside) + outside[:, :, None] * shrunk


def with_ones(values: Tensor) -> Tensor:
    """Append a feature that is 1, whose weights are the biases: [n, D] -> [n, D + 1]."""
    return torch.cat([values, torch.ones_like(values[:, :1])], dim=1)


def shuffled(images: int, batch: int, steps: int, seed: int) -> Rows:
    """Cut mini-batches from an endless stream of passes, each in an order of its own.

    Every mini-batch is full; one may hold the end of a pass and the start of the next, and images repeat in it where
    there are fewer than a mini-batch.

    Returns:
        int64 [steps, batch], in 0..images-1.
    """
    passes = -(-steps * batch // images)
    orders = [np.random.default_rng(stream_seed(seed, "pass", number)).permutation(images) for number in range(passes)]
    return np.concatenate(orders)[: steps * batch].reshape(steps, batch)


def cosine(step: int, steps: int) -> float:
    """Factor of the rates at a step, counted from 0: from 1 down to nearly 0."""
    return 0.5 * (1.0 + float(np.cos(np.pi * step / steps)))


def outside_factor(rates: Tensor, decays: Tensor, steps: int, momentum: float) -> Tensor:
    """How far weights that no gradient reaches have shrunk after all steps: float64 [J]."""
    weight, moved = torch.ones_like(rates, dtype=torch.float64), torch.zeros_like(rates, dtype=torch.float64)
    for step in range(steps):
        moved = momentum * moved + decays.double() * weight
        weight = weight - cosine(step, steps) * rates.double() * moved
    return weight


def sgd_heads(
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    start: Tensor,
    orders: Tensor,
    rates: Tensor,
    decays: Tensor,
    momentum: float = 0.9,
) -> Tensor:
    """Train F fits times J linear classifiers by SGD with momentum, coupled weight decay and a cosine schedule.

    Head j of every fit has rates[j] and decays[j]; all heads of a fit start alike and see the same mini-batches. The
    loss is the mean cross-entropy of a mini-batch, in the images' type.

    Args:
        images: F tensors [n_f, D] of one type; include a feature of ones for a bias (`with_ones`).
        labels: F tensors int64 [n_f], in 0..C-1.
        start: [F, D, C], first weights.
        orders: int64 [F, S, B], images of each step's mini-batch.
        rates: [J], learning rates at the first step.
        decays: [J].
        momentum: mu.

    Returns:
        [F, D, C, J].
    """
    fits, width, classes = start.shape
    heads, (_, steps, batch) = len(rates), orders.shape
    kind, device = start.dtype, start.device
    weights = start[..., None].repeat(1, 1, 1, heads).reshape(fits, width, classes * heads)
    moved = torch.zeros_like(weights)
    # Weights of one class stand together, so that the softmax runs along the slow axis, over whole vectors.
    rate, decay = (values.to(device, kind).repeat(classes) for values in (rates, decays))
    decayed = bool((decays != 0).any())
    targets = [torch.nn.functional.one_hot(values, classes).to(kind) for values in labels]
    logits = torch.empty(fits, batch, classes * heads, dtype=kind, device=device)
    chunk = max(1, _GATHERED // (fits * batch * width))
    for first in range(0, steps, chunk):
        places = orders[:, first : first + chunk]
        taken, wanted = _gathered(images, places), _gathered(targets, places)
        for offset in range(places.shape[1]):
            batch_images = taken[offset]
            torch.bmm(batch_images, weights, out=logits)
            errors = torch.softmax(logits.view(fits, batch, classes, heads), dim=2)
            errors -= wanted[offset][..., None]
            errors = errors.view(fits, batch, classes * heads)
            turned = batch_images.transpose(1, 2)
            torch.baddbmm(moved, turned, errors, beta=momentum, alpha=1.0 / batch, out=moved)
            if decayed:
                moved.addcmul_(weights, decay)
            weights.addcmul_(moved, rate, value=-cosine(first + offset, steps))
    return weights.view(fits, width, classes, heads)


def _gathered(sources: Sequence[Tensor], places: Tensor) -> Tensor:
    """Rows of F sources at places [F, S, B], side by side for each step: [S, F, B, ...]."""
    taken = [source[place] for source, place in zip(sources, places, strict=True)]
    return taken[0][:, None] if len(taken) == 1 else torch.stack(taken, dim=1)


def class_means(hits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean over the classes that some label has of the mean of hits [n, J] in each: float64 [J]."""
    sums = torch.zeros(classes, hits.shape[1], dtype=torch.float64, device=hits.device)
    sums.index_add_(0, labels, hits.double())
    counts = torch.bincount(labels, minlength=classes)
    present = counts > 0
    return (sums[present] / counts[present, None]).mean(dim=0)


class AdamW:
    """AdamW on one tensor [F, ...], as `torch.optim.AdamW` computes it, without the work that does around it.

    Loshchilov and Hutter (ICLR 2019): with m and v the moving averages of g and g^2 at 0.9 and 0.999, and the step t
    counted from 1,

        w <- (1 - rate decay) w,    w <- w - rate (m / (1 - 0.9^t)) / (sqrt(v / (1 - 0.999^t)) + 1e-8)

    Args:
        weights: Changed in place.
        decay: Weight decay.
    """

    def __init__(self, weights: Tensor, decay: float) -> None:
        self.weights, self.decay, self.steps = weights, decay, 0
        self.first, self.second = torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Make one step against a gradient of the weights' shape."""
        self.steps += 1
        self.weights.mul_(1.0 - rate * self.decay)
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        spread = self.second.sqrt().div_((1.0 - 0.999**self.steps) ** 0.5).add_(1e-8)
        self.weights.addcdiv_(self.first, spread, value=-rate / (1.0 - 0.9**self.steps))

    def keep(self, places: Sequence[int]) -> None:
        """Go on with some of the F."""
        self.weights, self.first, self.second = (
            values[list(places)] for values in (self.weights, self.first, self.second)
        )
