"""The verb `eosin encoders`."""

from __future__ import annotations

import json
from typing import Literal

from rich.markup import escape
from rich.table import Table

from eosin.arguments import output

__all__ = ["encoders"]


def encoders(*, format: Literal["table", "json"] = "table") -> int:
    """List the public pathology encoders that are known by name: size, embedding, licence, whether access is asked for.

    Args:
        format: A table to read, or JSON with all that is known of each.
    """
    from eosin.encoders import pathology_entries

    entries = pathology_entries()
    if format == "json":
        output.out(json.dumps({f"pathology:{name}": entry.plain() for name, entry in entries.items()}, indent=2))
        return 0
    table = Table(title="Public pathology encoders: pathology:NAME", title_justify="left")
    for column, side in (("name", "left"), ("M", "right"), ("width", "right"), ("feature", "left"), ("gated", "left")):
        table.add_column(column, justify="right" if side == "right" else "left", no_wrap=True)
    table.add_column("licence")
    for name, entry in entries.items():
        gated = "yes" if entry.gated else "no"
        parameters = f"{entry.parameters:,.0f}"
        table.add_row(name, parameters, str(entry.width), entry.feature, gated, escape(entry.licence))
    output.print(table)
    return 0
