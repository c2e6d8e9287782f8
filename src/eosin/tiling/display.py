"""What a tiling shows while it runs and when it has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eosin.core.console import console
from eosin.tiling.jobs import SlideJob

__all__ = ["TilingProgress", "slide_table"]

# More rows than this scroll away unread.
_ROWS = 40
# Columns of a terminal on which the whole line has room.
_WIDE = 80


class TilingProgress:
    """A live line: slides, tiles, tiles/s, GB written, time left by the share of the slides' bytes.

    Args:
        missing: The slides to cut.
        kept: Slides that are done already.
    """

    def __init__(self, missing: Sequence[SlideJob], kept: int) -> None:
        self.slides = 0
        self.damaged = 0
        self._kept = kept
        self._total = len(missing)
        self._failed = 0
        self._tiles = 0
        self._bytes = 0
        self._started = time.monotonic()
        self._weight = {job.key: _bytes(job) for job in missing}
        self._left: dict[str, float] = dict(self._weight)
        # Where the line has no room, the slides and the time left matter most.
        bar = [BarColumn(bar_width=12)] if console.width >= _WIDE else []
        self._progress = Progress(
            *bar, TextColumn("{task.fields[told]}"), TimeRemainingColumn(), TextColumn("left"), console=console
        )
        self._task = self._progress.add_task("tiling", total=sum(self._weight.values()), told="")

    def __enter__(self) -> TilingProgress:
        self._update()
        if self._total:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._total:
            self._progress.stop()

    def advance(self, job: SlideJob, share: float, tiles: int, size: int) -> None:
        """Count a share of a slide, its tiles and their bytes."""
        self._tiles += tiles
        self._bytes += size
        self._weigh(job.key, share * self._weight.get(job.key, 0))
        self._update()

    def ended(self, record: dict[str, Any]) -> None:
        """Count a slide, and say so above the line if it has no tile, or lacks some."""
        self.slides += 1
        # Of a slide without tiles nothing was counted.
        self._weigh(record["key"], self._left.get(record["key"], 0))
        damaged = record.get("damaged", [])
        if damaged:
            self.damaged += len(damaged)
            told = f"{len(damaged):,} of {len(damaged) + record['tiles']:,} tiles are unreadable (first {damaged[0]})"
            console.print(f"[yellow]{escape(record['slide'])}[/yellow]: {escape(told)}")
        if not record["tiles"]:
            self._failed += 1
            console.print(f"[yellow]{escape(record['slide'])}[/yellow]: {escape(record['reason'])}")
        self._update()

    def _weigh(self, key: str, weight: float) -> None:
        self._left[key] = self._left.get(key, 0) - weight
        self._progress.advance(self._task, weight)

    def _update(self) -> None:
        rate = self._tiles / max(1e-9, time.monotonic() - self._started)
        wide = console.width >= _WIDE
        told = f"{self.slides:,}/{self._total:,} slides"
        if self._failed and wide:
            told += f" ({self._failed:,} without tiles)"
        told += f"  {self._tiles:,} tiles  {rate:,.0f}/s"
        if wide:
            told += f"  {self._bytes / 1e9:.2f} GB"
        self._progress.update(self._task, told=told)


def _bytes(job: SlideJob) -> int:
    try:
        return max(1, job.path.stat().st_size)
    except OSError:
        return 1


def slide_table(records: Sequence[dict[str, Any]]) -> Table:
    """Return a table of slides: all of a few, else those without a tile."""
    few = len(records) <= _ROWS
    shown = list(records) if few else [record for record in records if not record["tiles"]][:_ROWS]
    table = Table(title=None if few else f"Slides without a tile ({len(shown):,} of them shown)", title_justify="left")
    table.add_column("slide", overflow="fold")
    for name in ("tiles", "tissue mm²", "µm/px"):
        table.add_column(name, justify="right")
    table.add_column("status", overflow="fold")
    for record in shown:
        known = record["status"] != "failed"
        table.add_row(
            escape(record["slide"]),
            f"{record['tiles']:,}",
            f"{record['tissue_mm2']:.4g}" if known else "–",
            f"{record['mpp_x']:.4g}" if known else "–",
            # The fix is in failures.csv, and was said when the slide was met.
            escape(record["reason"].split(";")[0] or "; ".join([record["status"], *record.get("notes", [])])),
        )
    return table
