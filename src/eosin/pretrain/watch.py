"""The collapse watch: says in words when a run stops telling tiles apart.

Looked at are

* the loss against its value by chance (ln(K+1) for MoCo, ln K for K prototypes), where a network that gives all tiles
  one projection ends;
* the spread of projections: the standard deviation per dimension of L2-normalised vectors times sqrt(d), 1 when they
  fill the sphere evenly, 0 when all are equal (Chen and He, "Exploring simple Siamese representation learning",
  CVPR 2021);
* the effective rank of the encoder's features, RankMe = exp(-sum p_i ln p_i) with p_i = s_i / sum s + 1e-7 over the
  singular values s (Garrido et al., ICML 2023);
* where a method has prototypes, how many are in use: exp of the entropy of their mean share, 1 when all tiles fall on
  one;
* where targets are shares of prototypes, what they tell of a tile, in nats: the entropy of their mean less their mean
  entropy, 0 when all tiles have one target, be it one prototype or an even share of all;
* where a method decorrelates dimensions, their mean squared correlation: 1 when all are copies of one;
* the cosine similarity of the two views of a tile beside that of views of different tiles;
* view retrieval: how often a tile's second view is the nearest of the batch's to its first. It needs no scale to be
  judged by: a collapsed network finds one in B, and one that learns finds more from its first steps on, even while all
  its projections still point nearly one way.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CollapseWatch", "effective_rank", "pair_signals", "pair_similarities", "spread", "view_retrieval"]

_LEAST_SPREAD = 0.1
_LEAST_RANK = 2.0
_LEAST_PROTOTYPES = 2.0
_STILL = 1.1  # of the lowest spread there was
_SUNK = 0.5  # of the highest spread there was
_LEAST_TOLD = 0.1  # nats; runs that learned on real tiles had more than 0.4 from their first steps on
_MOST_REDUNDANCY = 0.25  # that of four dimensions; runs that learned on real tiles stayed below 0.1
_NEAR_CHANCE = 0.995
_LEAST_RETRIEVAL = 1.5  # in units of chance
_PATIENCE = 3


def spread(vectors: Tensor) -> Tensor:
    """Return sqrt(d) times the mean standard deviation per dimension of the L2-normalised rows.

    Args:
        vectors: float [N, d].

    Returns:
        Scalar: 0 when all rows point one way, near 1 when they fill the sphere evenly.
    """
    return F.normalize(vectors.float(), dim=1).std(dim=0, correction=0).mean() * vectors.shape[1] ** 0.5


def effective_rank(features: Tensor) -> Tensor:
    """Return RankMe of features, between 1 and min(N, D).

    Args:
        features: float [N, D].
    """
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1e-7
    return torch.exp(-(share * share.log()).sum())


def pair_similarities(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cosine similarity of matching rows and of all other pairs of rows.

    Args:
        first: float [B, d], L2-normalised.
        second: float [B, d], L2-normalised.
    """
    total = first.sum(dim=0) @ second.sum(dim=0)
    matching = (first * second).sum()
    size = len(first)
    return matching / size, (total - matching) / (size * max(size - 1, 1))


def view_retrieval(first: Tensor, second: Tensor) -> Tensor:
    """Return the share of rows of `first` to which the same row of `second` is the nearest of all.

    Args:
        first: float [B, d], L2-normalised.
        second: float [B, d], L2-normalised.
    """
    nearest = (first @ second.T).argmax(dim=1)
    return (nearest == torch.arange(len(first), device=first.device)).float().mean()


def pair_signals(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Return what the watch judges of the two views' projections, by its name in the log.

    Args:
        first: float [B, d], L2-normalised.
        second: float [B, d], L2-normalised.
    """
    positive, negative = pair_similarities(first, second)
    return {
        "watch/positive_similarity": positive,
        "watch/negative_similarity": negative,
        "watch/projection_spread": spread(first),
        "watch/view_retrieval": view_retrieval(first, second),
    }


class CollapseWatch:
    """Judges a run's log records.

    Args:
        chance_loss: The loss of a collapsed network.
        batch: Tiles among which views are retrieved.
        grace_steps: Steps before which nothing is reported.
    """

    def __init__(self, chance_loss: float, batch: int, grace_steps: int) -> None:
        self.chance_loss = chance_loss
        self.batch = batch
        self.grace_steps = grace_steps
        self._suspicions: dict[str, int] = {}
        self._lowest, self._highest = math.inf, 0.0

    def judge(self, record: dict[str, float]) -> list[str]:
        """Return what has been wrong for three looks in a row, each once, in words.

        Args:
            record: A log record with `step`, `loss` and the watch's scalars; absent ones are not judged.
        """
        self._follow(record)
        if record["step"] < self.grace_steps:
            return []
        findings = {
            "spread": self._spread(record),
            "rank": self._rank(record),
            "chance": self._chance(record),
            "prototypes": self._prototypes(record),
            "targets": self._targets(record),
            "redundancy": self._redundancy(record),
        }
        messages = []
        for name, (known, message) in findings.items():
            if not known:
                continue
            self._suspicions[name] = self._suspicions.get(name, 0) + 1 if message else 0
            if message and self._suspicions[name] == _PATIENCE:
                messages.append(message)
        return messages

    def _follow(self, record: dict[str, float]) -> None:
        """Note the highest and the lowest spread, from the first record on."""
        value = record.get("watch/projection_spread")
        if value is not None:
            self._highest, self._lowest = max(self._highest, value), min(self._lowest, value)

    def _blind(self, record: dict[str, float]) -> bool:
        return record.get("watch/view_retrieval", 1.0) < _LEAST_RETRIEVAL / self.batch

    def _spread(self, record: dict[str, float]) -> tuple[bool, str]:
        value = record.get("watch/projection_spread")
        if value is None or value >= _LEAST_SPREAD:
            return value is not None, ""
        if self._blind(record):
            sign = "the two views of a tile are found no more often than by chance"
        # A slow start is as narrow, but it widens.
        elif value < _SUNK * self._highest and value <= _STILL * self._lowest:
            sign = f"have drawn together from {self._highest:.2f}"
        else:
            return True, ""
        return True, (
            f"collapse: projections of different tiles are nearly equal (spread {value:.3f}, healthy near 1) and {sign}"
            ". Lower the learning rate, lengthen the warm-up, or check that the tiles differ and negatives are renewed"
        )

    def _rank(self, record: dict[str, float]) -> tuple[bool, str]:
        value = record.get("watch/effective_rank")
        if value is None or value >= _LEAST_RANK:
            return value is not None, ""
        return True, (
            f"collapse: the features span {value:.1f} dimensions (RankMe). "
            "Lower the learning rate or weaken the augmentation"
        )

    def _chance(self, record: dict[str, float]) -> tuple[bool, str]:
        if record["loss"] < _NEAR_CHANCE * self.chance_loss or not self._blind(record):
            return True, ""
        return True, (
            f"nothing is learned: the loss {record['loss']:.3f} stays at chance ({self.chance_loss:.3f}). "
            "Raise the learning rate or check that the two views share content"
        )

    def _prototypes(self, record: dict[str, float]) -> tuple[bool, str]:
        value = record.get("watch/prototype_usage")
        if value is None or value >= _LEAST_PROTOTYPES:
            return value is not None, ""
        return True, (
            f"collapse: all tiles fall on {value:.1f} prototypes. Check that targets are balanced (centering, "
            "Sinkhorn), freeze the prototypes longer, or lower the learning rate"
        )

    def _targets(self, record: dict[str, float]) -> tuple[bool, str]:
        usage, entropy = record.get("watch/prototype_usage"), record.get("watch/target_entropy")
        if usage is None or entropy is None:
            return False, ""
        told = math.log(max(usage, 1.0)) - entropy
        if usage < _LEAST_PROTOTYPES or told >= _LEAST_TOLD:
            return True, ""
        return True, (
            f"collapse: all tiles get the same target, spread over {usage:.0f} prototypes (it tells {max(told, 0):.2f} "
            "nats of a tile). Lower the teacher's temperature or lengthen its warm-up, or lower the learning rate"
        )

    def _redundancy(self, record: dict[str, float]) -> tuple[bool, str]:
        value = record.get("watch/redundancy")
        if value is None or value <= _MOST_REDUNDANCY:
            return value is not None, ""
        return True, (
            "collapse: the dimensions of the projection are copies of each other (mean squared correlation "
            f"{value:.2f}). Raise --method.redundancy or lower the learning rate"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return how often in a row each finding was made, and between what the spread has been."""
        return {"suspicions": dict(self._suspicions), "spread": [self._lowest, self._highest]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._suspicions = dict(state["suspicions"])
        self._lowest, self._highest = state["spread"]
