"""The report's numbers for other programs: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any

from eosin.report.board import board_rows
from eosin.report.load import Results
from eosin.report.summary import headline_metric, higher_is_better, in_words, metric_name
from eosin.report.view import build_view, encoders_of, metrics_of

__all__ = ["as_csv", "as_json", "as_markdown"]

CSV_COLUMNS = (
    "task", "encoder", "protocol", "protocol_version", "fraction", "metric", "higher_is_better",
    "value", "low", "high", "sd", "seeds", "n_test", "reason",
)  # fmt: skip

# Spreadsheets run a cell that starts so as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(results: Results) -> str:
    """Write one line per line of the leaderboard and metric; a cell without a result has one line with its reason.

    A name that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    metrics = metrics_of(results, headline_metric(results))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in board_rows(results, encoders_of(results), metrics):
        place = {name: _cell(row[name]) for name in ("task", "encoder", "protocol")} | {"fraction": row["fraction"]}
        if "gap" in row:
            writer.writerow(place | {"reason": _cell(row["gap"])})
            continue
        for metric, (value, low, high, sd) in row["values"].items():
            numbers = {"value": value, "low": low, "high": high, "sd": sd}
            about = {"protocol_version": row["version"], "seeds": row["seeds"], "n_test": row["n"].replace(",", "")}
            direction = {"metric": _cell(metric), "higher_is_better": str(higher_is_better(metric)).lower()}
            reason = {"reason": _cell(row["why"].get(metric, ""))}
            writer.writerow(
                place | direction | about | reason | {k: "" if v is None else v for k, v in numbers.items()}
            )
    return stream.getvalue()


def _cell(text: Any) -> str:
    shown = str(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def as_json(results: Results) -> str:
    """Write everything the page shows, but for pictures and scripts, as one object."""
    view = build_view(results)
    for tiles in view["data"]["embedding"]["tiles"].values():
        del tiles["sprite"], tiles["thumbnail"]
    view["data"]["nuclei"] = _without_pictures(view["data"]["nuclei"])
    view["metrics"] = dict(view["metrics"])
    del view["metric_groups"]
    # The curves of runs stand in data.training.
    view["provenance"]["runs"] = [
        {"path": run.path, "encoder": run.encoder, "seed": run.seed, "config": run.config}
        for run in view["provenance"]["runs"]
    ]
    view.pop("color")
    return json.dumps(view, ensure_ascii=False, allow_nan=False, indent=1, default=str) + "\n"


def _without_pictures(nuclei: dict[str, Any]) -> dict[str, Any]:
    """Leave images with their numbers, without pixels and outlines."""
    drawn = ("picture", "truth", "missed", "found", "false")
    galleries = [
        gallery | {"images": [{k: v for k, v in image.items() if k not in drawn} for image in gallery["images"]]}
        for gallery in nuclei["galleries"]
    ]
    return {name: value for name, value in nuclei.items() if name != "pictures"} | {"galleries": galleries}


def as_markdown(results: Results) -> str:
    """Write the leaderboards as Markdown tables, highest first within a condition, with what to read with care."""
    view = build_view(results)
    data = view["data"]
    parts = [f"# {_inline(view['title'])}", " · ".join(view["facts"])]
    if view["synthetic"]:
        names = ", ".join(_inline(name) for name in view["synthetic"])
        parts.append(
            f"**Synthetic tissue** ({names}): these numbers show that the pipeline works, nothing about encoders."
        )
    if view["overview"]:
        parts.append(_inline(view["overview"]))
    for task in view["tasks"]:
        rows = [row for row in data["rows"] if row["task"] == task["name"]]
        about = f"{task['n_train']} training and {task['n_test']} test images; intervals resample {task['grouping']}s"
        parts += [
            f"## {_inline(task['name'])}",
            about,
            _table(rows, task["metric"], [name for name, _ in view["metrics"]]),
        ]
        if published := [row for row in data["published"] if row["task"] == task["name"]]:
            parts += ["Published by others, not measured here and not ranked:", _published(published)]
    if view["caveats"]:
        parts += ["## Read with care", "\n".join(f"* {_inline(sentence)}" for sentence in view["caveats"])]
    leading = in_words(list(dict.fromkeys(metric_name(task["metric"]) for task in view["tasks"])))
    parts.append(f"{leading} with its 95 % interval; ± is the standard deviation over seeds.")
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[dict[str, Any]], metric: str, metrics: Sequence[str]) -> str:
    # Of single types, which are many, the CSV holds the values.
    present = [name for name in metrics if ":" not in name and any(name in row.get("values", {}) for row in rows)]
    present.sort(key=lambda name: name != metric)
    names = [f"{metric_name(name)} {'↑' if higher_is_better(name) else '↓'}" for name in present]
    places = {condition: number for number, condition in enumerate(dict.fromkeys(row["condition"] for row in rows))}
    lines = [["Encoder", "Protocol", *names], ["---", "---", *["---:"] * len(names)]]
    for row in sorted(rows, key=lambda row: (places[row["condition"]], _key(row, metric))):
        if "gap" in row:
            shown = [f"no result ({_inline(row['gap'])})", *[""] * (len(present) - 1)]
        else:
            shown = [_estimate(row["values"].get(name), name == metric) for name in present]
        lines.append([_inline(row["encoder"]), _inline(row["condition"]), *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _key(row: dict[str, Any], metric: str) -> tuple[bool, float]:
    value = row.get("values", {}).get(metric, [None])[0]
    return (True, 0.0) if value is None else (False, -value if higher_is_better(metric) else value)


def _estimate(numbers: Sequence[float | None] | None, full: bool) -> str:
    if numbers is None or numbers[0] is None:
        return "–"
    value, low, high, sd = numbers
    text = f"{value:.3f}"
    if full and low is not None:
        text = f"**{text}** [{low:.3f}, {high:.3f}]"
    return f"{text} ± {sd:.3f}" if full and sd is not None else text


def _published(rows: Sequence[dict[str, Any]]) -> str:
    lines = [["Encoder", "Metric", "Value", "Protocol", "Source"], ["---", "---", "---:", "---", "---"]]
    for row in rows:
        value = "not available" if row["value"] is None else f"{row['value']:.3f}"
        source = f"{_inline(row['source'])}, {row['date']}"
        lines.append([_inline(row["encoder"]), metric_name(row["metric"]), value, row["protocol"], source])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _inline(text: str) -> str:
    """Escape what Markdown, or HTML inside of it, would act on."""
    shown = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]~])", r"\\\1", shown)
