"""What the user sees: one console, one style of progress bar."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

__all__ = ["console", "note", "progress_bar", "warn"]

console = Console(stderr=True, highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning that does not stop the run."""
    console.print(f"[yellow]warning:[/yellow] {escape(message)}")


def note(message: str) -> None:
    """Print what the user should know, though nothing is wrong."""
    console.print(f"[dim]note:[/dim] {escape(message)}")


def progress_bar(*columns: str) -> Progress:
    """Return a progress display with the description, a bar, the count, extra text fields, elapsed and remaining time.

    Args:
        columns: Names of task fields to show as text, in order.
    """
    return Progress(
        # Cut here, not in the counts, where the line is longer than the terminal is wide.
        TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=max(16, console.width - 60))),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *(TextColumn("{task.fields[" + name + "]}") for name in columns),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=False,
    )
