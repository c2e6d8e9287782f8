"""What an encoder reaches with 1, 2, 4, 8 or 16 labelled images of each class.

A draw takes that many training images of every class; a head is fitted on them and decides every test image. What is
reported is the mean over 1,000 draws: one draw of one image a class says more about the draw than about the encoder.
Nothing is chosen, so validation images are not used.

Both heads see z: the features less the mean of the draw's own images, scaled to length 1. SimpleShot (Wang et al.,
arXiv:1911.04623, 2019, "CL2N") takes the mean of base classes there; in pathology there are none, and the training
set's own mean would let a head of 9 images look at thousands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from eosin.core.draws import Draws
from eosin.core.errors import EosinError, StorageError
from eosin.evaluate.protocol import PROTOCOLS, Answer, Fit, Material, Prediction, Protocol, Rows

__all__ = ["SHOTS", "STRONGEST", "FewShot", "draw_supports"]

SHOTS = (1, 2, 4, 8, 16)
"""Images a class."""

STRONGEST = 1e4
"""Largest C of the logistic regression: beyond it, features of length 1 are told apart by their rounding."""


def draw_supports(images: int, shots: int, draws: int, seed: int, label: int) -> Rows:
    """Draw images of one class without replacement, in every draw anew.

    What draw d takes is a function of (seed, d, class) alone, and the first images of a draw of more shots are the draw
    of fewer: learning curves are nested.

    Args:
        images: Number of the class's images.
        shots: Images a draw, at most `images`.
        draws: Number of draws.
        seed: Of the draws.
        label: The class.

    Returns:
        int64 [draws, shots], places 0..images-1.
    """
    uniform = Draws(seed, 0, np.arange(draws), "fewshot").uniform(f"class {label}", max(shots, SHOTS[-1]))
    picked = np.empty((draws, shots), dtype=np.int64)
    for place in range(shots):
        left = images - place
        choice = np.minimum((uniform[:, place] * left).astype(np.int64), left - 1)
        # The choice-th of the places not yet taken: step over those that are, in ascending order.
        for taken in np.sort(picked[:, :place], axis=1).T:
            choice += choice >= taken
        picked[:, place] = choice
    return picked


@dataclass(frozen=True)
class FewShot(Protocol):
    """SimpleShot and logistic regression on few images a class, many times over.

    A class with fewer training images than shots gives all it has, in every draw; the record says so. The probabilities
    are the shares of the draws' votes; accuracies are means over the draws, not those of the majority, macro-F1 is that
    of the mean confusion matrix, and AUROC ranks the shares.

    Attributes:
        draws: Number of draws.
        strength: C of the logistic regression (the inverse of its penalty), on features of length 1; at most 10,000.
    """

    name: ClassVar[str] = "fewshot"
    version: ClassVar[int] = 1
    reference: ClassVar[str] = (
        "SimpleShot (Wang et al., arXiv:1911.04623, 2019) and logistic regression; 1,000 draws, as THUNDER (2025)"
    )
    changes: ClassVar[dict[int, str]] = {1: "first version"}
    variants: ClassVar[tuple[str, ...]] = tuple(f"{head}-{k}" for head in ("simpleshot", "logistic") for k in SHOTS)
    fractions: ClassVar[bool] = False

    draws: int = 1000
    strength: float = 10.0

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws={self.draws} must be at least 1")
        if not 0 < self.strength <= STRONGEST:
            raise ValueError(f"strength={self.strength:g} must be above 0 and at most {STRONGEST:g}")

    def answers(
        self, material: Material, fits: Sequence[Fit], variants: Sequence[str] | None = None
    ) -> Iterator[Answer]:
        """See `Protocol.answers`."""
        wanted = list(self.variants if variants is None else variants)
        for place, fit in enumerate(fits):
            try:
                found = self._predict(material.features, material.classes, fit, wanted)
            except StorageError:
                raise
            except EosinError as error:
                yield from (Answer(place, variant, error) for variant in wanted)
                continue
            yield from (Answer(place, variant, found.pop(variant)) for variant in wanted)

    def _predict(
        self, features: npt.NDArray[np.float32], classes: Sequence[str], fit: Fit, variants: Sequence[str]
    ) -> dict[str, Prediction]:
        import torch

        from eosin.evaluate.fewshot_heads import decide, logistic_heads, simpleshot_heads

        labels = fit.labels[fit.train]
        present = np.unique(labels)
        if len(present) < 2:
            raise EosinError("fewshot: the training images are of one class only; give images of a second class")
        plan = _plan(variants)
        of_class = [fit.train[labels == label] for label in present]
        drawn = [
            rows[draw_supports(len(rows), min(max(plan), len(rows)), self.draws, fit.seed, int(label))]
            for rows, label in zip(of_class, present, strict=True)
        ]
        used, places = np.unique(np.concatenate([part.ravel() for part in drawn]), return_inverse=True)
        sizes = np.cumsum([part.size for part in drawn])[:-1]
        split = np.split(places.ravel().astype(np.int64), sizes)
        inside = [flat.reshape(part.shape) for flat, part in zip(split, drawn, strict=True)]
        pool, tests = (torch.from_numpy(part) for part in _prepared(features, used, fit.test))
        supports, heads = [], []
        for shots, kinds in plan.items():
            mine = [part[:, :shots] for part in inside]
            support = np.concatenate(mine, axis=1)
            truth = np.repeat(np.arange(len(present)), [part.shape[1] for part in mine])
            solved = {"simpleshot": lambda s=support, t=truth: simpleshot_heads(pool, s, t)}
            solved["logistic"] = lambda s=support, t=truth: logistic_heads(pool, s, t, self.strength)
            supports.append(support)
            heads.append([solved[kind]() for kind in kinds])
        decisions = decide(pool, tests, supports, heads)
        counts = {classes[label]: len(rows) for label, rows in zip(present, of_class, strict=True)}
        found = {}
        for (shots, kinds), group in zip(plan.items(), decisions, strict=True):
            for kind, said in zip(kinds, group, strict=True):
                found[f"{kind}-{shots}"] = self._prediction(kind, shots, said, present, len(classes), counts)
        return found

    def _prediction(
        self, kind: str, shots: int, said: npt.NDArray[Any], present: Rows, classes: int, counts: dict[str, int]
    ) -> Prediction:
        shares = np.zeros((said.shape[1], classes))
        for place, label in enumerate(present):
            shares[:, label] = (said == place).sum(axis=0) / len(said)
        chosen: dict[str, Any] = {"shots": shots, "draws": self.draws}
        if kind == "logistic":
            chosen["C"] = self.strength
        fewer = {name: count for name, count in counts.items() if count < shots}
        if fewer:
            chosen["fewer_images_than_shots"] = fewer
        return Prediction(shares, chosen, votes=True, decisions=present[said].astype(np.min_scalar_type(classes)))


def _plan(variants: Sequence[str]) -> dict[int, list[str]]:
    """Group the heads asked for by their shots."""
    plan: dict[int, list[str]] = {}
    for variant in variants:
        kind, _, shots = variant.rpartition("-")
        plan.setdefault(int(shots), []).append(kind)
    return plan


def _prepared(
    features: npt.NDArray[np.float32], used: Rows, test: Rows
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Scale and shift, which no head notices, so that float32 holds squares and inner products to their digits."""
    pool, tests = features[used], features[test]
    peak = float(np.abs(pool).max())
    scale = np.float32(1.0 / peak) if peak > 0 else np.float32(1.0)
    pool, tests = pool * scale, tests * scale
    mean = pool.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.ascontiguousarray(pool - mean), np.ascontiguousarray(tests - mean)


PROTOCOLS.register("fewshot")(FewShot())
