"""Tile a folder of slides: everything that is missing, and nothing twice."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.files import directory_held
from eosin.core.stopping import stopped_alike
from eosin.slides import FoundSlide, find_slides
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
    left: int = 0
    """Slides of other jobs of the array that are not done yet."""
    damaged: int = 0
    """Tiles of the slides cut now that could not be read."""

    @property
    def without_tiles(self) -> tuple[dict[str, Any], ...]:
        """The records of the slides that have no tile."""
        return tuple(record for record in self.records if not record["tiles"])

    def __str__(self) -> str:
        """Return the closing line."""
        slides = len(self.records) - len(self.without_tiles)
        parts = [f"{self.out}: {self.tiles:,} tiles of {slides:,} slides, {self.size / 1e9:.2f} GB"]
        parts.append(f"{self.cut:,} cut now in {self.seconds:,.0f} s, {self.kept:,} done before")
        if self.left:
            parts.append(f"{self.left:,} of other jobs not done yet")
        if self.damaged:
            parts.append(f"{self.damaged:,} tiles unreadable, named in {self.out / 'slides'}")
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
    if processes is not None and processes < 1:
        raise EosinError(f"--jobs {processes}: give at least 1")
    remarks: list[str] = []
    found = _outside(out, find_slides(sources, plain=plain, remark=remarks.append))
    extras = extras or Extras()
    jobs, more = make_jobs(found, config, extras)
    remarks += more
    records = Records(out)
    with directory_held(out, shard), stopped_alike():
        records.agree(config)
        done, failed = records.done(), records.failed()
        jobs = _under_known_names(jobs, failed | done)
        mine = jobs if shard is None else jobs[shard[0] :: shard[1]]
        _refuse_forgotten(out, extras, [done[job.name] for job in mine if job.name in done])
        missing, changed = _missing(records, mine, done, remarks)
        for remark in remarks:
            warn(remark)
        _drop_gone(records, jobs, failed)
        records.withdraw(changed)
        ours = None if shard is None else mine
        records.sweep(ours)
        try:
            with TilingProgress(missing, len(mine) - len(missing)) as progress:
                if missing:
                    pool = RayPool(ray) if ray is not None else LocalPool(processes or _cores())
                    with closing(pool):
                        Schedule(records, pool, progress.advance, progress.ended).run(missing)
        finally:
            records.sweep(ours)
        with records.folding():
            every, tiles = records.fold()
            write_sheets(out, every)
    _warn_of_gone(out, every, jobs)
    _warn_of_copies(out, every)
    # A job of an array may have no slide, or none with tissue; the others go on.
    if not tiles and shard is None:
        first = every[0]
        told = f"first '{first['slide']}': {first['reason']}"
        raise EosinError(f"{out}: none of the {len(every):,} slides has a tile, see {out / 'failures.csv'} ({told})")
    known = {record["slide"] for record in every}
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
        left=sum(job.name not in known for job in jobs),
        damaged=progress.damaged,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outside(out: Path, found: Sequence[FoundSlide]) -> list[FoundSlide]:
    """Leave out what earlier runs wrote, where the output lies in a folder of slides."""
    written = out.resolve()
    left = [slide for slide in found if written not in slide.path.resolve().parents]
    if not left:
        raise EosinError(f"{out}: is where the tiles go, and holds all the slides given; choose another --out")
    return left


def _under_known_names(jobs: list[SlideJob], known: dict[str, dict[str, Any]]) -> list[SlideJob]:
    """Keep the names of slides that were met before, where a file that came beside them, or went, would change them."""
    names = {record["path"]: name for name, record in known.items()}
    taken = {job.name for job in jobs}
    kept = []
    for job in jobs:
        name = names.get(str(job.path), job.name)
        same = job.name in known and known[job.name]["path"] == str(job.path)
        kept.append(job if same or name in taken else renamed(job, name))
    return kept


def _refuse_forgotten(out: Path, extras: Extras, records: Sequence[dict[str, Any]]) -> None:
    """Refuse to cut slides again, or to lose them, because an option of the first run was left out.

    Raises:
        EosinError: If there is one; the message names it.
    """
    options = {
        "--source-mpp": (extras.source_mpp, ("source_mpp", "fallback_mpp")),
        "--patient": (extras.patient, ("patient",)),
        "--masks": (extras.masks, ("mask",)),
        "--regions": (extras.regions, ("regions",)),
        "--coordinates": (extras.coordinates, ("coordinates",)),
    }
    for option, (value, fields) in options.items():
        if value is not None:
            continue
        for record in records:
            if any((record["given"] | {"fallback_mpp": record["fallback_mpp"]})[field] is not None for field in fields):
                raise EosinError(
                    f"{out}: '{record['slide']}' and others were cut with {option}; give it again, or choose another "
                    "--out"
                )


def _warn_of_gone(out: Path, records: Sequence[dict[str, Any]], jobs: Sequence[SlideJob]) -> None:
    """Say which slides are in the store though they were not given."""
    gone = sorted({record["slide"] for record in records} - {job.name for job in jobs})
    if gone:
        warn(
            f"{out}: holds {len(gone):,} slides that are not among those given (first '{gone[0]}'); they are kept; "
            f"to take one out, remove its file from {out / 'slides'} and run again"
        )


def _warn_of_copies(out: Path, records: Sequence[dict[str, Any]]) -> None:
    """Say which slides are in the store twice, as renamed and copied ones are: a split would not keep them apart."""
    first = dict[tuple[int, str], str]()
    copies = []
    for record in records:
        if record["tiles"]:
            other = first.setdefault((record["bytes"], record["sample_sha256"]), record["slide"])
            if other != record["slide"]:
                copies.append(f"'{record['slide']}' of '{other}'")
    if copies:
        warn(f"{out}: {len(copies):,} slides are copies of others, or were renamed (first {copies[0]}); keep one")


def _drop_gone(records: Records, jobs: Sequence[SlideJob], failed: dict[str, dict[str, Any]]) -> None:
    """Forget the failures of slides that were removed."""
    names = {job.name for job in jobs}
    for name, record in failed.items():
        if name not in names and not Path(record["path"]).exists():
            records.drop(record)


def _missing(
    records: Records, jobs: Sequence[SlideJob], done: dict[str, dict[str, Any]], remarks: list[str]
) -> tuple[list[SlideJob], list[SlideJob]]:
    """Return the slides to cut, and those among them that are in the store but changed."""
    missing, changed = list[SlideJob](), list[SlideJob]()
    why, unseen = list[str](), list[str]()
    stored = records.stored()
    for job in jobs:
        record = done.get(job.name)
        reason = ""
        if record is not None:
            try:
                reason = records.current(job, record, stored)
            except OSError as error:
                unseen.append(f"'{job.name}': {error.strerror or error}")
            if not reason:
                continue
            why.append(f"'{job.name}' ({reason})")
            changed.append(job)
        missing.append(job)
    if unseen:
        remarks.append(f"{len(unseen):,} slides cannot be looked at and are kept as they were cut (first {unseen[0]})")
    if changed:
        remarks.append(f"{len(changed):,} slides are cut again, first {why[0]}")
    return missing, changed
