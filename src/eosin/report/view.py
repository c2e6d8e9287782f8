"""Tables and words of the page, ready to be written down by the template."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eosin.benchmark.record import Comparison, Estimate, Record, Standing
from eosin.report import figures
from eosin.report.load import Results
from eosin.report.summary import METRIC_NAMES, Finding, best_of, caveats, findings, headline_metric, overview

__all__ = ["build_view"]

_LEVEL = 0.05


@dataclass(frozen=True)
class Axis:
    """The scale of a column of interval drawings.

    Attributes:
        low: Left end.
        high: Right end.
        mark: A value to mark, such as chance or zero; None for none.
    """

    low: float
    high: float
    mark: float | None

    def place(self, value: float | None) -> float | None:
        """Return a value's place from the left in percent, clipped to the drawing."""
        if value is None:
            return None
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 2)


def build_view(results: Results) -> dict[str, Any]:
    """Collect everything the template shows.

    Args:
        results: Of a benchmark directory.
    """
    metric = headline_metric(results)
    encoders = _in_order(
        [r["encoder"] for r in results.records] + [f["encoder"] for f in results.failures if _known_task(results, f)]
    )
    tasks = _in_order(record["task"] for record in results.records)
    metrics = _in_order([metric, *METRIC_NAMES, *(name for record in results.records for name in record["metrics"])])
    metrics = [name for name in metrics if any(name in record["metrics"] for record in results.records)]
    classes = {r["task"]: len(r.get("classes") or ()) for r in results.records}
    data = {
        "encoders": encoders,
        "metric": metric,
        "metric_names": {name: METRIC_NAMES.get(name, name) for name in metrics},
        "bars": figures.bars(results, encoders, classes),
        "confusion": figures.confusion(results),
        "embedding": figures.maps(results.maps),
        "training": figures.training(results.runs),
    }
    return {
        "title": results.out.resolve().name or "benchmark",
        "metric": metric,
        "metrics": [(name, METRIC_NAMES.get(name, name)) for name in metrics],
        "encoders": encoders,
        "color": {name: index for index, name in enumerate(encoders)},
        "synthetic": sorted({r["task"] for r in results.records if r.get("synthetic")}),
        "all_synthetic": all(r.get("synthetic") for r in results.records),
        "facts": _facts(results, encoders, tasks),
        "tasks": [_task(results, task, encoders, metrics, metric) for task in tasks],
        "overview": overview([finding for task in tasks for finding in findings(results, task, metric)]),
        "caveats": caveats(results, metric),
        "fractions": len({record["fraction"] for record in results.records}) > 1,
        "provenance": _provenance(results, encoders),
        "failures": results.failures,
        "missing": results.missing,
        "data": data,
    }


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _known_task(results: Results, failure: Any) -> bool:
    return any(record["task"] == failure["task"] for record in results.records)


def _facts(results: Results, encoders: Sequence[str], tasks: Sequence[str]) -> list[str]:
    protocols = _in_order(record["protocol"] for record in results.records)
    seeds = {record["seed"] for record in results.records}
    counts = (
        (len(encoders), "encoder"),
        (len(tasks), "task"),
        (len(protocols), "protocol"),
        (len(seeds), "seed"),
        (len(results.records), "result"),
    )
    return [f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts]


# Leaderboard ---------------------------------------------------------------------------------------------------------


def _task(results: Results, task: str, encoders: Sequence[str], metrics: Sequence[str], metric: str) -> dict[str, Any]:
    records = [record for record in results.records if record["task"] == task]
    lines = [line for line in results.standings if line["task"] == task]
    first = records[0]
    return {
        "name": task,
        "classes": len(first.get("classes") or ()),
        "n_test": _span(record["n_test"] for record in records),
        "n_train": _span(record.get("n_train", 0) for record in records),
        "grouping": first.get("grouping", "image"),
        "n_groups": _span(record.get("n_groups", record["n_test"]) for record in records),
        "synthetic": bool(first.get("synthetic")),
        "boards": [_board(results, lines, records, encoders, name) for name in metrics],
        "findings": [_finding(entry, metric) for entry in findings(results, task, metric)],
        "comparisons": _comparisons(results, task, lines),
    }


def _span(values: Iterable[int]) -> str:
    """Write a count, or the range of counts over seeds."""
    numbers = sorted(set(values))
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,}–{numbers[-1]:,}"


def _finding(finding: Finding, metric: str) -> dict[str, Any]:
    return {
        "condition": figures.condition(finding.protocol, finding.fraction),
        "encoder": finding.best["encoder"],
        "estimate": finding.best["metrics"][metric],
        "tone": finding.tone,
        "sentence": finding.sentence,
    }


def _board(
    results: Results, lines: Sequence[Standing], records: Sequence[Record], encoders: Sequence[str], metric: str
) -> dict[str, Any]:
    axis = _axis([line["metrics"][metric] for line in lines if metric in line["metrics"]])
    mark = figures.chance(metric, len(records[0].get("classes") or ()))
    axis = Axis(axis.low, axis.high, mark if mark is not None and axis.low < mark < axis.high else None)
    place = {(line["encoder"], line["protocol"], line["fraction"]): line for line in lines}
    conditions = list(dict.fromkeys((line["protocol"], line["fraction"]) for line in lines))
    rows = []
    for protocol, fraction in conditions:
        best = best_of([line for line in lines if (line["protocol"], line["fraction"]) == (protocol, fraction)], metric)
        for encoder in encoders:
            line = place.get((encoder, protocol, fraction))
            if line is None:
                reason = _reason(results, records[0]["task"], encoder, protocol, fraction)
                rows.append({"encoder": encoder, "protocol": protocol, "fraction": fraction, "gap": reason})
            else:
                rows.append(_row(line, records, metric, axis, line is best))
    return {"metric": metric, "axis": axis, "rows": rows}


def _row(line: Standing, records: Sequence[Record], metric: str, axis: Axis, best: bool) -> dict[str, Any]:
    cells = [
        r
        for r in records
        if (r["encoder"], r["protocol"], r["fraction"]) == (line["encoder"], line["protocol"], line["fraction"])
    ]
    nothing: Estimate = {"value": None, "low": None, "high": None}
    estimate = line["metrics"].get(metric, nothing)
    return {
        "encoder": line["encoder"],
        "protocol": line["protocol"],
        "version": "/".join(str(v) for v in sorted({r.get("protocol_version", "?") for r in cells}, key=str)),
        "fraction": line["fraction"],
        "estimate": estimate,
        "place": {name: axis.place(estimate[name]) for name in ("value", "low", "high")},
        "best": best,
        "seeds": len(line["seeds"]),
        "n": _span(r["n_test"] for r in cells),
        "gap": None,
    }


def _reason(results: Results, task: str, encoder: str, protocol: str, fraction: float) -> str:
    for failure in results.failures:
        if (failure["task"], failure["encoder"], failure["protocol"]) == (task, encoder, protocol):
            return f"failed: {failure['reason']}"
    return "not run"


def _axis(estimates: Iterable[Estimate]) -> Axis:
    values = [v for e in estimates for v in (e["value"], e["low"], e["high"]) if v is not None and math.isfinite(v)]
    if not values:
        return Axis(0.0, 1.0, None)
    low = max(0.0, math.floor(min(values) * 20 - 0.25) / 20)
    high = max(low + 0.05, min(1.0, math.ceil(max(values) * 20 + 0.25) / 20))
    return Axis(low, high, None)


# Differences ---------------------------------------------------------------------------------------------------------


def _comparisons(results: Results, task: str, lines: Sequence[Standing]) -> dict[str, Any] | None:
    tests = [entry for entry in results.comparisons if entry["task"] == task]
    if not tests:
        return None
    reach = max(abs(v) for t in tests for v in (t["difference"], t["low"], t["high"]) if v is not None)
    reach = max(0.02, math.ceil(reach * 21) / 20)
    axis = Axis(-reach, reach, 0.0)
    best: dict[tuple[str, float], str] = {}
    for protocol, fraction in {(t["protocol"], t["fraction"]) for t in tests}:
        leader = best_of(
            [line for line in lines if (line["protocol"], line["fraction"]) == (protocol, fraction)], tests[0]["metric"]
        )
        if leader is not None:
            best[protocol, fraction] = leader["encoder"]
    rows = [row for test in tests for row in (_difference(test, axis, best, 1), _difference(test, axis, best, -1))]
    # Numbers of the same family in a fixed order, the largest deficit or lead first, whatever order was stored.
    rows.sort(key=lambda row: (row["protocol"], row["fraction"], -row["difference"]))
    return {"metric": METRIC_NAMES.get(tests[0]["metric"], tests[0]["metric"]), "axis": axis, "rows": rows}


def _difference(test: Comparison, axis: Axis, best: dict[tuple[str, float], str], sign: int) -> dict[str, Any]:
    names = (test["encoder"], test["reference"])
    encoder, reference = names if sign > 0 else names[::-1]
    low, high = (test["low"], test["high"]) if sign > 0 else (_negative(test["high"]), _negative(test["low"]))
    difference = sign * test["difference"]
    if test["p_holm"] < _LEVEL:
        verdict = "higher" if difference > 0 else "lower"
    else:
        verdict = "not told apart"
    return {
        "encoder": encoder,
        "reference": reference,
        "against_best": best.get((test["protocol"], test["fraction"])) == reference,
        "protocol": test["protocol"],
        "fraction": test["fraction"],
        "difference": difference,
        "low": low,
        "high": high,
        "place": {"value": axis.place(difference), "low": axis.place(low), "high": axis.place(high)},
        "p": test["p_holm"],
        "verdict": verdict,
        "groups": test["n_groups"],
        "grouping": test["grouping"],
        "seeds": len(test["seeds"]),
    }


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


# Provenance ----------------------------------------------------------------------------------------------------------


def _provenance(results: Results, encoders: Sequence[str]) -> dict[str, Any]:
    records = results.records
    libraries: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in (record.get("libraries") or {}).items():
            if version:
                libraries[name].add(str(version))
    return {
        "encoders": [_origin(name, [r for r in records if r["encoder"] == name]) for name in encoders],
        "tasks": _task_origins(records),
        "libraries": {name: ", ".join(sorted(versions)) for name, versions in sorted(libraries.items())},
        "commands": _in_order(record["command"] for record in records if record.get("command")),
        "runs": results.runs,
        "created": max((str(record.get("created", "")) for record in records), default=""),
        "seconds": sum(float(record.get("seconds") or 0.0) for record in records),
        "seeds": sorted({record["seed"] for record in records}),
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
        "specs": _in_order(str(record.get("spec", "?")) for record in records),
        "architecture": ", ".join(_in_order(str(record.get("architecture", "?")) for record in records)),
        "fingerprints": [(digest, ", ".join(seeds)) for digest, seeds in prints.items()],
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
