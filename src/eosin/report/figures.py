"""Numbers behind the page's figures, as plain objects for the page's script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eosin.benchmark.record import Standing
from eosin.report.load import EmbeddingMap, Results, Run
from eosin.report.sprites import Sprite

__all__ = ["bars", "chance", "condition", "confusion", "maps", "training"]

_SPRITE_BUDGET = 2_400_000
_CURVE_POINTS = 400

_PANELS = (
    ("Loss", "loss", "Lower is better; at the dashed line nothing is learned."),
    ("Online kNN accuracy", "watch/knn_accuracy", "Labelled tiles, frozen features, during training."),
    ("Projection spread", "watch/projection_spread", "Standard deviation, 1 when they fill the sphere; 0 is collapse."),
    ("Effective rank", "watch/effective_rank", "Dimensions that the features span (RankMe)."),
    ("Positive similarity", "watch/positive_similarity", "Cosine of two views of one tile, in the projection."),
    ("Learning rate", "lr", "As applied."),
)
"""Title, name in metrics.jsonl, explanation."""


def condition(protocol: str, fraction: float) -> str:
    """Name a protocol at a label fraction: "knn", "logistic, 10 % of labels"."""
    return protocol if fraction == 1.0 else f"{protocol}, {100 * fraction:g} % of labels"


def chance(metric: str, classes: int) -> float | None:
    """Return the value that guessing reaches, where it does not depend on how frequent the classes are."""
    if metric == "auroc":
        return 0.5
    return 1.0 / classes if metric == "balanced_accuracy" and classes else None


def bars(results: Results, encoders: Sequence[str], classes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return, per task, the conditions and each encoder's estimates by metric; None where a cell has no result."""
    figures = []
    for task in dict.fromkeys(line["task"] for line in results.standings):
        lines = [line for line in results.standings if line["task"] == task]
        conditions = list(dict.fromkeys((line["protocol"], line["fraction"]) for line in lines))
        place = {(line["encoder"], line["protocol"], line["fraction"]): line for line in lines}
        names = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
        figures.append(
            {
                "task": task,
                "conditions": [condition(*entry) for entry in conditions],
                "metrics": {
                    name: {
                        "chance": chance(name, classes.get(task, 0)),
                        "encoders": {
                            encoder: [_estimate(place.get((encoder, *entry)), name) for entry in conditions]
                            for encoder in encoders
                        },
                    }
                    for name in names
                },
            }
        )
    return figures


def _estimate(line: Standing | None, metric: str) -> dict[str, float | None] | None:
    estimate = line["metrics"].get(metric) if line else None
    if estimate is None or estimate["value"] is None:
        return None
    return {"value": estimate["value"], "low": estimate["low"], "high": estimate["high"]}


def confusion(results: Results) -> list[dict[str, Any]]:
    """Return each encoder's confusion matrix by task and condition."""
    return [
        {
            "encoder": encoder,
            "task": task,
            "condition": condition(protocol, fraction),
            "classes": matrix.classes,
            "counts": matrix.counts.tolist(),
            "seeds": matrix.seeds,
        }
        for (encoder, task, protocol, fraction), matrix in results.confusions.items()
    ]


def maps(found: Sequence[EmbeddingMap]) -> dict[str, Any]:
    """Return the embedding maps and, per task, the sprite of their thumbnails."""
    sprites: dict[str, Sprite] = {}
    entries = []
    for entry in found:
        sprite = sprites.setdefault(entry.task, Sprite())
        points = entry.points
        entries.append(
            {
                "encoder": entry.encoder,
                "task": entry.task,
                **{key: entry.details.get(key) for key in ("method", "seed", "predicted_by", "shown", "of")},
                "x": [_rounded(value) for value in points["x"]],
                "y": [_rounded(value) for value in points["y"]],
                "label": [str(value) for value in points["label"]],
                "predicted": [None if value is None else str(value) for value in points["predicted"]],
                "name": [str(value) for value in points["name"]],
                "thumbnail": [sprite.add(value) for value in points["thumbnail"]],
            }
        )
    budget = _SPRITE_BUDGET // max(len(sprites), 1)
    return {"maps": entries, "sprites": {task: sprite.encode(budget) for task, sprite in sprites.items()}}


def training(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one panel per quantity that any run logged, with a curve per run."""
    chances = {_rounded(line.get("loss_at_chance")) for run in runs for line in run.metrics} - {None}
    panels = []
    for title, name, note in _PANELS:
        curves = [curve for run in runs if (curve := _curve(run, name))]
        if curves:
            # Runs with queues of different sizes have different chances: then no line is drawn.
            level = next(iter(chances)) if name == "loss" and len(chances) == 1 else None
            panels.append({"title": title, "note": note, "curves": curves, "chance": level})
    return panels


def _curve(run: Run, name: str) -> dict[str, Any] | None:
    points = [(line["step"], value) for line in run.metrics if (value := _rounded(line.get(name))) is not None]
    if not points:
        return None
    # Every n-th point keeps the page small; the last one is where the run ended and always stays.
    stride = -(-len(points) // _CURVE_POINTS)
    kept = points[::stride] if points[-1] in points[::stride] else [*points[::stride], points[-1]]
    return {
        "encoder": run.encoder,
        "seed": run.seed,
        "steps": [step for step, _ in kept],
        "values": [value for _, value in kept],
    }


def _rounded(value: Any) -> float | None:
    """Keep six significant digits; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
