"""Cells that differ in their seed only, taken together: the leaderboard's lines and the paired tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.benchmark.nuclei_scores import per_image, pooled_intervals
from eosin.benchmark.reading import read_leaderboard
from eosin.benchmark.record import (
    Comparison,
    Estimate,
    Record,
    Standing,
    condition,
    is_nuclei,
    of_newest_version,
    version_of,
)
from eosin.core.console import warn
from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.evaluate.paired import holm, paired_test
from eosin.evaluate.paired_means import paired_means_test
from eosin.evaluate.predictions import load_predictions
from eosin.evaluate.statistics import Measured, spread

__all__ = ["compare", "leaderboard", "pool"]

_RESAMPLES = 1000

Cell = tuple[str, str, str, float]
"""Encoder, task, protocol, fraction."""


def leaderboard(out: Path, records: Sequence[Record]) -> list[Standing]:
    """Return the leaderboard's lines, taking those whose cells are unchanged from OUT/leaderboard.jsonl.

    Args:
        out: The benchmark directory.
        records: All records, in the order in which lines shall stand.

    Returns:
        One line per encoder, task, protocol and fraction, of the newest version of the protocol that it has.
    """
    known = {tuple(line["cells"]): line for line in _earlier_lines(out)}
    lines = []
    for cell, group in _by_cell(records).items():
        group.sort(key=lambda record: record["seed"])
        stored = known.get(tuple(str(record.get("key", "")) for record in group))
        if stored is not None and (stored["encoder"], stored["task"], stored["protocol"], stored["fraction"]) == cell:
            lines.append(stored)
        else:
            lines.append(pool(out, group))
    return lines


def _earlier_lines(out: Path) -> list[Standing]:
    """Lines of an earlier call; those that are damaged are made again."""
    try:
        return read_leaderboard(out)
    except EosinError:
        return []


def _by_cell(records: Sequence[Record]) -> dict[Cell, list[Record]]:
    cells: dict[Cell, list[Record]] = defaultdict(list)
    for record in of_newest_version(records):
        cells[condition(record)].append(record)
    return cells


def pool(out: Path, records: Sequence[Record]) -> Standing:
    """Average cells over their seeds.

    The interval is over test images (or patients, or slides): each resample draws them once for all seeds and
    averages the seeds' values, so one image met in three seeds counts as one image, not three. It does not cover the
    spread from seed to seed; that is given beside it as a standard deviation.

    Args:
        out: The benchmark directory.
        records: Cells of one encoder, task, protocol and fraction, one per seed.
    """
    first = records[0]
    metrics: dict[str, Estimate] = dict(first["metrics"])
    if len(records) > 1:
        intervals = _pooled_intervals(out, records)
        for name in metrics:
            values = [r["metrics"][name]["value"] for r in records if name in r["metrics"]]
            defined = [value for value in values if value is not None]
            low, high = intervals.get(name, (None, None))
            entry: Estimate = {"value": float(np.mean(defined)) if defined else None, "low": low, "high": high}
            if len(defined) > 1:
                entry["sd"] = float(np.std(defined, ddof=1))
            if not defined and "reason" in first["metrics"][name]:
                entry["reason"] = first["metrics"][name]["reason"]
            metrics[name] = entry
    return {
        "encoder": first["encoder"],
        "task": first["task"],
        "protocol": first["protocol"],
        "fraction": float(first["fraction"]),
        "seeds": [record["seed"] for record in records],
        "metrics": metrics,
        "cells": [str(record.get("key", "")) for record in records],
    }


def _pooled_intervals(out: Path, records: Sequence[Record]) -> dict[str, tuple[float | None, float | None]]:
    try:
        if is_nuclei(records[0]):
            return pooled_intervals(out, records)
        seeds = [load_predictions(out, record) for record in records]
    except EosinError as error:
        warn(f"no interval over the seeds of {records[0]['encoder']}: {error}")
        return {}
    measured = [Measured(seed) for seed in seeds]
    labels = [np.asarray(s.names if s.groups is None else s.groups).astype(str) for s in seeds]
    unique, units = np.unique(np.concatenate(labels), return_inverse=True)
    if len(unique) < 2:
        return {}
    rows = np.split(units.astype(np.int64), np.cumsum([len(part) for part in labels])[:-1])
    draws: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
    for weights in _weight_blocks(len(unique), sum(map(len, rows))):
        for name, values in _mean_over_seeds(measured, rows, weights).items():
            draws[name].append(values)
    return {name: _percentiles(np.concatenate(blocks)) for name, blocks in draws.items()}


def _weight_blocks(units: int, images: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield blocks [r, units] of how often each unit was drawn, some 4 MiB of image weights each."""
    generator = np.random.default_rng(stream_seed(0, "pooled bootstrap"))
    block = max(1, (1 << 19) // max(units, images))
    for start in range(0, _RESAMPLES, block):
        size = min(block, _RESAMPLES - start)
        yield generator.multinomial(units, np.full(units, 1.0 / units), size=size).astype(np.float64)


def _mean_over_seeds(
    measured: list[Measured], rows: list[npt.NDArray[np.int64]], weights: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float64]]:
    """Average what every seed was measured for, such as a change's cost, which a seed may lack."""
    values = [seed(spread(weights, row)) for seed, row in zip(measured, rows, strict=True)]
    common = [name for name in values[0] if all(name in others for others in values)]
    return {name: np.asarray(np.mean([seed[name] for seed in values], axis=0)) for name in common}


def _percentiles(values: npt.NDArray[np.float64]) -> tuple[float | None, float | None]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def compare(out: Path, records: Sequence[Record], metric: str, known: Sequence[Comparison]) -> list[Comparison]:
    """Test every pair of encoders on the test images they share, per task, protocol and fraction.

    All pairs are tested, rather than each against the best, because the best is itself picked on these images; Holm's
    correction then covers every pair of a task, protocol and fraction.

    Args:
        out: The benchmark directory.
        records: All records.
        metric: Name of the metric to compare.
        known: Earlier comparisons; those of unchanged cells are taken over.

    Returns:
        Comparisons of the encoders with at least one seed in common, the same split in it, and the same version of the
        protocol.
    """
    stored = {(c["metric"], *c["cells"]): c for c in known if c.keys() >= Comparison.__annotations__.keys()}
    cells = _by_cell(records)
    found: list[Comparison] = []
    faults: set[str] = set()
    for family in _families(cells).values():
        pairs = combinations(family, 2)
        tests = [t for a, b in pairs if (t := _compare_pair(out, cells[a], cells[b], metric, stored, faults))]
        for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
            test["p_holm"] = float(p)
        found.extend(tests)
    for fault in sorted(faults):
        warn(f"encoders were not compared: {fault}")
    return found


def _families(cells: dict[Cell, list[Record]]) -> dict[tuple[str, str, float], list[Cell]]:
    families: dict[tuple[str, str, float], list[Cell]] = defaultdict(list)
    for cell in cells:
        families[cell[1:]].append(cell)
    return families


def _compare_pair(
    out: Path,
    first: list[Record],
    second: list[Record],
    metric: str,
    stored: dict[Any, Comparison],
    faults: set[str],
) -> Comparison | None:
    """Test a pair; what cannot be read is added to `faults`."""
    others = {record["seed"]: record for record in second}
    pairs = [
        (record, others[record["seed"]])
        for record in sorted(first, key=lambda record: record["seed"])
        if record["seed"] in others and others[record["seed"]]["task_hash"] == record["task_hash"]
    ]
    if not pairs or version_of(first[0]) != version_of(second[0]):
        return None
    cells = [record["key"] for pair in pairs for record in pair]
    if (metric, *cells) in stored:
        return stored[metric, *cells].copy()
    one, two = pairs[0]
    try:
        ours, theirs = ([_answers(out, record, metric) for record in side] for side in zip(*pairs, strict=True))
    except EosinError as error:
        faults.add(str(error))
        return None
    try:
        test = (paired_means_test if is_nuclei(one) else paired_test)(ours, theirs, metric)
    except EosinError:
        # Undefined (one class), or quarantined tiles differ: the pair has no test, and the page says so.
        return None
    return {
        "task": one["task"],
        "protocol": one["protocol"],
        "fraction": float(one["fraction"]),
        "metric": metric,
        "encoder": one["encoder"],
        "reference": two["encoder"],
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "p_holm": test.p,
        "seeds": [record["seed"] for record, _ in pairs],
        "n_groups": test.groups,
        "grouping": one["grouping"],
        "cells": cells,
    }


def _answers(out: Path, record: Record, metric: str) -> Any:
    return per_image(out, record, metric) if is_nuclei(record) else load_predictions(out, record)
