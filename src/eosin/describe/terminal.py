"""A description for the terminal, down to 80 columns."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eosin.describe.facts import Section, sections
from eosin.describe.findings import findings
from eosin.describe.run import Description

__all__ = ["print_description"]


def print_description(description: Description, console: Console) -> None:
    """Print the tables, and what to know before using the tiles.

    Args:
        description: What `describe` returned.
        console: Where to print.
    """
    console.print(f"[bold]{escape(description.spec)}[/bold]", soft_wrap=True)
    for section in sections(description):
        console.print()
        console.print(_table(section))
        if section.note:
            console.print(f"[dim]{escape(section.note)}[/dim]", soft_wrap=False)
    found = findings(description)
    if found:
        console.print("\n[bold]Before you use them[/bold]")
        lines = Table.grid(padding=(0, 1))
        for finding in found:
            mark, style = ("✗", "red") if finding.tone == "wrong" else ("!", "yellow")
            lines.add_row(f"[{style}]{mark}[/{style}]", escape(finding.text))
        console.print(lines, soft_wrap=False)


def _table(section: Section) -> Table:
    table = Table(
        title=section.title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    table.show_header = bool(section.head)
    head = section.head or ("",) * max((len(row) for row in section.rows), default=0)
    for place, heading in enumerate(head):
        # Words are set to the left and may break; numbers are set to the right and may not.
        words = place == 0 or not section.head or heading == "that is"
        narrowest = min(10, max((len(row[0]) for row in section.rows), default=0)) if place == 0 else None
        table.add_column(
            heading,
            justify="left" if words else "right",
            overflow="fold",
            header_style="dim",
            min_width=narrowest,
        )
    for row in section.rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
