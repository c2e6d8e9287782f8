"""The tile store: Arrow IPC shards with the images, a Parquet manifest of everything else.

Layout of a store, version 1::

    OUT/store.json           {"format": "eosin-tiles", "version": 1, "tiles": N, "shards": [{"file", "tiles", "bytes"}]}
    OUT/manifest.parquet     one row a tile: name label patient slide split mpp x y tissue digest shard row
    OUT/shards/00000.arrow   Arrow IPC file, uncompressed: the encoded image, then the manifest from name to tissue
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet

from eosin.core.errors import EosinError, nearest
from eosin.core.files import atomic_directory, storage_errors
from eosin.data.tiles import DIGEST_BYTES, FloatColumn, Names, Rows, Tiles, digest, text_column

__all__ = ["StoreBytes", "StoreWriter", "is_store", "open_store"]

FORMAT = "eosin-tiles"
VERSION = 1

_FIELDS = [
    pa.field("name", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("patient", pa.string()),
    pa.field("slide", pa.string()),
    pa.field("split", pa.string()),
    pa.field("mpp", pa.float64()),
    pa.field("x", pa.int64()),
    pa.field("y", pa.int64()),
    pa.field("tissue", pa.float64()),
]
_SHARD_SCHEMA = pa.schema([pa.field("image", pa.binary(), nullable=False), *_FIELDS])
_MANIFEST_SCHEMA = pa.schema(
    [
        *_FIELDS,
        pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)

# Images wait in memory until a record batch of this many bytes, or the shard, is full.
_BATCH_BYTES = 32 << 20
# Each open shard holds a file descriptor; systems commonly allow 1,024 a process.
_OPEN_SHARDS = 256


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
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._manifest: list[Any] = []
        self._shards: list[dict[str, Any]] = []
        self._file: Any = None
        self._writer: Any = None
        self._in_shard = 0

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
            tissue: Share of the tile covered by tissue, 0 to 1.
        """
        self._pending.append(
            {
                "image": image,
                "name": name,
                "label": label,
                "patient": patient,
                "slide": slide,
                "split": split,
                "mpp": mpp,
                "x": x,
                "y": y,
                "tissue": tissue,
            }
        )
        self._pending_bytes += len(image)
        full = self._in_shard + len(self._pending) >= self.shard_tiles
        if full or self._pending_bytes >= _BATCH_BYTES:
            with storage_errors(self.out):
                self._write_batch()
                if full:
                    self._close_shard()

    def _write_batch(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            name = f"{len(self._shards):05d}.arrow"
            self._file = open(self.directory / "shards" / name, "wb")  # noqa: SIM115 (closed with the shard)
            self._writer = pa.ipc.new_file(self._file, _SHARD_SCHEMA)
        batch = pa.RecordBatch.from_pylist(self._pending, _SHARD_SCHEMA)
        self._writer.write_batch(batch)
        count = len(self._pending)
        extra = {
            "digest": pa.array([digest(tile["image"]) for tile in self._pending], pa.binary(DIGEST_BYTES)),
            "shard": pa.array(np.full(count, len(self._shards), np.int32)),
            "row": pa.array(np.arange(self._in_shard, self._in_shard + count, dtype=np.int32)),
        }
        columns = [extra.get(name) if name in extra else batch[name] for name in _MANIFEST_SCHEMA.names]
        self._manifest.append(pa.RecordBatch.from_arrays(columns, schema=_MANIFEST_SCHEMA))
        self._in_shard += count
        self._pending, self._pending_bytes = [], 0

    def _close_shard(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        path = Path(self._file.name)
        self._file.close()
        self._shards.append({"file": path.name, "tiles": self._in_shard, "bytes": path.stat().st_size})
        self._file = self._writer = None
        self._in_shard = 0

    def _finish(self) -> None:
        self._write_batch()
        self._close_shard()
        if not self._manifest:
            raise EosinError(f"{self.out}: no tile to write; the store is not made")
        table = pa.Table.from_batches(self._manifest, _MANIFEST_SCHEMA)
        names = table["name"].combine_chunks()
        if pc.count_distinct(names).as_py() < len(names):
            twice = next(entry["values"] for entry in pc.value_counts(names).to_pylist() if entry["counts"] > 1)
            raise EosinError(f"{self.out}: two tiles are named '{twice}'; names must be unique in a store")
        pa.parquet.write_table(table, self.directory / "manifest.parquet")
        about = {"format": FORMAT, "version": VERSION, "tiles": len(table), "shards": self._shards}
        (self.directory / "store.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def is_store(path: Path) -> bool:
    """Tell whether a directory is a tile store."""
    return (path / "manifest.parquet").is_file() and (path / "shards").is_dir()


def open_store(path: Path, label_column: str) -> Tiles:
    """Open a tile store; the images stay on disk.

    Raises:
        EosinError: If it is no store, of a newer version, incomplete or damaged, or lacks the label column.
    """
    shards = _checked_shards(path)
    try:
        present = pa.parquet.read_schema(path / "manifest.parquet").names
        if label_column not in present:
            texts = [name for name in present if name in _SHARD_SCHEMA.names]
            raise EosinError(f"{path}: no column '{label_column}'; {nearest(label_column, texts)}")
        wanted = dict.fromkeys(("name", label_column, "patient", "slide", "split", "mpp", "x", "y", "shard", "row"))
        table = pa.parquet.read_table(path / "manifest.parquet", columns=list(wanted)).combine_chunks()
    except (OSError, pa.ArrowInvalid) as error:
        raise EosinError(f"{path}/manifest.parquet: damaged ({error}); copy or pack the store again") from None
    where = [table[name].to_numpy().astype(np.int32) for name in ("shard", "row")]
    return Tiles(
        spec=f"store:{path}",
        names=Names(table["name"].combine_chunks()),
        source=StoreBytes(path, shards, where[0], where[1]),
        label=text_column(table[label_column].cast(pa.string())),
        patient=text_column(table["patient"]),
        slide=text_column(table["slide"]),
        split=text_column(table["split"]),
        mpp=_numbers(table["mpp"]),
        x=_numbers(table["x"]),
        y=_numbers(table["y"]),
    )


def _checked_shards(path: Path) -> list[str]:
    """Return the shards' file names after comparing the files with what the store says of them."""
    about_path = path / "store.json"
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
        version, shards = int(about["version"]), list(about["shards"])
        expected = {str(shard["file"]): int(shard["bytes"]) for shard in shards}
    except FileNotFoundError:
        raise EosinError(f"{path}: no tile store (store.json is missing); make one with `eosin data pack`") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise EosinError(f"{about_path}: damaged; copy or pack the store again") from None
    if about.get("format") != FORMAT or version > VERSION:
        raise EosinError(
            f"{about_path}: format {about.get('format')} version {version}, this eosin reads {FORMAT} up to {VERSION}; "
            "update eosin"
        )
    for name, size in expected.items():
        try:
            found = (path / "shards" / name).stat().st_size
        except OSError:
            raise EosinError(f"{path}/shards/{name}: missing; copy or pack the store again") from None
        if found != size:
            raise EosinError(f"{path}/shards/{name}: {found:,} bytes instead of {size:,}; copy or pack the store again")
    return list(expected)


def _numbers(column: Any) -> FloatColumn | None:
    numbers: FloatColumn = (
        column.combine_chunks().cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    )
    return None if np.isnan(numbers).all() else numbers


class StoreBytes:
    """Random access to the images of a store through memory maps.

    Args:
        path: The store.
        shards: File names of the shards.
        shard: int32 [N], each tile's shard.
        row: int32 [N], each tile's row in its shard.
    """

    def __init__(self, path: Path, shards: list[str], shard: npt.NDArray[np.int32], row: npt.NDArray[np.int32]) -> None:
        self.path = path
        self.shards = shards
        self.shard = shard
        self.row = row
        self._open: OrderedDict[int, tuple[Any, npt.NDArray[np.int64]]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}

    def read(self, index: int) -> bytes:
        """Return a tile's encoded bytes.

        Raises:
            EosinError: If the shard is damaged.
        """
        number, row = int(self.shard[index]), int(self.row[index])
        chunks, starts = self._shard(number)
        try:
            chunk = int(np.searchsorted(starts, row, side="right")) - 1
            return bytes(chunks[chunk][row - int(starts[chunk])].as_py())
        except (IndexError, pa.ArrowInvalid):
            raise EosinError(f"{self.path}/shards/{self.shards[number]}: damaged; copy or pack it again") from None

    def take(self, rows: Rows) -> StoreBytes:
        """Return the source of some rows."""
        return StoreBytes(self.path, self.shards, self.shard[rows], self.row[rows])

    def digests(self) -> Iterator[bytes]:
        """Yield each tile's digest, as recorded when the store was written."""
        table = pa.parquet.read_table(self.path / "manifest.parquet", columns=["shard", "row", "digest"])
        values = table["digest"].combine_chunks()
        key = table["shard"].to_numpy().astype(np.int64) << 32 | table["row"].to_numpy()
        order = np.argsort(key)
        wanted = self.shard.astype(np.int64) << 32 | self.row
        places = order[np.searchsorted(key[order], wanted)]
        for start in range(0, len(places), 65536):
            yield from values.take(pa.array(places[start : start + 65536])).to_pylist()

    def _shard(self, number: int) -> tuple[Any, npt.NDArray[np.int64]]:
        """Return the record batches' image columns of a shard and the row at which each begins."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        path = self.path / "shards" / self.shards[number]
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            chunks = table["image"].chunks
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise EosinError(f"{path}: damaged ({error}); copy or pack the store again") from None
        starts = np.cumsum([0, *map(len, chunks)])[:-1]
        self._open[number] = (chunks, starts)
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return chunks, starts
