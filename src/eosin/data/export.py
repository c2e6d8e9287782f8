"""Tiles in the forms that other tools read: a folder of images, WebDataset shards, a Hugging Face data set."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from eosin.core.console import progress_bar
from eosin.core.errors import EosinError, nearest
from eosin.core.files import atomic_directory
from eosin.data.images import UnreadableImage
from eosin.data.safe_names import SafePaths, safe_part, suffix_of
from eosin.data.tiles import Tiles
from eosin.data.workers import read_ahead

__all__ = ["ExportFormat", "ExportSummary", "export_tiles"]

ExportFormat = Literal["folder", "webdataset", "parquet"]

# Images wait in memory until a row group of this many bytes or rows is full.
_GROUP_BYTES = 32 << 20
_GROUP_ROWS = 1000

UNLABELLED = "_unlabelled"


@dataclass(frozen=True)
class ExportSummary:
    """What `export_tiles` wrote."""

    out: Path
    tiles: int
    files: int
    """Image files, tar shards or Parquet files."""
    bytes: int
    """Of the images."""
    classes: tuple[str, ...]
    """The labels, in the order of the integers that stand for them; empty without labels."""

    def __str__(self) -> str:
        """Return the closing line."""
        plural = "" if self.files == 1 else "s"
        size = f"{self.bytes / 1e9:.2f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.1f} MB"
        return f"{self.out}: {self.tiles:,} tiles in {self.files:,} file{plural}, {size} of images"


def export_tiles(
    tiles: Tiles,
    out: Path,
    format: ExportFormat,
    *,
    shard_bytes: int = 500_000_000,
    shard_tiles: int = 10_000,
    workers: int = 0,
) -> ExportSummary:
    """Write tiles in a form that other tools read; the images' bytes stay as they are.

    * ``folder``: image files in folders of their class, or else of their slide, below those of their split where every
      tile has one; and ``index.csv``, a manifest of all that is known, which `open_tiles` reads.
    * ``webdataset``: ``00000.tar`` … with ``KEY.jpg`` (or another suffix), ``KEY.json`` with the name and all that is
      known, and for labelled tiles ``KEY.cls``, a line number, from 0, of ``classes.txt``.
    * ``parquet``: ``data/train-00000-of-00002.parquet`` … of a Hugging Face data set, one group of files a split, with
      columns `image` (bytes and path), `label` (a ClassLabel) and all that is known, and its card ``README.md``.

    The same tiles give the same bytes on disk.

    Args:
        tiles: Any source.
        out: A directory that does not exist yet, or is empty.
        format: What to write.
        shard_bytes: Bytes of images at which a shard is closed; it may be exceeded by one image.
        shard_tiles: Tiles at which a shard is closed.
        workers: Processes that read; of use where reading is slow, such as from slides.

    Returns:
        Counts.

    Raises:
        EosinError: If there is no tile, one cannot be read, the format is unknown or the place cannot be written;
            nothing is left behind.
    """
    if format not in _WRITERS:
        raise EosinError(f"format '{format}': {nearest(format, _WRITERS)}")
    if shard_bytes < 1 or shard_tiles < 1:
        raise EosinError("a shard holds at least one byte and one tile; give larger shard_bytes and shard_tiles")
    if not len(tiles):
        raise EosinError(f"{tiles.spec}: no tile to export")
    total = 0
    with atomic_directory(Path(out)) as directory, progress_bar("size") as progress:
        writer = _WRITERS[format](tiles, directory, _Limits(shard_bytes, shard_tiles))
        task = progress.add_task("exporting", total=len(tiles), size="")
        with writer:
            for index, data in enumerate(read_ahead(_Reader(tiles), range(len(tiles)), workers)):
                if isinstance(data, str):
                    raise EosinError(f"{tiles.names[index]}: {data}; repair or remove it ({tiles.spec})")
                writer.add(index, data)
                total += len(data)
                progress.update(task, advance=1, size=f"{total / 1e9:.2f} GB")
    return ExportSummary(Path(out), len(tiles), writer.files, total, tuple(_classes(tiles)))


class _Reader:
    """Reads a tile's bytes, or says why it cannot; runs in the workers."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles.without_columns()

    def __call__(self, index: int, /) -> bytes | str:
        try:
            return self.tiles.read(index)
        except UnreadableImage as error:
            return str(error)


class _Writer(Protocol):
    files: int

    def __enter__(self) -> Any:
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """Write what is pending; after an error, only close what is open."""

    def add(self, index: int, data: bytes) -> None:
        """Add the tile of a row."""


@dataclass
class _Limits:
    bytes: int
    tiles: int


def _columns(tiles: Tiles) -> dict[str, Any]:
    """Return the known columns, by name."""
    values = {field.name: getattr(tiles, field.name) for field in dataclasses.fields(tiles)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _plain(value: Any) -> str | int | float | None:
    """Return an entry of a column as JSON has it, None where unknown; whole numbers without a fraction."""
    if value is None or isinstance(value, str):
        return value
    number = float(value)
    if math.isnan(number):
        return None
    return int(number) if number.is_integer() else number


def _classes(tiles: Tiles) -> list[str]:
    return [] if tiles.label is None else sorted({label for label in tiles.label if label is not None})


class _Folder:
    """Image files and `index.csv`."""

    def __init__(self, tiles: Tiles, directory: Path, limits: _Limits) -> None:
        self.tiles = tiles
        self.directory = directory
        self.columns = _columns(tiles)
        # A split for some tiles only would be a folder beside those of classes.
        self.splits = tiles.split is not None and all(split is not None for split in tiles.split)
        self.paths = SafePaths()
        self.made: set[Path] = set()
        self.files = 0

    def __enter__(self) -> _Folder:
        self.index = open(self.directory / "index.csv", "w", newline="", encoding="utf-8")
        self.rows = csv.writer(self.index, lineterminator="\n")
        self.rows.writerow(["file", "name", *self.columns])
        return self

    def __exit__(self, *error: object) -> None:
        self.index.close()

    def add(self, index: int, data: bytes) -> None:
        name = self.tiles.names[index]
        folders, drop = self._folders(index)
        relative = self.paths.path(folders, name, suffix_of(data, name), drop=drop, flat=self.tiles.label is not None)
        path = self.directory / relative
        if path.parent not in self.made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.made.add(path.parent)
        path.write_bytes(data)
        self.files += 1
        self.rows.writerow([relative, name, *(_plain(column[index]) for column in self.columns.values())])

    def _folders(self, index: int) -> tuple[list[str], list[str]]:
        """Return the folders of a tile, and the first parts of its name that would only repeat them."""
        tiles = self.tiles
        split = tiles.split[index] if self.splits and tiles.split is not None else None
        if tiles.label is not None:
            inner = [tiles.label[index] or UNLABELLED]
        elif tiles.slide is not None and tiles.slide[index] is not None:
            inner = tiles.slide[index].split("/")
        else:
            inner = []
        above = [] if split is None else [split]
        return [*above, *inner], [*above, *inner]


class _WebDataset:
    """Tar shards; a tile's files follow each other and share their name up to the first point."""

    def __init__(self, tiles: Tiles, directory: Path, limits: _Limits) -> None:
        self.tiles = tiles
        self.directory = directory
        self.limits = limits
        self.columns = _columns(tiles)
        self.numbers = {label: number for number, label in enumerate(_classes(tiles))}
        self.tar: tarfile.TarFile | None = None
        self.in_shard = self.shard_bytes = self.files = 0

    def __enter__(self) -> _WebDataset:
        if self.numbers:
            lines = "".join(label.replace("\n", " ") + "\n" for label in self.numbers)
            (self.directory / "classes.txt").write_text(lines, encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def add(self, index: int, data: bytes) -> None:
        if self.tar is None:
            # USTAR, the plainest form, is read by everything.
            self.tar = tarfile.open(self.directory / f"{self.files:05d}.tar", "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            self.files += 1
        name = self.tiles.names[index]
        about = {"name": name} | {key: _plain(column[index]) for key, column in self.columns.items()}
        key = f"{index:09d}"
        self._put(key + suffix_of(data, name), data)
        self._put(f"{key}.json", json.dumps(about, ensure_ascii=False).encode())
        label = None if self.tiles.label is None else self.tiles.label[index]
        if label is not None:
            self._put(f"{key}.cls", str(self.numbers[label]).encode())
        self.in_shard += 1
        self.shard_bytes += len(data)
        if self.in_shard >= self.limits.tiles or self.shard_bytes >= self.limits.bytes:
            self._close()

    def _put(self, name: str, data: bytes) -> None:
        # A new TarInfo has no time and belongs to user 0: the same tiles give the same shard.
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        entry.mode = 0o644
        if self.tar is not None:
            self.tar.addfile(entry, io.BytesIO(data))

    def _close(self) -> None:
        if self.tar is not None:
            self.tar.close()
        self.tar = None
        self.in_shard = self.shard_bytes = 0


class _Parquet:
    """Parquet files of a Hugging Face data set, one group of files a split."""

    def __init__(self, tiles: Tiles, directory: Path, limits: _Limits) -> None:
        self.tiles = tiles
        self.directory = directory
        self.classes = _classes(tiles)
        self.columns = _columns(tiles)
        self.schema = _schema(self.columns, self.classes)
        self.limits = limits
        self.shards: dict[str, _ParquetShards] = {}
        self.paths = SafePaths()
        self.numbers = {label: number for number, label in enumerate(self.classes)}
        self.files = 0

    def __enter__(self) -> _Parquet:
        (self.directory / "data").mkdir()
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:
            for shards in self.shards.values():
                stack.callback(shards.close)
        if error[0] is not None:
            return
        for split, shards in sorted(self.shards.items()):
            count = len(shards.paths)
            for number, path in enumerate(shards.paths):
                path.rename(path.with_name(f"{split}-{number:05d}-of-{count:05d}.parquet"))
            self.files += count
        (self.directory / "README.md").write_text(self._card(), encoding="utf-8")

    def add(self, index: int, data: bytes) -> None:
        split = None if self.tiles.split is None else self.tiles.split[index]
        # The names of files and splits that the Hub knows are words.
        known = "train" if self.tiles.split is None else safe_part(split or "unassigned", words=True)
        name = self.tiles.names[index]
        path = self.paths.path([], name, suffix_of(data, name))
        row = {key: _plain(column[index]) for key, column in self.columns.items()}
        label = row.get("label")
        if label is not None:
            row["label"] = self.numbers[str(label)]
        if known not in self.shards:
            self.shards[known] = _ParquetShards(self.directory / "data" / f"{known}-", self.schema, self.limits)
        self.shards[known].add({"image": {"bytes": data, "path": path}, "name": name} | row, len(data))

    def _card(self) -> str:
        files = "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in sorted(self.shards))
        return f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n{len(self.tiles):,} tiles.\n"


class _ParquetShards:
    """The files of one split, which get their names when all are written."""

    def __init__(self, prefix: Path, schema: Any, limits: _Limits) -> None:
        self.prefix = prefix
        self.schema = schema
        self.limits = limits
        self.paths: list[Path] = []
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None
        self._bytes = self._in_shard = self._shard_bytes = 0

    def add(self, row: dict[str, Any], size: int) -> None:
        self._rows.append(row)
        self._bytes += size
        self._in_shard += 1
        self._shard_bytes += size
        if self._bytes >= _GROUP_BYTES or len(self._rows) >= _GROUP_ROWS:
            self._flush()
        if self._in_shard >= self.limits.tiles or self._shard_bytes >= self.limits.bytes:
            self.close()

    def close(self) -> None:
        """Write what waits and close the shard."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        self._in_shard = self._shard_bytes = 0

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            self.paths.append(self.prefix.with_name(f"{self.prefix.name}{len(self.paths):05d}"))
            texts = [field.name for field in self.schema if field.name != "image"]
            # Encoded images neither repeat nor compress, and nobody compares them.
            self._writer = pa.parquet.ParquetWriter(
                self.paths[-1], self.schema, use_dictionary=texts, write_statistics=texts
            )
        self._writer.write_table(pa.Table.from_pylist(self._rows, self.schema))
        self._rows, self._bytes = [], 0


def _schema(columns: dict[str, Any], classes: list[str]) -> Any:
    """Return the schema with the types that `datasets` gives the columns, in the metadata where it looks for them."""
    fields = [
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("name", pa.string()),
    ]
    features: dict[str, Any] = {"image": {"_type": "Image"}, "name": {"dtype": "string", "_type": "Value"}}
    for name, column in columns.items():
        if name == "label":
            fields.append(pa.field(name, pa.int64()))
            features[name] = {"names": classes, "_type": "ClassLabel"}
        else:
            kind = _kind(name, column)
            fields.append(pa.field(name, kind))
            features[name] = {"dtype": "float64" if pa.types.is_floating(kind) else str(kind), "_type": "Value"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _kind(name: str, column: Any) -> Any:
    if column.dtype == object:
        return pa.string()
    known = column[~np.isnan(column)]
    whole = name in ("x", "y") and bool((known == np.floor(known)).all())
    return pa.int64() if whole else pa.float64()


_WRITERS: dict[str, Callable[[Tiles, Path, _Limits], _Writer]] = {
    "folder": _Folder,
    "webdataset": _WebDataset,
    "parquet": _Parquet,
}
