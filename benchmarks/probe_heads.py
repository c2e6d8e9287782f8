"""The grid of `linear-cached` against the same heads trained one by one with plain PyTorch, for `probe.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from eosin.core.draws import stream_seed
from eosin.evaluate import Fit, Material
from eosin.evaluate.heads import shuffled
from eosin.evaluate.linear_cached import LinearCached, _first_weights

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)


def draw(images: int, width: int, classes: int) -> tuple[Material, np.ndarray, list[np.ndarray]]:
    """Overlapping classes; half of the images train, a quarter chooses, a quarter tests."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    features = (rng.normal(size=(images, width)) + 0.12 * rng.normal(size=(classes, width))[labels]).astype(np.float32)
    parts = np.split(rng.permutation(images), [images // 2, 3 * images // 4])
    return Material(features, tuple(f"c{number}" for number in range(classes))), labels, parts


def fit_of(labels: np.ndarray, parts: list[np.ndarray], fraction: float, seed: int) -> Fit:
    train, val, test = parts
    order = np.random.default_rng(stream_seed(seed, "share")).permutation(train)
    train = order[: max(20, round(fraction * len(train)))]
    seen = np.full_like(labels, -1)
    for rows in (train, val):
        seen[rows] = labels[rows]
    return Fit(seen, train, val, test, seed, fraction)


def one_by_one(material: Material, fit: Fit, protocol: LinearCached, rate: float, decay: float) -> np.ndarray:
    """Train one head and predict validation and test: what a loop over the grid does for each."""
    train = material.features[fit.train]
    mean, spread = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    values = torch.as_tensor((train - mean) / spread, dtype=torch.float32)
    present, targets = np.unique(fit.labels[fit.train], return_inverse=True)
    labels = torch.as_tensor(targets)
    steps = protocol.steps(len(train))
    order = torch.as_tensor(shuffled(len(train), protocol.batch, steps, stream_seed(fit.seed, protocol.name)))
    head = nn.Linear(train.shape[1], len(present))
    with torch.no_grad():
        head.weight.copy_(_first_weights(train.shape[1], len(material.classes), fit.seed)[:, present].T)
        head.bias.zero_()
    optimizer = torch.optim.SGD(
        head.parameters(), lr=rate * protocol.batch / 256, momentum=protocol.momentum, weight_decay=decay, foreach=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in order:
        loss = nn.functional.cross_entropy(head(values[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    rows = np.concatenate([fit.val, fit.test])
    with torch.no_grad():
        others = torch.as_tensor((material.features[rows] - mean) / spread, dtype=torch.float32)
        shares = torch.softmax(head(others), dim=1).numpy()
    probabilities = np.zeros((len(fit.test), len(material.classes)))
    probabilities[:, present] = shares[len(fit.val) :]
    return probabilities


def grid(
    images: int, width: int, classes: int, seeds: int, heads: int, now: Callable[[], float]
) -> tuple[float, float, str]:
    """Seconds of all heads of ours, of the loop (scaled from `heads` of its heads a share of the labels), and what ran.

    Raises:
        SystemExit: If the head that ours chose predicts other probabilities when it is trained alone.
    """
    material, labels, parts = draw(images, width, classes)
    protocol = LinearCached()
    count = len(protocol.rates) * len(protocol.decays)
    ours = loop = difference = 0.0
    for fraction in FRACTIONS:
        fits = [fit_of(labels, parts, fraction, seed) for seed in range(seeds)]
        start = now()
        answers = list(protocol.answers(material, fits))
        ours += now() - start
        alone = 0.0
        for number in range(heads):
            answer = answers[number % seeds]
            chosen = answer.result.chosen
            start = now()
            expected = one_by_one(material, fits[answer.fit], protocol, chosen["rate"], chosen["decay"])
            alone += now() - start
            difference = max(difference, float(np.abs(expected - answer.result.probabilities).max()))
        loop += alone / heads * count * seeds
    if difference > 1e-3:
        raise SystemExit(f"heads trained at once and alone differ by {difference:.2g}: nothing to compare")
    total = count * seeds * len(FRACTIONS)
    what = f"{images} x {width} embeddings, {classes} classes, {len(FRACTIONS)} shares of the labels x {seeds} seeds"
    return (
        ours,
        loop,
        (
            f"{total} heads: {what} x 13 rates x 3 decays; the loop timed on {heads * len(FRACTIONS)} heads; largest"
            f" difference of a probability {difference:.1e}"
        ),
    )
