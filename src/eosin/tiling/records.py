"""What a tiling leaves on disk, slide by slide, and the store that is made of it.

Layout, besides that of a tile store::

    OUT/tiling.json          the settings that all slides share
    OUT/slides/KEY.json      a slide that is done; written last, it commits the slide
    OUT/slides/KEY.parquet   its rows of the manifest
    OUT/shards/KEY-NNN.arrow its tiles
    OUT/failed/KEY.json      a slide that could not be cut, and why
    OUT/previews/KEY.png     a slide's thumbnail, tissue and grid
    OUT/slides.csv           a row for every slide
    OUT/failures.csv         the slides without a tile, and why
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from eosin.core.errors import EosinError, StorageError
from eosin.core.files import DirectoryLock, atomic_file, storage_errors, writable_directory
from eosin.data.shards import MANIFEST_SCHEMA, in_shard, write_index
from eosin.slides import UnusableSlide
from eosin.tiling.config import TilingConfig
from eosin.tiling.cut import CutPart, Plan, too_damaged
from eosin.tiling.identity import file_identity, file_state
from eosin.tiling.jobs import SlideJob

__all__ = ["Records"]

FORMAT = "eosin-tiling"
VERSION = 1

# A slide's key ends in 8 digits of a hash; its name may hold such digits too, as dates are.
_UNFINISHED = re.compile(r"\.(.*-[0-9a-f]{8})[-.].*\.part")
_PIECE = re.compile(r"(.*-[0-9a-f]{8})(-\d+\.arrow|\.parquet)")

_COLUMNS = [
    *("slide", "status", "reason", "tiles", "tissue_mm2", "pen_mm2", "patient", "mpp_x", "mpp_y", "mpp_source"),
    *("objective", "width", "height", "format", "damaged", "notes", "bytes", "path", "preview"),
]


class Records:
    """The records in an output directory.

    Args:
        out: The directory; made if absent.

    Raises:
        EosinError: If it cannot be written, or holds something else.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        other = out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir())
        # Looked for last: another job of an array, starting now, makes this file before any other.
        if other and not (out / "tiling.json").exists():
            raise EosinError(f"{out}: holds something else than a tiling; choose another --out or remove it")
        writable_directory(out)

    def agree(self, config: TilingConfig) -> None:
        """Make sure that earlier runs cut with the same settings, or save these as the first; make the folders.

        Raises:
            EosinError: If they differ; the message names the setting and its value there.
        """
        with self.folding(), storage_errors(self.out):
            # Whoever writes to these folders holds this lock.
            for folder in (self.out, self.out / "sheets"):
                for unfinished in folder.glob(".*.part"):
                    unfinished.unlink(missing_ok=True)
            self._agree(config)
        for name in ("slides", "shards", "failed", "previews"):
            writable_directory(self.out / name)

    def _agree(self, config: TilingConfig) -> None:
        """Compare with the settings of the first run, or save these as such."""
        path = self.out / "tiling.json"
        settings = config.plain()
        if path.exists():
            about = _read(path)
            if about.get("format") != FORMAT or int(about.get("version", 0)) > VERSION:
                raise EosinError(f"{path}: made by another version of eosin; choose another --out")
            before = about.get("settings", {})
            for name in settings:
                if settings[name] != before.get(name):
                    raise EosinError(
                        f"{self.out}: was cut with {name} {_worded(before.get(name))}, not {_worded(settings[name])}; "
                        "give the same, or choose another --out"
                    )
        else:
            with atomic_file(path, "w") as file:
                file.write(json.dumps({"format": FORMAT, "version": VERSION, "settings": settings}, indent=1) + "\n")

    def done(self) -> dict[str, dict[str, Any]]:
        """Return the committed slides' records by name."""
        return self._all("slides")

    def failed(self) -> dict[str, dict[str, Any]]:
        """Return the failed slides' records by name."""
        return self._all("failed")

    def _all(self, folder: str) -> dict[str, dict[str, Any]]:
        found = {}
        for path in sorted((self.out / folder).glob("*.json")):
            # Another job of an array may take one away between listing and reading.
            with contextlib.suppress(FileNotFoundError):
                record = _read(path)
                found[record["slide"]] = record
        return found

    def stored(self) -> dict[str, int]:
        """Return the names of what is there of the slides, and of the shards their bytes."""
        found = dict.fromkeys(_names(self.out / "slides"), 0)
        with os.scandir(self.out / "shards") as listing:
            for entry in listing:
                # Another job of an array may rename what it has just finished.
                with contextlib.suppress(FileNotFoundError):
                    found[entry.name] = entry.stat().st_size
        return found

    def current(self, job: SlideJob, record: dict[str, Any], stored: dict[str, int]) -> str:
        """Say why a slide must be cut again; nothing if what is there is what the job asks for.

        Args:
            job: What to cut.
            record: What was cut.
            stored: What is there, from `stored`.

        Raises:
            OSError: If the slide, or a file given for it, cannot be looked at.
        """
        if record["shards"] and f"{job.key}.parquet" not in stored:
            return "its rows of the manifest were removed"
        if any(stored.get(entry["file"]) != entry["bytes"] for entry in record["shards"]):
            return "its tiles were removed or damaged"
        changed = [name for name, value in job.given().items() if record["given"].get(name) != value]
        if not changed and record["fallback_mpp"] not in (None, job.fallback_mpp):
            changed.append("source_mpp")
        if changed:
            return f"{' and '.join(changed)} changed"
        if file_state(job.path) == (record["bytes"], record["modified_ns"]):
            return ""
        same = file_identity(job.path)["sample_sha256"] == record["sample_sha256"]
        return "" if same else "the file was replaced"

    def commit(self, job: SlideJob, plan: Plan, parts: Sequence[CutPart]) -> dict[str, Any]:
        """Make a slide part of the store, at once; all its shards must be written.

        Raises:
            UnusableSlide: If its file changed since it was planned, so that its tiles may be of two files, or too many
                are unreadable.
            StorageError: If it cannot be written.
            OSError: If the slide's file is gone.
        """
        if file_state(job.path) != (plan.seen["bytes"], plan.seen["modified_ns"]):
            raise UnusableSlide("the file changed while it was cut; run again when it is whole")
        damaged = [line for part in parts for line in part.damaged]
        tables = [in_shard(part.manifest, number) for number, part in enumerate(parts)]
        tiles = sum(map(len, tables))
        if too_damaged(len(damaged), tiles + len(damaged)):
            raise UnusableSlide(f"{len(damaged):,} of its tiles are unreadable (first {damaged[0]})")
        record = {
            "slide": job.name,
            "key": job.key,
            "status": "done" if tiles else "empty",
            "reason": plan.reason,
            "tiles": tiles,
            "patient": job.patient,
            **plan.about,
            "damaged": damaged,
            "shards": [part.entry for part in parts],
            # The files of other slides say their scale, and are not cut again when this is given for those that do not.
            "fallback_mpp": job.fallback_mpp if plan.about["mpp_source"] == "given" and not job.source_mpp else None,
            **plan.seen,
            "path": str(job.path),
            "preview": f"previews/{job.key}.png",
        }
        for entry in record["shards"]:
            shard = self.out / "shards" / entry["file"]
            if not shard.exists() or shard.stat().st_size != entry["bytes"]:
                raise StorageError(
                    f"{shard}: removed or changed while its slide was cut; is a second run writing there?"
                )
        path = self.out / "slides" / f"{job.key}.json"
        if tiles:
            with atomic_file(path.with_suffix(".parquet")) as file:
                pa.parquet.write_table(pa.concat_tables(tables).combine_chunks(), file)
        else:
            path.with_suffix(".parquet").unlink(missing_ok=True)
        _write(path, record)
        (self.out / "failed" / f"{job.key}.json").unlink(missing_ok=True)
        return record

    def fail(self, job: SlideJob, reason: str) -> dict[str, Any]:
        """Record that a slide could not be cut."""
        record = {
            "slide": job.name,
            "key": job.key,
            "status": "failed",
            "reason": reason,
            "path": str(job.path),
            "tiles": 0,
        }
        _write(self.out / "failed" / f"{job.key}.json", record)
        return record

    def withdraw(self, jobs: Sequence[SlideJob]) -> None:
        """Take slides out of the store: their records, then their rows of its manifest, and then their tiles.

        So whoever opens the store meanwhile finds all the tiles that it names, wherever this is interrupted.
        """
        with self.folding(), storage_errors(self.out):
            for job in jobs:
                (self.out / "slides" / f"{job.key}.json").unlink(missing_ok=True)
            # A run killed here before left names without records, too.
            records = set(_names(self.out / "slides"))
            if any(f"{entry['file'].rpartition('-')[0]}.json" not in records for entry in self._folded()["shards"]):
                self.fold()
            keys = {job.key for job in jobs}
            for key in keys:
                (self.out / "previews" / f"{key}.png").unlink(missing_ok=True)
            for folder in ("slides", "shards"):
                for name in _names(self.out / folder) if keys else ():
                    match = _PIECE.fullmatch(name)
                    if match and match[1] in keys:
                        (self.out / folder / name).unlink(missing_ok=True)

    def drop(self, record: dict[str, Any]) -> None:
        """Forget the failure of a slide that is gone."""
        (self.out / "failed" / f"{record['key']}.json").unlink(missing_ok=True)

    def sweep(self, jobs: Sequence[SlideJob] | None) -> None:
        """Remove what a killed run left: tiles and previews without a record, unfinished files, failures since mended.

        Args:
            jobs: Only what is left of these slides, where others are being cut by other jobs of an array; None for all.
        """
        ours = None if jobs is None else {job.key for job in jobs}
        committed, failed = ({path.stem for path in (self.out / name).glob("*.json")} for name in ("slides", "failed"))
        known = committed | failed
        with storage_errors(self.out):
            for folder in ("slides", "shards", "failed", "previews"):
                for name in _names(self.out / folder):
                    unfinished, piece = _UNFINISHED.fullmatch(name), _PIECE.fullmatch(name)
                    key = unfinished[1] if unfinished else piece[1] if piece else Path(name).stem
                    left = unfinished or (piece and key not in committed)
                    left = left or (folder == "failed" and key in committed)
                    left = left or (folder == "previews" and key not in known)
                    if left and (ours is None or key in ours):
                        (self.out / folder / name).unlink(missing_ok=True)

    def folding(self) -> DirectoryLock:
        """Return the lock under which what all slides share is written: of an array's jobs, the last sees all."""
        return DirectoryLock(self.out, ".lock-fold", wait=True)

    def fold(self) -> tuple[list[dict[str, Any]], int]:
        """Write the store's manifest and the tables of slides from all that is committed; hold `folding` for it.

        Where that is what they were written from last, they are left.

        Returns:
            All records, in the order of the slides' names, and the number of tiles.
        """
        every = self.failed() | self.done()
        records = [every[name] for name in sorted(every)]
        shards = [entry for record in records for entry in record.get("shards", [])]
        tiles = sum(entry["tiles"] for entry in shards)
        state = hashlib.sha256(json.dumps(records).encode()).hexdigest()
        written = ("manifest.parquet", "slides.csv", "failures.csv")
        if self._folded()["records"] == state and all((self.out / name).exists() for name in written):
            return records, tiles
        _write_table(self.out / "slides.csv", records)
        _write_table(self.out / "failures.csv", [record for record in records if not record["tiles"]])
        if shards:
            write_index(self.out, self._manifest(records), shards, records=state)
        else:
            # In this order: without store.json it is no store.
            for name in ("store.json", "manifest.parquet"):
                (self.out / name).unlink(missing_ok=True)
        return records, tiles

    def _folded(self) -> dict[str, Any]:
        """Return what store.json says: the shards, and of which records it was made."""
        try:
            about = json.loads((self.out / "store.json").read_text(encoding="utf-8"))
            return {"shards": list(about["shards"]), "records": about.get("records", "")}
        except (OSError, ValueError, KeyError, TypeError):
            return {"shards": [], "records": ""}

    def _manifest(self, records: Sequence[dict[str, Any]]) -> Iterator[Any]:
        before = 0
        place = MANIFEST_SCHEMA.get_field_index("shard")
        for record in records:
            if not record.get("shards"):
                continue
            path = self.out / "slides" / f"{record['key']}.parquet"
            try:
                table = pa.parquet.read_table(path, schema=MANIFEST_SCHEMA)
            except (OSError, pa.ArrowInvalid):
                raise EosinError(
                    f"{path}: missing or damaged; remove {path.with_suffix('.json').name} beside it, and the slide is "
                    "cut again by the same command"
                ) from None
            number = pc.add(table["shard"], pa.scalar(before, pa.int32()))
            yield table.set_column(place, MANIFEST_SCHEMA.field(place), number)
            before += len(record["shards"])


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        raise EosinError(f"{path}: damaged; remove it, and the same command puts it right") from None
    return dict(record)


def _write(path: Path, record: dict[str, Any]) -> None:
    with atomic_file(path, "w") as file:
        file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _worded(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_worded(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " and ".join(map(_worded, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write_table(path: Path, records: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        row = dict(record)
        row["damaged"] = len(record.get("damaged", []))
        row["notes"] = "; ".join(record.get("notes", []))
        writer.writerow({name: "" if row.get(name) is None else row[name] for name in _COLUMNS})
    with atomic_file(path, "w") as file:
        file.write(text.getvalue())
