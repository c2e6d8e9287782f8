"""The encoder that the online probe found best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.encoders import Encoder, save_encoder

__all__ = ["BestEncoder"]

MEASURE = "watch/knn_balanced_accuracy"


class BestEncoder:
    """Keeps `best.safetensors`, and in `best.json` the step and score it had.

    Both are functions of the steps taken: a run that is killed and resumed comes by the same best encoder again, so a
    file that is ahead of the resumed step does no harm.

    Args:
        run: The run directory.
        step: Step from which the run goes on.

    Raises:
        EosinError: If `best.json` is damaged.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.weights = run / "best.safetensors"
        self.index = run / "best.json"
        self.score = -1.0
        if step and self.index.exists():
            at, score = self._held()
            # One that is ahead will be found again, and is better than all that come before it.
            self.score = score if at <= step else -1.0

    def _held(self) -> tuple[int, float]:
        try:
            held = json.loads(self.index.read_text(encoding="utf-8"))
            return int(held["step"]), float(held["score"])
        except (OSError, ValueError, KeyError, TypeError):
            raise EosinError(
                f"{self.index}: cannot be read or damaged; remove it to go on with the best of the steps to come"
            ) from None

    def consider(self, encoder: Encoder, step: int, record: Mapping[str, float]) -> None:
        """Keep the encoder if it scores higher than all before it.

        Args:
            encoder: The encoder after `step`.
            step: Optimiser steps taken.
            record: What the probe found; without a score nothing is kept.
        """
        score = record.get(MEASURE)
        if score is None or score <= self.score:
            return
        self.score = score
        save_encoder(encoder, self.weights)
        with atomic_file(self.index, "w") as file:
            json.dump({"step": step, "score": score, "measure": MEASURE}, file)
