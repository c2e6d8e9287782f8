"""The report: one HTML file that opens from disk, offline; or its numbers as Markdown, CSV, JSON or a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

import eosin
from eosin.core.errors import EosinError, nearest
from eosin.core.files import atomic_file, output_file
from eosin.report.exports import as_csv, as_json, as_markdown
from eosin.report.figures import brief
from eosin.report.load import Results, load_results
from eosin.report.picture import as_png
from eosin.report.view import build_view

__all__ = ["FORMATS", "Format", "write_report"]


FORMATS = ("html", "md", "csv", "json", "png")

Format = Literal["html", "md", "csv", "json", "png"]


def write_report(out: Path, path: Path | None = None, format: Format = "html") -> Path:
    """Write a report from the files of a benchmark directory; no model is run.

    Args:
        out: The directory given to `eosin benchmark --out`.
        path: The file to write; OUT/report.FORMAT by default.
        format: "html" is the page, one file that opens offline; "md" the leaderboards as tables; "csv" a line per
            line of the leaderboard and metric; "json" every number of the page; "png" a picture of the leaderboards.

    Returns:
        Path of the file.

    Raises:
        EosinError: If results.jsonl is missing, empty or damaged, or the file cannot be written.
    """
    if format not in FORMATS:
        raise EosinError(f"format '{format}': {nearest(format, FORMATS)}")
    results = load_results(out)
    if format == "png":
        content = as_png(results)
    else:
        text = {"html": _page, "md": as_markdown, "csv": as_csv, "json": as_json}[format](results)
        content = text.encode("utf-8", errors="replace")
    if path is None:
        path = out / f"report.{format}"
    else:
        output_file(path, f".{format}", f"report.{format}")
    with atomic_file(path) as file:
        file.write(content)
    return path


def _page(results: Results) -> str:
    templates = Environment(
        loader=PackageLoader("eosin.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"value": _value, "duration": _duration}
    view = build_view(results)
    templates.globals["brief"] = brief
    return templates.get_template("page.html.j2").render(**view, plotly=get_plotlyjs(), version=eosin.__version__)


def _value(number: Any, digits: int = 3) -> str:
    """Write a metric; a dash where there is none."""
    if number is None or not math.isfinite(number):
        return "–"
    return f"{number:.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
