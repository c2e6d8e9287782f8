"""The leaderboard's lines: measured, missing and published, as plain objects for every format of the report."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from eosin.benchmark.record import Estimate, Record, Standing
from eosin.report.load import Results
from eosin.report.published import official_set, published_for
from eosin.report.summary import best_of

__all__ = ["board_rows", "in_order", "published_rows", "rounded", "span"]

Condition = tuple[str, str, float]
"""Task, protocol, fraction."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return each name once, in the order of first appearance."""
    return list(dict.fromkeys(names))


def span(values: Iterable[int]) -> str:
    """Write a count, or the range of counts over seeds."""
    numbers = sorted(set(values))
    return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,}–{numbers[-1]:,}"


def rounded(value: Any, digits: int = 6) -> float | None:
    """Keep so many significant digits; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def board_rows(results: Results, encoders: Sequence[str], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per task, protocol, share of labels and encoder, in this order, with a reason where there is none.

    Args:
        results: Of a benchmark directory.
        encoders: Those to show, in their order.
        metrics: Those to show.

    Returns:
        Rows with `task`, `encoder`, `protocol`, `fraction`; then either `gap` (the reason) or `values` (metric to
        value, low, high, and standard deviation over seeds, each None where there is none), `why` (metric to the
        reason for a None), `best` (the metrics in which it leads its condition), `version`, `seeds` and `n`.
    """
    lines: dict[Condition, dict[str, Standing]] = defaultdict(dict)
    for line in results.standings:
        lines[line["task"], line["protocol"], line["fraction"]][line["encoder"]] = line
    cells: dict[tuple[str, Condition], list[Record]] = defaultdict(list)
    for record in results.records:
        cells[record["encoder"], (record["task"], record["protocol"], float(record["fraction"]))].append(record)
    reasons: dict[tuple[str, Condition], str] = {}
    for failure in results.failures:
        failed = (failure["task"], failure["protocol"], float(failure["fraction"]))
        reasons.setdefault((failure["encoder"], failed), f"failed: {failure['reason']}")
    rows: list[dict[str, Any]] = []
    for condition in sorted(lines, key=_order(lines)):
        task, protocol, fraction = condition
        group = lines[condition]
        best = {metric: best_of(group.values(), metric) for metric in metrics}
        for encoder in encoders:
            place = {"task": task, "encoder": encoder, "protocol": protocol, "fraction": fraction}
            if encoder not in group:
                rows.append(place | {"gap": reasons.get((encoder, condition), "not run")})
            else:
                leads = [metric for metric in metrics if best[metric] is group[encoder]]
                rows.append(place | _row(group[encoder], cells[encoder, condition], metrics) | {"best": leads})
    return rows


def _order(lines: Iterable[Condition]) -> Any:
    """Tasks, in them protocols, in the order of the records; of a protocol the largest share of labels first."""
    conditions = list(lines)
    tasks = in_order(task for task, _, _ in conditions)
    protocols = in_order(protocol for _, protocol, _ in conditions)
    return lambda condition: (tasks.index(condition[0]), protocols.index(condition[1]), -condition[2])


def _row(line: Standing, cells: Sequence[Record], metrics: Sequence[str]) -> dict[str, Any]:
    shown = {name: line["metrics"][name] for name in metrics if name in line["metrics"]}
    return {
        "values": {name: _numbers(estimate) for name, estimate in shown.items()},
        "why": {name: estimate["reason"] for name, estimate in shown.items() if estimate.get("reason")},
        "version": "/".join(str(v) for v in sorted({r.get("protocol_version", "?") for r in cells}, key=str)),
        "seeds": len(line["seeds"]),
        "n": span(record["n_test"] for record in cells),
    }


def _numbers(estimate: Estimate) -> list[float | None]:
    return [rounded(estimate.get(name)) for name in ("value", "low", "high", "sd")]


def published_rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the published figures of tasks: `task`, `encoder`, `value`, `metric`, `protocol`, `source`, `url`, `date`.

    A figure without a value is "not available".

    Args:
        records: Ours; those on official data sets have figures to stand beside.
    """
    sets = {record["task"]: official_set(str(record.get("task_spec", ""))) for record in records}
    return [
        {"task": task, "encoder": entry.encoder, "value": entry.value}
        | {field: getattr(entry.source, field) for field in ("metric", "protocol", "source", "url", "date", "note")}
        for task, name in sets.items()
        for entry in published_for(name)
    ]
