"""What every protocol has: a name, a version, a reference, and one function from features to probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from eosin.core.registry import Registry

__all__ = ["PROTOCOLS", "Prediction", "Protocol"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prediction:
    """A protocol's answer for the test images.

    Attributes:
        probabilities: float64 [n_test, C], rows summing to 1.
        chosen: What was selected and on what, ready for JSON.
    """

    probabilities: npt.NDArray[np.float64]
    chosen: dict[str, Any] = field(default_factory=dict)


class Protocol(ABC):
    """A way to score frozen features.

    Attributes:
        name: In records and on the command line.
        version: Raised, with a line in `changes`, when the same features would score differently.
        reference: Where it is published.
        changes: What each version changed.
        higher_is_better: Direction of its scores.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    reference: ClassVar[str]
    changes: ClassVar[dict[int, str]]
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
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
        """Fit on the training rows, choose on the validation rows, predict the test rows.

        Args:
            features: float32 [N, D].
            labels: int64 [N], class indices; those of the test rows are not looked at.
            classes: C class names.
            train: Rows to fit on.
            val: Rows to choose settings on.
            test: Rows to predict.
            groups: [N], patient or slide of each row, None when unknown.
            seed: Of whatever the protocol draws.
        """


PROTOCOLS: Registry[Protocol] = Registry("protocol")
