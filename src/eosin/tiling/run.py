"""Tile a folder of slides: everything that is missing, and nothing twice."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.files import DirectoryLock
from eosin.slides import find_slides
from eosin.tiling.config import TilingConfig
from eosin.tiling.display import TilingProgress
from eosin.tiling.jobs import Extras, SlideJob, make_jobs, renamed
from eosin.tiling.pools import LocalPool, RayPool, closing
from eosin.tiling.records import Records
from eosin.tiling.schedule import Schedule
from eosin.tiling.sheets import write_sheets

__all__ = ["TilingSummary", "parse_shard", "tile_slides"]


@dataclass(frozen=True)
class TilingSummary:
    """What `tile_slides` did."""

    out: Path
    records: tuple[dict[str, Any], ...]
    """The record of every slide in the store's directory, by name."""
    cut: int
    """Slides cut now."""
    kept: int
    """Slides that were done before."""
    tiles: int
    """Tiles of the store."""
    size: int
    """Bytes of the store's shards."""
    seconds: float
    remarks: tuple[str, ...]

    @property
    def without_tiles(self) -> tuple[dict[str, Any], ...]:
        """The records of the slides that have no tile."""
        return tuple(record for record in self.records if not record["tiles"])

    def __str__(self) -> str:
        """Return the closing line."""
        slides = len(self.records) - len(self.without_tiles)
        parts = [f"{self.out}: {self.tiles:,} tiles of {slides:,} slides, {self.size / 1e9:.2f} GB"]
        parts.append(f"{self.cut:,} cut now in {self.seconds:,.0f} s, {self.kept:,} done before")
        if self.without_tiles:
            first = self.without_tiles[0]
            parts.append(
                f"{len(self.without_tiles):,} without a tile, listed in {self.out / 'failures.csv'} "
                f"(first '{first['slide']}': {first['reason']})"
            )
        return "; ".join(parts)


def parse_shard(text: str) -> tuple[int, int]:
    """Read `i/n`: part i, counted from 0, of n.

    Raises:
        EosinError: If it is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or int(match[2]) < 1 or int(match[1]) >= int(match[2]):
        raise EosinError(f"--shard '{text}': write i/n with i from 0 to n - 1, such as 0/8 for the first of 8 jobs")
    return int(match[1]), int(match[2])


def tile_slides(
    sources: Sequence[Path],
    out: Path,
    config: TilingConfig,
    *,
    extras: Extras | None = None,
    processes: int | None = None,
    shard: tuple[int, int] | None = None,
    ray: str | None = None,
    plain: bool = False,
) -> TilingSummary:
    """Cut slides into a tile store; slides that are there already, unchanged, are not cut again.

    Each slide is committed when it is whole. A run may be stopped at any moment, by kill -9 too; the same call then
    does what is missing, and the store ends as it would have without a stop, byte for byte. A slide that cannot be cut
    is listed with the reason and tried again by the next run.

    Args:
        sources: Slides and folders of slides.
        out: The store's directory.
        config: How to cut.
        extras: What is said of slides besides: µm/px, patients, masks, regions, coordinates.
        processes: Processes on this machine; one for each core that this one may use, if not given.
        shard: (i, n): do every n-th slide, from the i-th; several such runs may share `out`.
        ray: Address of a Ray cluster to use instead of processes here.
        plain: Take images without levels (PNG, JPEG, ...) in folders too.

    Raises:
        EosinError: If a source, a table or a setting is faulty, the output cannot be written, or no slide has a tile.
    """
    started = time.monotonic()
    remarks: list[str] = []
    found = find_slides(sources, plain=plain, remark=remarks.append)
    jobs, more = make_jobs(found, config, extras or Extras())
    remarks += more
    if processes is not None and processes < 1:
        raise EosinError(f"--jobs {processes}: give at least 1")
    records = Records(out)
    with _held(out, shard):
        records.agree(config)
        done = records.done()
        jobs = _under_known_names(jobs, done)
        mine = jobs if shard is None else jobs[shard[0] :: shard[1]]
        records.sweep(mine)
        missing = _missing(records, mine, done, remarks)
        for remark in remarks:
            warn(remark)
        try:
            with TilingProgress(missing, len(mine) - len(missing)) as progress:
                if missing:
                    pool = RayPool(ray) if ray is not None else LocalPool(processes or _cores())
                    with closing(pool):
                        Schedule(records, pool, progress.advance, progress.ended).run(missing)
        finally:
            records.sweep(mine)
        every, tiles = records.fold()
    write_sheets(out, every)
    gone = sorted({record["slide"] for record in every} - {job.name for job in jobs})
    if gone:
        warn(f"{out}: holds {len(gone):,} slides that are not among those given (first '{gone[0]}'); they are kept")
    if not tiles:
        first = next((record for record in every if not record["tiles"]), None)
        told = f"first '{first['slide']}': {first['reason']}" if first else "no slide was given to this shard"
        raise EosinError(f"{out}: none of the {len(every):,} slides has a tile, see {out / 'failures.csv'} ({told})")
    size = sum(entry["bytes"] for record in every for entry in record.get("shards", []))
    return TilingSummary(
        out=Path(out),
        records=tuple(every),
        cut=progress.slides,
        kept=len(mine) - len(missing),
        tiles=tiles,
        size=size,
        seconds=time.monotonic() - started,
        remarks=tuple(remarks),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _held(out: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """Hold the output: alone, or with the other jobs of an array."""
    if shard is None:
        with DirectoryLock(out):
            yield
        return
    with DirectoryLock(out, shared=True), DirectoryLock(out, f".lock-{shard[0]}-of-{shard[1]}"):
        yield


def _under_known_names(jobs: list[SlideJob], done: dict[str, dict[str, Any]]) -> list[SlideJob]:
    """Keep the names of slides that are done, where a new file beside them would change them."""
    names = {record["path"]: name for name, record in done.items()}
    taken = {job.name for job in jobs}
    return [
        renamed(job, names[str(job.path)])
        if job.name not in done and str(job.path) in names and names[str(job.path)] not in taken
        else job
        for job in jobs
    ]


def _missing(
    records: Records, jobs: Sequence[SlideJob], done: dict[str, dict[str, Any]], remarks: list[str]
) -> list[SlideJob]:
    """Return the slides to cut, after taking out of the store those that changed."""
    missing = []
    changed: list[str] = []
    for job in jobs:
        record = done.get(job.name)
        if record is not None:
            why = records.current(job, record)
            if not why:
                continue
            changed.append(f"'{job.name}' ({why})")
            records.forget(job)
        missing.append(job)
    if changed:
        remarks.append(f"{len(changed):,} slides are cut again, first {changed[0]}")
    return missing
