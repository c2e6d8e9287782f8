"""Results in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eosin.benchmark.pooling import leaderboard
from eosin.benchmark.record import Estimate, Record

__all__ = ["print_table"]

_METRICS = (("balanced_accuracy", "balanced accuracy [95 %]"), ("accuracy", "accuracy"), ("auroc", "AUROC"))


def print_table(records: Sequence[Record], console: Console, out: Path = Path()) -> None:
    """Print a line per encoder, task, protocol and fraction.

    Args:
        records: Of a benchmark.
        console: Where to print.
        out: The benchmark directory; intervals over several seeds are computed from the predictions in it.
    """
    fractions = len({record["fraction"] for record in records}) > 1
    versions = {(r["task"], r["protocol"]): r["protocol_version"] for r in records}
    sizes = {(r["task"], r["encoder"]): r["n_test"] for r in records}
    for task in dict.fromkeys(record["task"] for record in records):
        mine = [record for record in records if record["task"] == task]
        table = Table(title=escape(_title(mine[0])), title_justify="left", title_style="bold")
        table.add_column("encoder", overflow="fold")
        table.add_column("protocol")
        if fractions:
            table.add_column("labels", justify="right")
        for _, label in _METRICS:
            table.add_column(label, justify="right")
        table.add_column("± over seeds", justify="right")
        table.add_column("n", justify="right")
        for line in leaderboard(out, mine):
            metrics = line["metrics"]
            first, *others = (metrics.get(name) for name, _ in _METRICS)
            seeds = len(line["seeds"])
            spread = f"{first['sd']:.3f} ({seeds})" if first and "sd" in first else "one seed"
            table.add_row(
                escape(line["encoder"]),
                f"{line['protocol']} v{versions[task, line['protocol']]}",
                *([f"{100 * line['fraction']:g} %"] if fractions else []),
                _with_interval(first),
                *map(_value, others),
                spread,
                str(sizes[task, line["encoder"]]),
            )
        console.print(table)


def _title(record: Record) -> str:
    synthetic = ", synthetic tissue" if record["synthetic"] else ""
    return f"{record['task']}: {len(record['classes'])} classes, intervals by {record['grouping']}{synthetic}"


def _value(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate["value"] is None else f"{estimate['value']:.3f}"


def _with_interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate["low"] is None or estimate["high"] is None:
        return _value(estimate)
    # Rich reads square brackets as markup.
    return rf"{_value(estimate)} \[{estimate['low']:.3f}, {estimate['high']:.3f}]"
