"""Tables and words of the page, ready to be written down by the template."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from eosin.benchmark.record import Record, is_nuclei
from eosin.report import figures
from eosin.report.board import board_rows, in_order, published_rows, span
from eosin.report.load import Results
from eosin.report.nuclei_figures import nuclei_figures
from eosin.report.pictures import pictures
from eosin.report.summary import (
    METRIC_NAMES,
    Finding,
    caveats,
    findings,
    headline_metric,
    higher_is_better,
    in_sentence,
    in_words,
    metric_name,
    overview,
)

__all__ = ["build_view", "encoders_of", "metrics_of"]

_FINDINGS = 4

_NAVIGATION = (
    ("summary", "In short"),
    ("leaderboard", "Leaderboard"),
    ("differences", "Differences"),
    ("efficiency", "Labels"),
    ("ranks", "Ranks"),
    ("shift", "Shift"),
    ("confusion", "Confusion"),
    ("roc", "ROC"),
    ("map", "Map"),
    ("tiles", "Tiles"),
    ("nuclei", "Nuclei"),
    ("training", "Training"),
    ("provenance", "Provenance"),
)


def build_view(results: Results) -> dict[str, Any]:
    """Collect everything the template shows.

    Args:
        results: Of a benchmark directory.
    """
    metric = headline_metric(results)
    encoders = encoders_of(results)
    metrics = metrics_of(results, metric)
    tasks = in_order(record["task"] for record in results.records)
    leading = {task: headline_metric(results, task) for task in tasks}
    found = {task: findings(results, task, leading[task]) for task in tasks}
    cards = [_task(results, task, found[task], leading[task]) for task in tasks]
    data = _data(results, encoders, metrics, cards)
    optional = _optional(data)
    sections = {name for name, (present, _) in optional.items() if present}
    return {
        "title": results.out.resolve().name or "benchmark",
        "metric": metric,
        "metrics": [(name, metric_name(name)) for name in metrics],
        "metric_groups": _metric_groups(results, metrics),
        "scores": in_words(in_order(in_sentence(name) for name in leading.values())),
        "encoders": encoders,
        "color": {name: index for index, name in enumerate(encoders)},
        "synthetic": sorted({r["task"] for r in results.records if r.get("synthetic")}),
        "all_synthetic": all(r.get("synthetic") for r in results.records),
        "facts": _facts(results, encoders, tasks),
        "tasks": cards,
        "overview": overview([finding for task in tasks for finding in found[task]]),
        "caveats": caveats(results),
        "provenance": _provenance(results, encoders),
        "failures": results.failures,
        "missing": results.missing,
        "higher": all(higher_is_better(name) for name in leading.values()),
        "sections": sorted(sections),
        "navigation": [(name, label) for name, label in _NAVIGATION if name in sections or name not in optional],
        "absent": [words for present, words in optional.values() if not present],
        "data": data,
    }


def _optional(data: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """Say of each section that not every benchmark has whether it is there, and what is missing otherwise."""
    shares: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for row in data["rows"]:
        head, _, shots = row["protocol"].rpartition("-")
        few = head.startswith("fewshot:") and shots.isdigit()
        if "values" in row and not row["protocol"].startswith("shift:"):
            shares[row["task"], head if few else row["protocol"]].add(shots if few else row["fraction"])
    changes = any(
        row["protocol"].startswith("shift:") and any(name.endswith("_lost") for name in row.get("values", {}))
        for row in data["rows"]
    )
    of_tiles = any(task["kind"] == "tiles" for task in data["tasks"])
    return {
        "confusion": (of_tiles, "confusion matrices"),
        "map": (of_tiles, "embedding maps"),
        "nuclei": (bool(data["nuclei"]["cells"]), "nuclei"),
        "efficiency": (any(len(found) > 1 for found in shares.values()), "curves over shares of the labels or shots"),
        "ranks": (bool(data["ranks"]), "ranks over tasks"),
        "shift": (changes, "changed images"),
        "roc": (bool(data["roc"]["cells"]), "ROC curves"),
        "tiles": (bool(data["embedding"]["errors"]), "neighbors and errors to look at"),
    }


def encoders_of(results: Results) -> list[str]:
    """Return the encoders with a result, or with a failure on a task that has results, in the order of the records."""
    tasks = {record["task"] for record in results.records}
    failed = [failure["encoder"] for failure in results.failures if failure["task"] in tasks]
    return in_order([*(record["encoder"] for record in results.records), *failed])


def metrics_of(results: Results, first: str) -> list[str]:
    """Return the metrics that any record has, the first one given first, then those with a name of their own."""
    present = in_order(name for record in results.records for name in record["metrics"])
    return [name for name in in_order([first, *METRIC_NAMES, *present]) if name in present]


def _data(
    results: Results, encoders: Sequence[str], metrics: Sequence[str], cards: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Collect what the page's script draws from; every number in it is finite or null."""
    described = ("name", "kind", "metric", "classes", "n_train", "n_test", "grouping")
    return {
        "encoders": encoders,
        "metric": metrics[0],
        "metric_names": {name: metric_name(name) for name in metrics},
        "metric_words": {name: in_sentence(name) for name in metrics},
        "higher": {name: higher_is_better(name) for name in metrics},
        "tasks": [
            {key: card[key] for key in described}
            | {"chance": {name: figures.chance(name, card["classes"]) for name in metrics}}
            for card in cards
        ],
        "rows": [
            row | {"condition": figures.condition(row["protocol"], row["fraction"])}
            for row in board_rows(results, encoders, metrics)
        ],
        "published": published_rows(results.records),
        "differences": figures.differences(results, encoders),
        "ranks": figures.ranks(results),
        "confusion": figures.confusion(results),
        "roc": figures.curves(results),
        "embedding": pictures(results.maps, results.galleries),
        "nuclei": nuclei_figures(results.nuclei, figures.condition),
        "training": figures.training(results.runs),
    }


def _metric_groups(results: Results, metrics: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Part the metrics into those of tiles and those of nuclei, under a heading where there are both."""
    of_nuclei = {name for record in results.records if is_nuclei(record) for name in record["metrics"]}
    of_tiles = {name for record in results.records if not is_nuclei(record) for name in record["metrics"]}
    parts = [
        ("Tiles", [(name, metric_name(name)) for name in metrics if name in of_tiles]),
        ("Nuclei", [(name, metric_name(name)) for name in metrics if name in of_nuclei - of_tiles]),
    ]
    filled = [part for part in parts if part[1]]
    return filled if len(filled) > 1 else [("", entries) for _, entries in filled]


def _facts(results: Results, encoders: Sequence[str], tasks: Sequence[str]) -> list[str]:
    protocols = in_order(record["protocol"] for record in results.records)
    seeds = {record["seed"] for record in results.records}
    counts = (
        (len(encoders), "encoder"),
        (len(tasks), "task"),
        (len(protocols), "protocol"),
        (len(seeds), "seed"),
        (len(results.records), "result"),
    )
    return [f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in counts]


def _task(results: Results, task: str, found: Sequence[Finding], metric: str) -> dict[str, Any]:
    records = [record for record in results.records if record["task"] == task]
    first = records[0]
    shown = [_finding(entry, metric) for entry in found]
    return {
        "name": task,
        "kind": "nuclei" if is_nuclei(first) else "tiles",
        "metric": metric,
        "higher": higher_is_better(metric),
        "classes": len(first.get("classes") or ()),
        "n_test": span(record["n_test"] for record in records),
        "n_train": span(record.get("n_train", 0) for record in records),
        "grouping": first.get("grouping", "image"),
        "n_groups": span(record.get("n_groups", record["n_test"]) for record in records),
        "synthetic": bool(first.get("synthetic")),
        "findings": shown[:_FINDINGS],
        "further": shown[_FINDINGS:],
    }


def _finding(finding: Finding, metric: str) -> dict[str, Any]:
    return {
        "condition": figures.condition(finding.protocol, finding.fraction),
        "encoder": finding.best["encoder"],
        "estimate": finding.best["metrics"][metric],
        "tone": finding.tone,
        "sentence": finding.sentence,
        "higher": higher_is_better(metric),
    }


# Provenance ----------------------------------------------------------------------------------------------------------


def _provenance(results: Results, encoders: Sequence[str]) -> dict[str, Any]:
    records = results.records
    libraries: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in (record.get("libraries") or {}).items():
            if version:
                libraries[name].add(str(version))
    by_encoder: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_encoder[record["encoder"]].append(record)
    return {
        "encoders": [_origin(name, by_encoder[name]) for name in encoders],
        "tasks": _task_origins(records),
        "libraries": {name: ", ".join(sorted(versions)) for name, versions in sorted(libraries.items())},
        "commands": in_order(record["command"] for record in records if record.get("command")),
        "runs": results.runs,
        "created": max((str(record.get("created", "")) for record in records), default=""),
        "seconds": math.fsum(float(record.get("seconds") or 0.0) for record in records),
        "seeds": sorted({record["seed"] for record in records}),
        "precisions": sorted({str(record["precision"]) for record in records if record.get("precision")}),
    }


def _origin(name: str, records: Sequence[Record]) -> dict[str, Any]:
    normalization = records[0].get("normalization") if records else None
    prints: dict[str, list[str]] = defaultdict(list)
    for record in records:
        seed = str(record["seed"])
        if seed not in prints[str(record.get("fingerprint", "?"))]:
            prints[str(record.get("fingerprint", "?"))].append(seed)
    return {
        "name": name,
        "specs": in_order(str(record.get("spec", "?")) for record in records),
        "architecture": ", ".join(in_order(str(record.get("architecture", "?")) for record in records)),
        "fingerprints": [(digest, ", ".join(seeds)) for digest, seeds in prints.items()],
        "licence": ", ".join(in_order(str(record["licence"]) for record in records if record.get("licence"))),
        "width": ", ".join(in_order(f"{int(width):,}" for record in records if (width := record.get("width")))),
        "size": normalization["size"] if normalization else None,
        "mean": _listed(normalization["mean"]) if normalization else "?",
        "std": _listed(normalization["std"]) if normalization else "?",
    }


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _task_origins(records: Sequence[Record]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        row = rows.setdefault(
            (record["task"], str(record.get("split_hash", "?"))),
            {
                "name": record["task"],
                "spec": record.get("task_spec", "?"),
                "version": record.get("task_version", "?"),
                "split_hash": record.get("split_hash", "?"),
                "split_source": record.get("split_source", "?"),
                "sizes": (record.get("n_train"), record.get("n_val"), record["n_test"]),
                "seeds": [],
            },
        )
        if record["fraction"] == 1.0:
            row["sizes"] = (record.get("n_train"), record.get("n_val"), record["n_test"])
        if record["seed"] not in row["seeds"]:
            row["seeds"].append(record["seed"])
    return list(rows.values())
