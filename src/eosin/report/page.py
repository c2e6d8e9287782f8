"""The report: one HTML file that opens from disk, offline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from plotly.offline import get_plotlyjs

import eosin
from eosin.core.files import atomic_file
from eosin.report.load import load_results
from eosin.report.view import build_view

__all__ = ["write_report"]


def write_report(out: Path) -> Path:
    """Write OUT/report.html from the files of a benchmark directory; no model is run.

    Args:
        out: The directory given to `eosin benchmark --out`.

    Returns:
        Path of the page.

    Raises:
        EosinError: If results.jsonl is missing, empty or damaged, or the page cannot be written.
    """
    view = build_view(load_results(out))
    templates = Environment(
        loader=PackageLoader("eosin.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"value": _value, "signed": _signed, "p": _p_value, "duration": _duration}
    page = templates.get_template("page.html.j2").render(**view, plotly=get_plotlyjs(), version=eosin.__version__)
    path = out / "report.html"
    with atomic_file(path, "w") as file:
        file.write(page)
    return path


def _value(number: Any, digits: int = 3) -> str:
    """Write a metric; a dash where there is none."""
    if number is None or not math.isfinite(number):
        return "–"
    return f"{number:.{digits}f}"


def _signed(number: float | None, digits: int = 3) -> str:
    """Write a difference with its sign, the minus as wide as the plus."""
    return "–" if number is None else f"{number:+.{digits}f}".replace("-", "−")


def _p_value(number: float) -> str:
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
