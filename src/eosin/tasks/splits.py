"""Splits that keep a group (patient or slide) on one side and the classes in proportion.

A split is a pure function of the images' names, labels, groups and the seed: the order of the rows does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from eosin.core.draws import stream_seed

__all__ = ["divide", "split_hash"]

_STARTS = 8  # seeded starts of the search; more of them only where a class is still missing on one side
_MORE_STARTS = 32
_EXHAUSTIVE = 14  # up to this many groups every division can be looked at
_MOVES = 500

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def divide(labels: npt.ArrayLike, groups: npt.ArrayLike, fraction: float, seed: int, scope: str) -> Bools:
    """Choose whole groups to hold out, about `fraction` of the images of each class.

    Every class that has at least two groups is on both sides wherever that is possible (found by search; by looking
    at every division when there are at most 14 groups); a class with one group is never held out.

    Args:
        labels: int [n], class indices.
        groups: str [n], patient, slide or, where neither is known, the image's name.
        fraction: Share to hold out, in (0, 1).
        seed: Which of the possible splits.
        scope: Name of the split, so that "test" and "val" are drawn independently.

    Returns:
        bool [n], True for the rows held out; all False when the groups cannot be divided.
    """
    _, label = np.unique(np.asarray(labels), return_inverse=True)
    names, group = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    counts = np.zeros((len(names), int(label.max()) + 1))
    np.add.at(counts, (group, label), 1.0)
    if counts.sum(axis=1).max() == 1:
        return _divide_images(counts.argmax(axis=1), fraction, seed, scope)[group]
    return _divide_groups(counts, fraction, seed, scope)[group]


def split_hash(names: Sequence[str], assignment: Sequence[str]) -> str:
    """Identify a split: 16 hexadecimal digits over the sorted pairs of image name and split.

    Args:
        names: The images.
        assignment: "train", "val" or "test" of each.
    """
    digest = hashlib.sha256()
    for name, split in sorted(zip(map(str, names), map(str, assignment), strict=True)):
        digest.update(f"{split}\0{name}\n".encode())
    return digest.hexdigest()[:16]


def _divide_images(label: npt.NDArray[np.intp], fraction: float, seed: int, scope: str) -> Bools:
    """Hold out the nearest whole number of each class's images, at least one and never the last."""
    held = np.zeros(len(label), dtype=bool)
    generator = np.random.default_rng(stream_seed(seed, "split", scope))
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        wanted = int(np.floor(fraction * len(rows) + 0.5))
        count = min(max(wanted, 1), len(rows) - 1)
        held[generator.permutation(rows)[:count]] = True
    return held


def _divide_groups(counts: Floats, fraction: float, seed: int, scope: str) -> Bools:
    best, best_cost = np.zeros(len(counts), dtype=bool), np.inf
    for start in range(_STARTS + _MORE_STARTS):
        if start >= _STARTS and best_cost < _missing_weight(counts):
            break
        generator = np.random.default_rng(stream_seed(seed, "split", scope, start))
        held, cost = _improved(_greedy(counts, fraction, generator), counts, fraction)
        if cost < best_cost - 1e-12:
            best, best_cost = held, cost
    if best_cost >= _missing_weight(counts) and len(counts) <= _EXHAUSTIVE:
        choices = ((np.arange(2 ** len(counts))[:, None] >> np.arange(len(counts))) & 1).astype(np.float64)
        best = choices[int(_cost(choices @ counts, counts, fraction).argmin())] > 0
    return best


def _missing_weight(counts: Floats) -> float:
    # A class missing on one side outweighs any deviation from the wanted shares, which is at most 1 a class.
    return counts.shape[1] + 2.0


def _cost(held: Floats, counts: Floats, fraction: float) -> Floats:
    """Cost of divisions that hold out `held` [S, C] images a class: squared deviations and classes missing."""
    total = counts.sum(axis=0)
    several = (counts > 0).sum(axis=0) > 1
    rest = total - held
    missing = 2.0 * (rest == 0).sum(axis=1) + ((held == 0) & several).sum(axis=1)
    deviation = ((held / total - fraction) ** 2).sum(axis=1)
    overall = (held.sum(axis=1) / total.sum() - fraction) ** 2
    return np.asarray(missing * _missing_weight(counts) + deviation + overall)


def _greedy(counts: Floats, fraction: float, generator: np.random.Generator) -> Bools:
    """Give each group, in random order, to the side that lacks its classes most."""
    total = counts.sum(axis=0)
    share = counts / total
    held = np.zeros(len(counts), dtype=bool)
    lacking, resting = np.ones(len(total)), np.ones(len(total))
    for row in generator.permutation(len(counts)):
        if share[row] @ lacking >= share[row] @ resting:
            held[row] = True
            lacking -= share[row] / fraction
        else:
            resting -= share[row] / (1.0 - fraction)
    return held


def _improved(held: Bools, counts: Floats, fraction: float) -> tuple[Bools, float]:
    """Move single groups across while that lowers the cost."""
    held = held.copy()
    current = counts[held].sum(axis=0)
    cost = float(_cost(current[None], counts, fraction)[0])
    for _ in range(_MOVES):
        signed = np.where(held[:, None], -counts, counts)
        costs = _cost(current + signed, counts, fraction)
        row = int(costs.argmin())
        if costs[row] >= cost - 1e-12:
            break
        held[row] = not held[row]
        current, cost = current + signed[row], float(costs[row])
    return held, cost
