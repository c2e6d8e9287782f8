"""Results in the terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eosin.benchmark.pooling import leaderboard
from eosin.benchmark.record import LEADERBOARD, Estimate, Record, Standing, is_nuclei

__all__ = ["print_table"]

_METRICS = (("balanced_accuracy", "balanced accuracy [95 %]"), ("accuracy", "accuracy"), ("auroc", "AUROC"))
_NUCLEI_METRICS = (("pq", "PQ [95 %]"), ("aji", "AJI"), ("dice", "Dice"))

_LONGEST = 28
"""Characters of a protocol's name that is printed with its settings."""
_VARIANTS = 3
"""Variants of a protocol that are printed; of more, only their number."""


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
    names = _brief(list(dict.fromkeys(record["protocol"] for record in records)))
    printed: dict[str, None] = {}
    for task in dict.fromkeys(record["task"] for record in records):
        mine = [record for record in records if record["task"] == task]
        metrics_shown = _NUCLEI_METRICS if is_nuclei(mine[0]) else _METRICS
        several = len({record["seed"] for record in mine}) > 1
        title = escape(_title(mine[0])) + ("" if several else ", one seed")
        # Without lines between the columns, and with long names folded, a row fits into 80 characters.
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        table.show_edge = table.pad_edge = False
        table.collapse_padding = True
        taken = 57 + (11 if several else 0) + (8 if fractions else 0)
        table.add_column("encoder", overflow="fold", max_width=max(8, console.width - taken))
        table.add_column("protocol", overflow="fold")
        if fractions:
            table.add_column("labels", justify="right")
        for name, label in metrics_shown:
            width = len("0.000 [0.000, 0.000]") if name == metrics_shown[0][0] else 5
            table.add_column(label, justify="right", min_width=width)
        if several:
            table.add_column("± (seeds)", justify="right", min_width=len("0.000 (3)"))
        table.add_column("n", justify="right")
        lines = leaderboard(out, mine)
        folded = _folded(lines)
        for line in lines:
            if line["protocol"].partition(":")[0] in folded:
                continue
            printed[line["protocol"]] = None
            metrics = line["metrics"]
            first, *others = (metrics.get(name) for name, _ in metrics_shown)
            seeds = len(line["seeds"])
            spread = f"{first['sd']:.3f} ({seeds})" if first and "sd" in first else "one seed"
            table.add_row(
                escape(line["encoder"]),
                escape(f"{names[line['protocol']]} v{versions[task, line['protocol']]}"),
                *([f"{100 * line['fraction']:g} %"] if fractions else []),
                _with_interval(first),
                *map(_value, others),
                *([spread] if several else []),
                str(sizes[task, line["encoder"]]),
            )
        if table.row_count:
            console.print(table)
        for family, count in folded.items():
            name = mine[0]["task"]
            console.print(
                f"{name}: {count} results of {family} in {out / LEADERBOARD}; the page shows them", markup=False
            )
    for protocol in printed:
        name = names[protocol]
        if name != protocol:
            settings = protocol.partition("?")[2].replace("&", ", ")
            console.print(f"{name}: {settings}", markup=False, highlight=False, soft_wrap=True)


def _brief(protocols: Sequence[str]) -> dict[str, str]:
    """Leave out long settings, which would fold a row over many lines; names that would be the same are numbered."""
    families: dict[str, list[str]] = defaultdict(list)
    for protocol in protocols:
        families[protocol.partition("?")[0]].append(protocol)
    return {
        protocol: protocol if len(protocol) <= _LONGEST else f"{family}?…{number if len(members) > 1 else ''}"
        for family, members in families.items()
        for number, protocol in enumerate(members, start=1)
    }


def _folded(lines: Sequence[Standing]) -> dict[str, int]:
    """Count the results of protocols with so many variants that a terminal is no place for them."""
    variants: dict[str, set[str]] = defaultdict(set)
    counts: dict[str, int] = defaultdict(int)
    for line in lines:
        family, separator, variant = line["protocol"].partition(":")
        if separator:
            variants[family].add(variant)
            counts[family] += 1
    return {family: counts[family] for family, found in variants.items() if len(found) > _VARIANTS}


def _title(record: Record) -> str:
    synthetic = ", synthetic tissue" if record["synthetic"] else ""
    count = len(record["classes"])
    what = (f"nuclei of {count} types" if count else "nuclei") if is_nuclei(record) else f"{count} classes"
    return f"{record['task']}: {what}, intervals by {record['grouping']}{synthetic}"


def _value(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate["value"] is None else f"{estimate['value']:.3f}"


def _with_interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate["low"] is None or estimate["high"] is None:
        return _value(estimate)
    # Rich reads square brackets as markup.
    return rf"{_value(estimate)} \[{estimate['low']:.3f}, {estimate['high']:.3f}]"
