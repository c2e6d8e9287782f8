"""Numbers behind the page's figures, as plain objects for the page's script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from eosin.report.board import rounded
from eosin.report.load import Results, Run
from eosin.report.roc import Curve, area, thin
from eosin.report.summary import is_headline

__all__ = ["brief", "chance", "condition", "confusion", "curves", "differences", "ranks", "training"]

T = TypeVar("T")
Cell = tuple[str, str, str, float]

_CURVE_POINTS = 400
_ROC_BUDGET = 1_600_000
_ROC_BYTES = 11
_ROC_POINTS = (12, 120)
_ROC_STEPS = 10_000

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


def brief(name: str) -> str:
    """Leave the settings of a protocol, or of a condition, out where they are long, as the page's scripts do."""
    return re.sub(r"\?[^,]*", "?…", name, count=1) if len(name) > 28 else name


def chance(metric: str, classes: int) -> float | None:
    """Return the value that guessing reaches, where it does not depend on how frequent the classes are."""
    if metric == "auroc":
        return 0.5
    return 1.0 / classes if metric == "balanced_accuracy" and classes else None


def confusion(results: Results) -> list[dict[str, Any]]:
    """Return each encoder's confusion matrix by task and condition."""
    return [
        {
            "encoder": encoder,
            "task": task,
            "condition": condition(protocol, fraction),
            "classes": matrix.classes,
            "counts": matrix.counts.round(1).tolist() if matrix.votes else matrix.counts.astype(int).tolist(),
            "seeds": matrix.seeds,
            "votes": matrix.votes,
        }
        for (encoder, task, protocol, fraction), matrix in _chief_first(results.confusions.items())
    ]


def curves(results: Results) -> dict[str, Any]:
    """Return the ROC curves: rates in ten-thousandths, thinned to what the page can hold with their areas unchanged."""
    count = sum(len(roc.curves) + 1 for roc in results.rocs.values())
    fewest, most = _ROC_POINTS
    points = min(max(_ROC_BUDGET // (_ROC_BYTES * max(count, 1)), fewest), most)
    return {
        "steps": _ROC_STEPS,
        "cells": [
            {
                "encoder": encoder,
                "task": task,
                "condition": condition(protocol, fraction),
                "classes": roc.classes,
                "areas": [rounded(area(curve)) for curve in roc.curves],
                "curves": [_steps(curve, points) for curve in roc.curves],
                "macro_area": rounded(area(roc.macro)),
                "macro": _steps(roc.macro, points) if len(roc.curves) > 1 else None,
                "seeds": roc.seeds,
            }
            for (encoder, task, protocol, fraction), roc in _chief_first(results.rocs.items())
        ],
    }


def _chief_first(cells: Iterable[tuple[Cell, T]]) -> list[tuple[Cell, T]]:
    """Order (encoder, task, protocol, fraction) with its value so that a picker opens on what the summary speaks of."""
    return sorted(cells, key=lambda cell: not is_headline(*cell[0][2:]))


def _steps(curve: Curve, points: int) -> list[list[int]]:
    return [[round(_ROC_STEPS * float(value)) for value in column] for column in thin(curve, points).T]


def differences(results: Results, encoders: Sequence[str]) -> list[dict[str, Any]]:
    """Return the paired tests of each task and condition: numbers of two encoders, difference, low, high, Holm p."""
    number = {name: index for index, name in enumerate(encoders)}
    families: dict[tuple[str, str, float, str], dict[str, Any]] = {}
    for test in results.comparisons:
        key = (test["task"], test["protocol"], test["fraction"], test["metric"])
        family = families.setdefault(
            key,
            {
                "task": test["task"],
                "protocol": test["protocol"],
                "fraction": test["fraction"],
                "condition": condition(test["protocol"], test["fraction"]),
                "metric": test["metric"],
                "grouping": test["grouping"],
                "groups": test["n_groups"],
                "pairs": [],
            },
        )
        if test["encoder"] in number and test["reference"] in number:
            estimate = [rounded(value) for value in (test["difference"], test["low"], test["high"], test["p_holm"])]
            family["pairs"].append([number[test["encoder"]], number[test["reference"]], *estimate])
    return sorted(families.values(), key=lambda family: not is_headline(family["protocol"], family["fraction"]))


def ranks(results: Results) -> list[dict[str, Any]]:
    """Return the ranks of encoders over tasks, best first, with the test of Friedman and what it cannot tell apart."""
    found = []
    for line in sorted(results.ranks, key=lambda line: not is_headline(str(line["protocol"]), float(line["fraction"]))):
        entries = [(str(entry["encoder"]), rounded(entry.get("rank"))) for entry in line["encoders"]]
        friedman = line.get("friedman") or {}
        found.append(
            {
                "condition": condition(str(line["protocol"]), float(line["fraction"])),
                "metric": line["metric"],
                "tasks": [str(task) for task in line["tasks"]],
                "encoders": sorted(
                    ((n, r) for n, r in entries if r is not None), key=lambda entry: (entry[1], entry[0])
                ),
                "statistic": rounded(friedman.get("statistic")),
                "p": rounded(friedman.get("p")),
                "critical_difference": rounded(line.get("critical_difference")),
                "cliques": [[str(name) for name in clique] for clique in line.get("cliques") or ()],
                "reason": line.get("reason"),
            }
        )
    return found


def training(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one panel per quantity that any run logged, with a curve per run."""
    chances = {rounded(line.get("loss_at_chance")) for run in runs for line in run.metrics} - {None}
    panels = []
    for title, name, note in _PANELS:
        curves = [curve for run in runs if (curve := _curve(run, name))]
        if curves:
            # Runs with queues of different sizes have different chances: then no line is drawn.
            level = next(iter(chances)) if name == "loss" and len(chances) == 1 else None
            panels.append({"title": title, "note": note, "curves": curves, "chance": level})
    return panels


def _curve(run: Run, name: str) -> dict[str, Any] | None:
    points = [(line["step"], value) for line in run.metrics if (value := rounded(line.get(name))) is not None]
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
