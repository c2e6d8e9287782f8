"""Shards of a tile store, one at a time, and the index over them.

Layout of a store, version 2::

    OUT/store.json           {"format": "eosin-tiles", "version": 2, "tiles": N, "content": hash, "shards": [{"file",
                             "tiles", "bytes"}]}
    OUT/manifest.parquet     one row a tile: name label patient slide split mpp x y level0_width level0_height tissue
                             digest shard row offset length
    OUT/shards/*.arrow       Arrow IPC files, uncompressed: the encoded image, then the manifest from name to tissue

`offset` and `length` say where a tile's encoded image lies in its shard, so that one read fetches it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from eosin.core.files import atomic_file
from eosin.data.digests import DIGEST_BYTES, digest

__all__ = [
    "CONTENT",
    "FORMAT",
    "MANIFEST_SCHEMA",
    "SHARD_SCHEMA",
    "VERSION",
    "ShardWriter",
    "in_shard",
    "shard_entry",
    "write_index",
]

FORMAT = "eosin-tiles"
VERSION = 2
CONTENT = "eosin.content"
"""Under this name the manifest's Parquet metadata hold what store.json says of its content."""

_FIELDS = [
    pa.field("name", pa.string(), nullable=False),
    pa.field("label", pa.string()),
    pa.field("patient", pa.string()),
    pa.field("slide", pa.string()),
    pa.field("split", pa.string()),
    pa.field("mpp", pa.float64()),
    pa.field("x", pa.int64()),
    pa.field("y", pa.int64()),
    pa.field("level0_width", pa.float64()),
    pa.field("level0_height", pa.float64()),
    pa.field("tissue", pa.float64()),
]
SHARD_SCHEMA = pa.schema([pa.field("image", pa.binary(), nullable=False), *_FIELDS])
MANIFEST_SCHEMA = pa.schema(
    [
        *_FIELDS,
        pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
    ]
)

# Images wait in memory until a record batch of this many bytes, or the shard, is full.
_BATCH_BYTES = 32 << 20
# Rows of the manifest are gathered from small shards until a row group has this many.
_GROUP_ROWS = 1 << 16


class ShardWriter:
    """Write one shard to an open binary file.

    Args:
        file: Empty, opened for writing by a descriptor that can also be read ("w+b").
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._writer = pa.ipc.new_file(file, SHARD_SCHEMA)
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._batches: list[Any] = []
        self.tiles = 0
        """Tiles added."""

    def add(self, image: bytes, **columns: Any) -> None:
        """Add a tile: its encoded image and the columns of the manifest from name to tissue, where known."""
        self._pending.append({"image": image, **columns})
        self._pending_bytes += len(image)
        self.tiles += 1
        if self._pending_bytes >= _BATCH_BYTES:
            self._write_batch()

    def _write_batch(self) -> None:
        if not self._pending:
            return
        columns = [_binary([tile["image"] for tile in self._pending])]
        columns += [pa.array([tile.get(field.name) for tile in self._pending], field.type) for field in _FIELDS]
        batch = pa.RecordBatch.from_arrays(columns, schema=SHARD_SCHEMA)
        self._writer.write_batch(batch)
        digests = pa.array([digest(tile["image"]) for tile in self._pending], pa.binary(DIGEST_BYTES))
        self._batches.append((batch.drop_columns(["image"]), digests))
        self._pending, self._pending_bytes = [], 0

    def close(self) -> Any:
        """Finish the shard; the file stays open.

        Returns:
            The shard's rows of the manifest: a pyarrow table whose `shard` is 0.
        """
        self._write_batch()
        self._writer.close()
        self._file.flush()
        tables = []
        row = 0
        places = _places(self._file) if self._batches else []
        for (batch, digests), (offset, length) in zip(self._batches, places, strict=True):
            count = len(batch)
            extra = {
                "digest": digests,
                "shard": pa.array(np.zeros(count, np.int32)),
                "row": pa.array(np.arange(row, row + count, dtype=np.int32)),
                "offset": pa.array(offset),
                "length": pa.array(length),
            }
            columns = [extra.get(name) if name in extra else batch[name] for name in MANIFEST_SCHEMA.names]
            tables.append(pa.RecordBatch.from_arrays(columns, schema=MANIFEST_SCHEMA))
            row += count
        return pa.Table.from_batches(tables, MANIFEST_SCHEMA)


def _binary(images: list[bytes]) -> Any:
    """Make a binary column by one copy of the bytes; `pa.array` copies them as they come, growing as it goes."""
    ends = np.cumsum([0, *map(len, images)], dtype=np.int64).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(images), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(images))])


def _places(file: IO[bytes]) -> list[tuple[Any, Any]]:
    """Return, for each record batch of a shard, where its images begin in the file (int64) and their lengths (int32).

    Read from the written file: Arrow gives columns of a memory map as views of it.
    """
    whole = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    reader = pa.ipc.open_file(whole)
    places = []
    for number in range(reader.num_record_batches):
        column = reader.get_batch(number)["image"]
        _, offsets, data = column.buffers()
        bounds = np.frombuffer(offsets, np.int32, count=len(column) + 1).astype(np.int64)
        start = data.address if data is not None and data.size else whole.address
        places.append((bounds[:-1] + (start - whole.address), np.diff(bounds).astype(np.int32)))
    return places


def write_index(directory: Path, manifest: Iterable[Any], shards: Sequence[dict[str, Any]], **about: Any) -> int:
    """Write a store's manifest and store.json, each whole or not at all, the manifest first.

    Both hold a hash of the tiles and shards, by which a reader notices that it has one of before and one of after.

    Args:
        directory: The store.
        manifest: The shards' rows, shard by shard, as pyarrow tables of `MANIFEST_SCHEMA`.
        shards: file, tiles and bytes of each shard.
        about: What else store.json says.

    Returns:
        The number of tiles.

    Raises:
        EosinError: If the disk is full or not writable.
    """
    tiles = pending = 0
    waiting: list[Any] = []
    content = hashlib.sha256(json.dumps(list(shards)).encode())
    path = directory / "manifest.parquet"
    with atomic_file(path) as file, pa.parquet.ParquetWriter(file, MANIFEST_SCHEMA) as writer:
        for table in manifest:
            tiles += len(table)
            pending += len(table)
            waiting.append(table)
            for chunk in table["digest"].chunks:
                content.update(b"".join(chunk.to_pylist()))
            if pending >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting).combine_chunks())
                waiting, pending = [], 0
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
        writer.add_key_value_metadata({CONTENT: content.hexdigest()})
    said = {"format": FORMAT, "version": VERSION, "tiles": tiles, "content": content.hexdigest(), **about}
    with atomic_file(directory / "store.json", "w") as file:
        file.write(json.dumps(said | {"shards": list(shards)}, indent=1) + "\n")
    return tiles


def in_shard(table: Any, number: int) -> Any:
    """Return a shard's rows of the manifest with the shard's number in the store."""
    place = MANIFEST_SCHEMA.get_field_index("shard")
    column = pa.array(np.full(len(table), number, np.int32))
    return table.set_column(place, MANIFEST_SCHEMA.field(place), column)


def shard_entry(path: Path, tiles: int) -> dict[str, Any]:
    """Return what store.json says of a shard, whose file is complete; syncs nothing."""
    return {"file": path.name, "tiles": tiles, "bytes": os.stat(path).st_size}  # noqa: PTH116 (one system call)
