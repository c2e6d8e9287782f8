"""The tile store: Arrow IPC shards with the images, a Parquet manifest of everything else; see `shards`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from eosin.core.errors import EosinError, nearest
from eosin.core.files import atomic_directory, storage_errors
from eosin.data.shards import CONTENT, FORMAT, SHARD_SCHEMA, VERSION, ShardWriter, in_shard, shard_entry, write_index
from eosin.data.tiles import FloatColumn, Names, Rows, Tiles, text_column

__all__ = ["StoreBytes", "StoreWriter", "is_store", "open_store"]

# Each open shard holds a file descriptor; systems commonly allow 1,024 a process.
_OPEN_SHARDS = 256

# How often, and after how many seconds, a store is looked at again that is being written just now.
_TRIES, _PAUSE = 20, 0.25


class StoreWriter:
    """Write a tile store; nothing is at `out` before the `with` block ends, and nothing is left of it on an error.

    Args:
        out: The store's directory; must not exist yet, or be empty.
        shard_tiles: Tiles a shard.

    Raises:
        EosinError: If `out` holds something, the disk is full, no tile was added or two have the same name.
    """

    def __init__(self, out: Path, shard_tiles: int = 4096) -> None:
        self.out = Path(out)
        self.shard_tiles = shard_tiles
        self.directory = self.out
        """Where the store is being written; a file put here becomes part of it."""
        self._stack = contextlib.ExitStack()
        self._manifest: list[Any] = []
        self._shards: list[dict[str, Any]] = []
        self._file: Any = None
        self._writer: ShardWriter | None = None

    def __enter__(self) -> StoreWriter:
        self.directory = self._stack.enter_context(atomic_directory(self.out))
        (self.directory / "shards").mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._stack:
                    self._finish()
        finally:
            if self._file is not None:
                self._file.close()
            self._stack.__exit__(kind, error, trace)

    def add(
        self,
        image: bytes,
        *,
        name: str,
        label: str | None = None,
        patient: str | None = None,
        slide: str | None = None,
        split: str | None = None,
        mpp: float | None = None,
        x: int | None = None,
        y: int | None = None,
        level0_width: float | None = None,
        level0_height: float | None = None,
        tissue: float | None = None,
    ) -> None:
        """Add a tile.

        Args:
            image: The encoded image, stored as it is.
            name: Unique in the store.
            label: Class name.
            patient: Patient.
            slide: Slide or image that it was cut from.
            split: train, val or test.
            mpp: µm/px of the stored image.
            x: Left edge in level-0 px of the slide.
            y: Upper edge in level-0 px of the slide.
            level0_width: Width of what it shows in level-0 px of the slide.
            level0_height: Height of what it shows in level-0 px of the slide.
            tissue: Share of the tile covered by tissue, 0 to 1.
        """
        with storage_errors(self.out):
            if self._writer is None:
                path = self.directory / "shards" / f"{len(self._shards):05d}.arrow"
                self._file = open(path, "w+b")  # noqa: SIM115 (closed with the shard)
                self._writer = ShardWriter(self._file)
            self._writer.add(
                image,
                name=name,
                label=label,
                patient=patient,
                slide=slide,
                split=split,
                mpp=mpp,
                x=x,
                y=y,
                level0_width=level0_width,
                level0_height=level0_height,
                tissue=tissue,
            )
            if self._writer.tiles >= self.shard_tiles:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        path = Path(self._file.name)
        table = self._writer.close()
        os.fsync(self._file.fileno())
        self._file.close()
        self._manifest.append(in_shard(table, len(self._shards)))
        self._shards.append(shard_entry(path, len(table)))
        self._file = self._writer = None

    def _finish(self) -> None:
        self._close_shard()
        if not self._manifest:
            raise EosinError(f"{self.out}: no tile to write; the store is not made")
        names = pa.concat_tables([table.select(["name"]) for table in self._manifest])["name"].combine_chunks()
        if pc.count_distinct(names).as_py() < len(names):
            twice = next(entry["values"] for entry in pc.value_counts(names).to_pylist() if entry["counts"] > 1)
            raise EosinError(f"{self.out}: two tiles are named '{twice}'; names must be unique in a store")
        write_index(self.directory, self._manifest, self._shards)


def is_store(path: Path) -> bool:
    """Tell whether a directory is a tile store."""
    return (path / "manifest.parquet").is_file() and (path / "shards").is_dir()


def open_store(path: Path, label_column: str) -> Tiles:
    """Open a tile store; the images stay on disk.

    Raises:
        EosinError: If it is no store, of a newer version, incomplete or damaged, or lacks the label column.
    """
    for _ in range(_TRIES):
        content, shards = _checked_shards(path)
        try:
            with pa.parquet.ParquetFile(path / "manifest.parquet") as manifest:
                present = manifest.schema_arrow.names
                if label_column not in present:
                    texts = [name for name in present if name in SHARD_SCHEMA.names]
                    raise EosinError(f"{path}: no column '{label_column}'; {nearest(label_column, texts)}")
                known = ("patient", "slide", "split", "mpp", "x", "y", "shard", "row", "offset", "length")
                wanted = dict.fromkeys(("name", label_column, *known))
                same = _content(manifest) == content
                table = manifest.read(list(wanted)).combine_chunks() if same else None
        except (OSError, pa.ArrowInvalid) as error:
            raise EosinError(f"{path}/manifest.parquet: damaged ({error}); copy or pack the store again") from None
        if table is not None:
            break
        # A run that adds to the store is between its two renames.
        time.sleep(_PAUSE)
    else:
        raise EosinError(f"{path}: store.json and manifest.parquet are not of one store; run what makes it again")
    where = {name: table[name].to_numpy() for name in ("shard", "row", "offset", "length")}
    return Tiles(
        spec=f"store:{path}",
        names=Names(table["name"].combine_chunks()),
        source=StoreBytes(path, shards, content, **where),
        label=text_column(table[label_column].cast(pa.string())),
        patient=text_column(table["patient"]),
        slide=text_column(table["slide"]),
        split=text_column(table["split"]),
        mpp=_numbers(table["mpp"]),
        x=_numbers(table["x"]),
        y=_numbers(table["y"]),
    )


def _content(manifest: Any) -> str | None:
    """Return the hash of the tiles and shards that a manifest, a ParquetFile, belongs to."""
    value = (manifest.metadata.metadata or {}).get(CONTENT.encode())
    return None if value is None else value.decode()


def _checked_shards(path: Path) -> tuple[str | None, list[str]]:
    """Return the hash of the content and the shards' file names, after comparing the files with what store.json says.

    Stores made before there was a hash have none.
    """
    about_path = path / "store.json"
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
        version, shards = int(about["version"]), list(about["shards"])
        expected = {str(shard["file"]): int(shard["bytes"]) for shard in shards}
    except FileNotFoundError:
        raise EosinError(f"{path}: no tile store (store.json is missing); make one with `eosin data pack`") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise EosinError(f"{about_path}: damaged; copy or pack the store again") from None
    if about.get("format") != FORMAT or version != VERSION:
        fix = "pack it again" if version < VERSION else "update eosin"
        raise EosinError(
            f"{about_path}: format {about.get('format')} version {version}, this eosin reads {FORMAT} version "
            f"{VERSION}; {fix}"
        )
    for name, size in expected.items():
        try:
            found = (path / "shards" / name).stat().st_size
        except OSError:
            raise EosinError(f"{path}/shards/{name}: missing; copy or pack the store again") from None
        if found != size:
            raise EosinError(f"{path}/shards/{name}: {found:,} bytes instead of {size:,}; copy or pack the store again")
    return about.get("content"), list(expected)


def _numbers(column: Any) -> FloatColumn | None:
    numbers: FloatColumn = (
        column.combine_chunks().cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    )
    return None if np.isnan(numbers).all() else numbers


class StoreBytes:
    """Random access to the images of a store: one read a tile, from a bounded number of open shards.

    Args:
        path: The store.
        shards: File names of the shards.
        content: Hash of the store's content, if it has one.
        shard: int32 [N], each tile's shard.
        row: int32 [N], each tile's row in its shard.
        offset: int64 [N], where its image begins in the shard's file.
        length: int32 [N], bytes of its image.
    """

    def __init__(
        self,
        path: Path,
        shards: list[str],
        content: str | None = None,
        *,
        shard: npt.NDArray[np.int32],
        row: npt.NDArray[np.int32],
        offset: npt.NDArray[np.int64],
        length: npt.NDArray[np.int32],
    ) -> None:
        self.path = path
        self.shards = shards
        self.content = content
        self.shard = shard
        self.row = row
        self.offset = offset
        self.length = length
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, index: int) -> bytes:
        """Return a tile's encoded bytes.

        Raises:
            EosinError: If the shard is missing or cut short.
        """
        number, length = int(self.shard[index]), int(self.length[index])
        file = self._open.get(number) or self._opened(number)
        data = os.pread(file.number, length, int(self.offset[index]))
        if len(data) != length:
            raise EosinError(f"{self.path}/shards/{self.shards[number]}: damaged; copy or pack the store again")
        return data

    def take(self, rows: Rows) -> StoreBytes:
        """Return the source of some rows."""
        columns = {name: getattr(self, name)[rows] for name in ("shard", "row", "offset", "length")}
        return StoreBytes(self.path, self.shards, self.content, **columns)

    def digests(self) -> Iterator[bytes]:
        """Yield each tile's digest, as recorded when the store was written."""
        with pa.parquet.ParquetFile(self.path / "manifest.parquet") as manifest:
            if _content(manifest) != self.content:
                raise EosinError(f"{self.path}: the store changed since it was opened; run the command again")
            table = manifest.read(["shard", "row", "digest"])
        values = table["digest"].combine_chunks()
        key = table["shard"].to_numpy().astype(np.int64) << 32 | table["row"].to_numpy()
        order = np.argsort(key)
        wanted = self.shard.astype(np.int64) << 32 | self.row
        places = order[np.searchsorted(key[order], wanted)]
        for start in range(0, len(places), 65536):
            yield from values.take(pa.array(places[start : start + 65536])).to_pylist()

    def _opened(self, number: int) -> _Descriptor:
        path = self.path / "shards" / self.shards[number]
        try:
            file = self._open[number] = _Descriptor(os.open(path, os.O_RDONLY))
        except OSError as error:
            raise EosinError(f"{path}: {error.strerror}; copy or pack the store again") from None
        if len(self._open) > _OPEN_SHARDS:
            # The one opened first: an exact order of use would cost as much as opening again.
            self._open.popitem(last=False)
        return file


class _Descriptor:
    """A file descriptor that is closed with its object."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.number)
