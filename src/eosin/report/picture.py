"""The leaderboard as one picture, for slides and messages."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import eosin
from eosin.report.board import board_rows
from eosin.report.figures import brief, chance
from eosin.report.load import Results
from eosin.report.summary import headline_metric, higher_is_better, in_words, is_headline, metric_name
from eosin.report.view import encoders_of

__all__ = ["as_png"]

_MOST = 16
_CONDITIONS = 4
_COLORS = ("#4b3a99", "#d1477e", "#a18d2b", "#155147")
_INK, _SOFT, _LINE = "#241f2b", "#625a6d", "#e6e0ea"
_MARKS = ("o", "s", "D", "^")


def as_png(results: Results) -> bytes:
    """Draw every task's leaderboard: a value and its 95 % interval per encoder and condition, the best on top.

    At most 16 encoders and 4 conditions of a task are drawn; the picture says how many were left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = dict.fromkeys(record["task"] for record in results.records)
    metrics = {task: headline_metric(results, task) for task in known}
    rows = [
        row | {"values": {metrics[row["task"]]: row["values"][metrics[row["task"]]]}}
        for row in board_rows(results, encoders_of(results), list(dict.fromkeys(metrics.values())))
        if metrics[row["task"]] in row.get("values", {})
    ]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    shown = list(dict.fromkeys(metrics[task] for task in tasks)) or [headline_metric(results)]
    classes = {record["task"]: len(record.get("classes") or ()) for record in results.records}
    panels = [_panel([row for row in rows if row["task"] == task]) for task in tasks]
    columns = 1 if len(tasks) < 2 else 2
    lines = -(-len(tasks) // columns) or 1
    heights = [
        max((1.1 + 0.36 * len(panel[0]) for panel in panels[line * columns : (line + 1) * columns]), default=2.0)
        for line in range(lines)
    ]
    figure = Figure(figsize=(7.2 * columns, sum(heights) + 1.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False, height_ratios=heights)
    for place, axes in enumerate(grid.ravel()):
        if place < len(tasks):
            metric = metrics[tasks[place]]
            title = tasks[place] if len(shown) == 1 else f"{tasks[place]}: {metric_name(metric)}"
            _draw(axes, title, *panels[place], metric, classes[tasks[place]])
        else:
            axes.axis("off")
    arrow = "higher" if all(map(higher_is_better, shown)) else "lower"
    names = in_words([metric_name(metric) for metric in shown])
    title = f"{_plain(results.out.resolve().name or 'benchmark')} · {names} ({arrow} is better)"
    figure.suptitle(title, fontsize=16, color=_INK, fontweight="bold", x=0.01, ha="left")
    synthetic = any(record.get("synthetic") for record in results.records)
    note = "Synthetic tissue: says nothing about real slides. " if synthetic else ""
    note += (
        f"Lines: 95 % intervals over test images, patients or slides; tasks are not averaged. eosin {eosin.__version__}"
    )
    figure.supxlabel(note, fontsize=10, color="#c2366b" if synthetic else _SOFT, x=0.01, ha="left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _panel(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[tuple[str, float]], list[dict[str, Any]], int]:
    """Choose a task's encoders, best first, and conditions: those of the summary where there are any."""
    conditions = list(dict.fromkeys((row["protocol"], row["fraction"]) for row in rows))
    conditions = ([entry for entry in conditions if is_headline(*entry)] or conditions)[:_CONDITIONS]
    shown = [row for row in rows if (row["protocol"], row["fraction"]) in conditions]
    best: dict[str, float] = {}
    for row in shown:
        (metric,) = row["values"]
        value = row["values"][metric][0]
        if value is not None:
            key = value if higher_is_better(metric) else -value
            best[row["encoder"]] = max(key, best.get(row["encoder"], key))
    encoders = sorted(best, key=lambda name: -best[name])
    return encoders[:_MOST], conditions, shown, max(0, len(encoders) - _MOST)


def _draw(
    axes: Any,
    task: str,
    encoders: Sequence[str],
    conditions: Sequence[tuple[str, float]],
    rows: Sequence[dict[str, Any]],
    left_out: int,
    metric: str,
    classes: int,
) -> None:
    place = {name: number for number, name in enumerate(encoders)}
    for number, (protocol, fraction) in enumerate(conditions):
        shift = 0.0 if len(conditions) == 1 else 0.5 * (number / (len(conditions) - 1) - 0.5)
        name = brief(protocol)
        label = name if fraction == 1.0 else f"{name}, {100 * fraction:g} %"
        axes.plot([], [], _MARKS[number], color=_COLORS[number], label=_plain(label))
        for row in rows:
            value, low, high, _ = row["values"][metric]
            if (
                (row["protocol"], row["fraction"]) != (protocol, fraction)
                or value is None
                or row["encoder"] not in place
            ):
                continue
            height = place[row["encoder"]] + shift
            if low is not None:
                axes.plot([low, high], [height, height], color=_COLORS[number], lw=3, alpha=0.4, solid_capstyle="round")
            axes.plot([value], [height], _MARKS[number], color=_COLORS[number], ms=6, mec="white", mew=0.8)
    level = chance(metric, classes)
    if level is not None:
        axes.axvline(level, color=_SOFT, ls="--", lw=1)
    more = f" (best {len(encoders)} of {len(encoders) + left_out} encoders)" if left_out else ""
    axes.set_title(_plain(task) + more, loc="left", fontsize=13, color=_INK)
    axes.set_yticks(range(len(encoders)), [_plain(name, 40) for name in encoders], fontsize=11, color=_INK)
    axes.set_ylim(len(encoders) - 0.4, -0.6)
    axes.tick_params(axis="x", colors=_SOFT)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_LINE)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False, fontsize=10)


def _plain(text: str, most: int = 60) -> str:
    """Keep a name from being read as a formula, and from running over the picture."""
    shown = " ".join(str(text).split())
    return (shown if len(shown) <= most else shown[: most - 1] + "…").replace("$", r"\$")
