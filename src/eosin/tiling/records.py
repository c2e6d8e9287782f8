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

import csv
import hashlib
import io
import json
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
from eosin.tiling.config import TilingConfig
from eosin.tiling.cut import CutPart, Plan
from eosin.tiling.jobs import SlideJob

__all__ = ["Records", "file_identity"]

FORMAT = "eosin-tiling"
VERSION = 1

# Of a slide's file, this much is hashed at its beginning, middle and end.
_SAMPLE = 1 << 20

_COLUMNS = [
    *("slide", "status", "reason", "tiles", "tissue_mm2", "pen_mm2", "patient", "mpp_x", "mpp_y", "mpp_source"),
    *("objective", "width", "height", "format", "damaged", "notes", "bytes", "path", "preview"),
]


def file_identity(path: Path) -> dict[str, Any]:
    """Return a slide file's size, time and a hash of samples of it, by which a replaced file is noticed."""
    status = path.stat()
    total = hashlib.sha256(str(status.st_size).encode())
    with open(path, "rb") as file:
        for start in (0, max(0, status.st_size // 2 - _SAMPLE // 2), max(0, status.st_size - _SAMPLE)):
            file.seek(start)
            total.update(file.read(_SAMPLE))
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sample_sha256": total.hexdigest()}


class Records:
    """The records in an output directory.

    Args:
        out: The directory; made if absent.

    Raises:
        EosinError: If it cannot be written, or holds something else.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        known = (out / "tiling.json").exists()
        if out.is_dir() and not known and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise EosinError(f"{out}: holds something else than a tiling; choose another --out or remove it")
        writable_directory(out)

    def agree(self, config: TilingConfig) -> None:
        """Make sure that earlier runs cut with the same settings, or save these as the first; make the folders.

        Raises:
            EosinError: If they differ; the message names the setting and its value there.
        """
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
        for folder in ("slides", "shards", "failed", "previews"):
            writable_directory(self.out / folder)

    def done(self) -> dict[str, dict[str, Any]]:
        """Return the committed slides' records by name."""
        records = (_read(path) for path in sorted((self.out / "slides").glob("*.json")))
        return {record["slide"]: record for record in records}

    def failed(self) -> dict[str, dict[str, Any]]:
        """Return the failed slides' records by name."""
        records = (_read(path) for path in sorted((self.out / "failed").glob("*.json")))
        return {record["slide"]: record for record in records}

    def current(self, job: SlideJob, record: dict[str, Any]) -> str:
        """Say why a slide must be cut again; nothing if what is there is what the job asks for."""
        changed = [name for name, value in job.given().items() if record["given"].get(name) != value]
        if not changed and record["fallback_mpp"] not in (None, job.fallback_mpp):
            changed.append("source_mpp")
        if changed:
            return f"{' and '.join(changed)} changed"
        status = job.path.stat()
        if (status.st_size, status.st_mtime_ns) == (record["bytes"], record["modified_ns"]):
            return ""
        same = file_identity(job.path)["sample_sha256"] == record["sample_sha256"]
        return "" if same else "the file was replaced"

    def commit(self, job: SlideJob, plan: Plan, parts: Sequence[CutPart]) -> dict[str, Any]:
        """Make a slide part of the store, at once; all its shards must be written."""
        damaged = [line for part in parts for line in part.damaged]
        tables = [in_shard(part.manifest, number) for number, part in enumerate(parts)]
        tiles = sum(map(len, tables))
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
            "given": job.given(),
            # The files of other slides say their scale, and are not cut again when this is given for those that do not.
            "fallback_mpp": job.fallback_mpp if plan.about["mpp_source"] == "given" and not job.source_mpp else None,
            **file_identity(job.path),
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
        self.forget(job)
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

    def forget(self, job: SlideJob) -> None:
        """Take a slide out of the store: its record first, then its tiles."""
        with storage_errors(self.out):
            for path in (
                self.out / "slides" / f"{job.key}.json",
                self.out / "slides" / f"{job.key}.parquet",
                *(self.out / "shards").glob(f"{job.key}-*.arrow"),
            ):
                path.unlink(missing_ok=True)

    def sweep(self, jobs: Sequence[SlideJob]) -> None:
        """Remove what a killed run left of these slides: shards that no record names, and unfinished files."""
        ours = {job.key for job in jobs}
        committed = {path.stem for path in (self.out / "slides").glob("*.json")}
        with storage_errors(self.out):
            for folder in ("slides", "shards", "failed", "previews"):
                for path in (self.out / folder).iterdir():
                    unfinished = re.fullmatch(r"\.(.*?-[0-9a-f]{8})[-.].*\.part", path.name)
                    shard = re.fullmatch(r"(.*-[0-9a-f]{8})(-\d+\.arrow|\.parquet)", path.name)
                    if (unfinished and unfinished[1] in ours) or (
                        shard and shard[1] in ours and shard[1] not in committed
                    ):
                        path.unlink(missing_ok=True)

    def fold(self) -> tuple[list[dict[str, Any]], int]:
        """Write the store's manifest and the tables of slides from all that is committed.

        Held by one process at a time, so that of several jobs of an array the last sees everything.

        Returns:
            All records, in the order of the slides' names, and the number of tiles.
        """
        with DirectoryLock(self.out, ".lock-fold", wait=True):
            every = self.failed() | self.done()
            records = [every[name] for name in sorted(every)]
            shards = [entry for record in records for entry in record.get("shards", [])]
            tiles = sum(entry["tiles"] for entry in shards)
            if shards:
                write_index(self.out, self._manifest(records), shards)
            else:
                for name in ("manifest.parquet", "store.json"):
                    (self.out / name).unlink(missing_ok=True)
            _write_table(self.out / "slides.csv", records)
            _write_table(self.out / "failures.csv", [record for record in records if not record["tiles"]])
        return records, tiles

    def _manifest(self, records: Sequence[dict[str, Any]]) -> Iterator[Any]:
        before = 0
        place = MANIFEST_SCHEMA.get_field_index("shard")
        for record in records:
            if not record.get("shards"):
                continue
            path = self.out / "slides" / f"{record['key']}.parquet"
            table = pa.parquet.read_table(path, schema=MANIFEST_SCHEMA)
            number = pc.add(table["shard"], pa.scalar(before, pa.int32()))
            yield table.set_column(place, MANIFEST_SCHEMA.field(place), number)
            before += len(record["shards"])


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise EosinError(f"{path}: damaged; remove it, and the slide is cut again") from None
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
