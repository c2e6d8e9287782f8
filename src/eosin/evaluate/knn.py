"""Weighted nearest neighbours, as in DINO's `eval_knn.py`.

With the features scaled to length 1 and s_i = cos(test, train_i), the k training images of the largest s vote for their
class with exp(s / T) (Wu et al., CVPR 2018, section 3.4; Caron et al., ICCV 2021, appendix F.1: k = 20, T = 0.07).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.evaluate.protocol import PROTOCOLS, FeatureProtocol, Prediction, Rows

__all__ = ["Knn", "knn_probabilities"]

# Similarities of a block of test images: 8 M values, 32 MiB.
_BLOCK = 1 << 23


def knn_probabilities(
    train: npt.NDArray[np.float32],
    labels: Rows,
    test: npt.NDArray[np.float32],
    *,
    classes: int,
    k: int,
    temperature: float,
) -> npt.NDArray[np.float64]:
    """Share of the votes of the k nearest training images that each class gets.

    Among equally similar training images the earlier rows are taken. A feature vector of length 0 has similarity 0 to
    all.

    Args:
        train: float32 [n, D].
        labels: int64 [n], class indices.
        test: float32 [m, D].
        classes: Number of classes C.
        k: Neighbours, 1 <= k <= n.
        temperature: T > 0.

    Returns:
        float64 [m, C], rows summing to 1.
    """
    bank = _unit_length(train).T.contiguous()
    queries = _unit_length(test)
    classes_of = torch.as_tensor(labels)
    votes = torch.zeros(len(queries), classes, dtype=torch.float64)
    rows = max(1, _BLOCK // bank.shape[1])
    for start in range(0, len(queries), rows):
        similarity, neighbors = _nearest(queries[start : start + rows] @ bank, k)
        # The largest similarity cancels in the shares; without it exp would overflow at a small temperature.
        weights = torch.exp((similarity.double() - similarity[:, :1].double()) / temperature)
        votes[start : start + rows].scatter_add_(1, classes_of[neighbors], weights)
    return (votes / votes.sum(dim=1, keepdim=True)).numpy()


def _unit_length(features: npt.NDArray[np.float32]) -> Tensor:
    values = torch.as_tensor(np.ascontiguousarray(features, dtype=np.float32))
    # Dividing by the largest magnitude first keeps the squares of very large or small features in range.
    peak = values.abs().amax(dim=1, keepdim=True)
    values = values / torch.where(peak > 0, peak, torch.ones_like(peak))
    return torch.nn.functional.normalize(values, dim=1)


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row in descending order; of equal ones the first columns, which `topk` leaves open."""
    values, columns = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    if values.shape[1] > k:
        tied = values[:, k] == values[:, k - 1]
        for row in torch.nonzero(tied).flatten().tolist():
            order = torch.sort(similarity[row], descending=True, stable=True)
            values[row, :k], columns[row, :k] = order.values[:k], order.indices[:k]
    return values[:, :k], columns[:, :k]


@dataclass(frozen=True)
class Knn(FeatureProtocol):
    """Nearest neighbours in the training images; there is nothing to choose, so validation images are not used.

    Attributes:
        k: Neighbours; all training images where there are fewer.
        temperature: T.
    """

    name: ClassVar[str] = "knn"
    version: ClassVar[int] = 1
    reference: ClassVar[str] = "Caron et al., ICCV 2021: cosine, k 20, T 0.07"
    changes: ClassVar[dict[int, str]] = {1: "first version"}

    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 < self.temperature < float("inf"):
            raise ValueError(f"k={self.k} and temperature={self.temperature} must be at least 1 and above 0")

    def run(
        self,
        features: npt.NDArray[np.float32],
        labels: Rows,
        classes: Sequence[str],
        train: Rows,
        val: Rows,
        test: Rows,
        groups: npt.NDArray[Any] | None = None,
        seed: int = 0,
    ) -> Prediction:
        """See `Protocol.run`."""
        k = min(self.k, len(train))
        shares = knn_probabilities(
            features[train], labels[train], features[test], classes=len(classes), k=k, temperature=self.temperature
        )
        return Prediction(shares, {"k": k, "temperature": self.temperature})


PROTOCOLS.register("knn")(Knn())
