"""Cells of the stain-shift probe that differ in their seed only, taken together; and as a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eosin.evaluate.metrics import METRICS, Floats, prepare
from eosin.evaluate.paired import paired_test
from eosin.evaluate.predictions import load_predictions
from eosin.evaluate.statistics import Interval, Predicted, bootstrap_statistic

__all__ = ["print_summary", "summarize"]

Record = dict[str, Any]

LOSSES = {"accuracy_loss": "accuracy", "balanced_accuracy_loss": "balanced_accuracy"}


def summarize(out: Path, records: Sequence[Record]) -> list[Record]:
    """Average the cells of one encoder, task, protocol and shift over their seeds.

    A loss gets a paired interval that draws each test patient (slide, image) once for all seeds. The other metrics of
    several seeds have the standard deviation over the seeds, and no interval. With a second encoder, the loss is also
    compared with the first one's, on the seeds they share: `balanced_accuracy_loss_difference`.

    Args:
        out: The probe's directory.
        records: In the order in which lines shall stand.

    Returns:
        One line a group.
    """
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in ("task", "protocol", "encoder", "shift"))].append(record)
    first: dict[tuple[Any, ...], list[Record]] = {}
    lines = []
    for (task, protocol, _, shift), group in groups.items():
        group.sort(key=lambda record: record["seed"])
        reference = first.setdefault((task, protocol, shift), group)
        lines.append(_pooled(out, group, None if reference is group else reference))
    return lines


def _pooled(out: Path, group: Sequence[Record], reference: Sequence[Record] | None) -> Record:
    one = group[0]
    metrics: dict[str, Any] = dict(one["metrics"])
    if len(group) > 1:
        metrics = {name: _mean([record["metrics"][name]["value"] for record in group]) for name in metrics}
        before, after = [_unshifted(out, record) for record in group], [load_predictions(out, r) for r in group]
        for name, metric in LOSSES.items():
            loss = paired_test(before, after, metric)
            metrics[name] |= {"low": loss.low, "high": loss.high, "p": loss.p}
            metrics[name].pop("reason", None)
    if reference is not None:
        metrics["balanced_accuracy_loss_difference"] = _difference(out, group, reference)
    return {
        **{name: one[name] for name in ("encoder", "task", "grouping", "synthetic", "protocol", "protocol_version")},
        **{name: one[name] for name in ("shift", "shift_version", "shift_about", "probe", "probe_version", "n_test")},
        "seeds": [record["seed"] for record in group],
        "against": None if reference is None else reference[0]["encoder"],
        "metrics": metrics,
        "cells": [record["key"] for record in group],
    }


def _unshifted(out: Path, record: Record) -> Predicted:
    return load_predictions(out, record | {"predictions": record["unshifted"]})


def _mean(values: Sequence[float | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    if not defined:
        return {"value": None, "low": None, "high": None, "reason": "undefined under every seed"}
    spread = {"sd": float(np.std(defined, ddof=1))} if len(defined) > 1 else {}
    reason = "no interval: a mean over seeds"
    return {"value": float(np.mean(defined)), "low": None, "high": None, "reason": reason, **spread}


def _difference(out: Path, group: Sequence[Record], reference: Sequence[Record]) -> Interval:
    """Loss of an encoder minus that of another, of balanced accuracy, with a paired interval."""
    others = {(record["seed"], record["task_hash"]): record for record in reference}
    parts = []
    for record in group:
        other = others.get((record["seed"], record["task_hash"]))
        if other is None:
            continue
        four = [_unshifted(out, record), load_predictions(out, record), _unshifted(out, other)]
        four.append(load_predictions(out, other))
        names = [np.asarray(entry.names).astype(str) for entry in four]
        if any(not np.array_equal(names[0], others_names) for others_names in names[1:]):
            continue
        scored = [prepare(entry.truth, entry.probabilities) for entry in four]

        def difference(weights: Floats, scored: Any = scored) -> Floats:
            before, after, other_before, other_after = (
                METRICS["balanced_accuracy"].compute(entry, weights) for entry in scored
            )
            return np.asarray((before - after) - (other_before - other_after))

        parts.append((names[0] if four[0].groups is None else four[0].groups, difference))
    if not parts:
        return {"value": None, "low": None, "high": None, "reason": "no seed with the same test images in common"}
    return bootstrap_statistic(parts)


def print_summary(summary: Sequence[Record], console: Console) -> None:
    """Print a line per encoder and shift, a table per task and protocol."""
    for task, protocol in dict.fromkeys((line["task"], line["protocol"]) for line in summary):
        mine = [line for line in summary if (line["task"], line["protocol"]) == (task, protocol)]
        one = mine[0]
        tissue = ", synthetic tissue" if one["synthetic"] else ""
        seeds = len({seed for line in mine for seed in line["seeds"]})
        title = (
            f"{task} ({one['n_test']} test tiles{tissue}), {protocol} v{one['protocol_version']}, {one['probe']}"
            f" v{one['probe_version']}, {'one seed' if seeds == 1 else f'mean of {seeds} seeds'}, intervals by"
            f" {one['grouping']}"
        )
        table = Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        table.show_edge = table.pad_edge = False
        table.collapse_padding = True
        # Of 80 characters 28 remain for the names beside the numbers; a long path of a template is folded.
        longest = min(max(len(line["shift"]) for line in mine), 20)
        table.add_column("encoder", overflow="fold", max_width=max(8, console.width - 52 - longest))
        table.add_column("shift", overflow="fold", min_width=longest)
        table.add_column("balanced accuracy", justify="right", min_width=8, max_width=8)
        table.add_column("loss [95 %]", justify="right", no_wrap=True)
        for name in ("moved", "itself"):
            table.add_column(name, justify="right", no_wrap=True)
        for line in mine:
            metrics = line["metrics"]
            table.add_row(
                escape(line["encoder"]),
                escape(line["shift"]),
                _value(metrics["balanced_accuracy"]),
                _with_interval(metrics["balanced_accuracy_loss"]),
                _value(metrics["movement"]),
                _value(metrics["recognized"]),
            )
        console.print(table)


def _value(estimate: dict[str, Any]) -> str:
    return "–" if estimate["value"] is None else f"{estimate['value']:.3f}"


def _with_interval(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None or estimate["high"] is None:
        return _value(estimate)
    # Rich reads square brackets as markup.
    return rf"{_value(estimate)} \[{estimate['low']:.3f}, {estimate['high']:.3f}]"
