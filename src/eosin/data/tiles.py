"""Tiles at rest: where each image's bytes are, and what is known about it, in columns."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eosin.core.errors import EosinError
from eosin.data.digests import DIGEST_BYTES, digest
from eosin.data.images import Interpolation, UnreadableImage, decode_image, square_image

__all__ = [
    "ByteSource",
    "FileBytes",
    "Names",
    "Tiles",
    "ViewSource",
    "load_square",
    "text_column",
]

Rows = npt.NDArray[np.int64]
TextColumn = npt.NDArray[np.object_]
FloatColumn = npt.NDArray[np.float64]


class Names(Sequence[str]):
    """A column of names: reads like a list of `str`, holds millions at the cost of their letters.

    An integer index gives a `str`; a slice, mask or array of rows gives an object array.
    """

    def __init__(self, names: Any) -> None:
        if not isinstance(names, pa.Array):
            names = pa.array(list(names), pa.large_string())
        self.array = names.cast(pa.large_string())

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | np.integer):
            position = int(key) + (len(self) if key < 0 else 0)
            if not 0 <= position < len(self):
                raise IndexError(f"name {key} of {len(self)}")
            return self.array[position].as_py()
        rows = np.arange(len(self))[key]
        return np.array([*self.array.take(pa.array(rows)).to_pylist(), None], dtype=object)[:-1]

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 65536):
            yield from self.array.slice(start, 65536).to_pylist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        names = np.array([*self, None], dtype=object)[:-1]
        return names if dtype is None else names.astype(dtype)

    def __repr__(self) -> str:
        return f"Names({len(self)}: {', '.join(map(repr, self[:3]))}{', …' if len(self) > 3 else ''})"

    def take(self, rows: Rows) -> Names:
        """Return the names of some rows."""
        return Names(self.array.take(pa.array(rows)))


class ByteSource(Protocol):
    """Where the encoded bytes of tiles are. It travels to the loader's workers, so it pickles small."""

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a tile; raises `UnreadableImage`."""

    def take(self, rows: Rows) -> ByteSource:
        """Return the source of some rows."""

    def digests(self) -> Iterator[bytes]:
        """Yield each tile's `digest`, in order."""


class ViewSource(ABC):
    """A `ByteSource` that makes its tiles' pixels itself, at any size, and in training shows more than the tiles alone.

    A class and no protocol: which of the two a source is, is asked for every tile.
    """

    @abstractmethod
    def read(self, index: int) -> bytes:
        """As `ByteSource.read`."""

    @abstractmethod
    def take(self, rows: Rows) -> ByteSource:
        """As `ByteSource.take`."""

    @abstractmethod
    def digests(self) -> Iterator[bytes]:
        """As `ByteSource.digests`; it need not read the pixels."""

    @abstractmethod
    def square(self, index: int, size: int) -> npt.NDArray[np.uint8]:
        """Return a tile as uint8 [3, size, size]; raises `UnreadableImage`."""

    @abstractmethod
    def view(self, index: int, size: int, uniforms: FloatColumn) -> tuple[npt.NDArray[np.uint8], float]:
        """Return, drawn by float64 [4] in [0, 1), what training sees for a tile, and its µm/px.

        The pixels are uint8 [3, size, size]; raises `UnreadableImage`.
        """


# One process often opens the same folder more than once (tasks, the online probe); the key changes with the file.
_known_digests: dict[tuple[str, int, int], bytes] = {}


class FileBytes:
    """Tiles that are one file each.

    Args:
        root: Folder that relative paths start from.
        paths: Paths, relative to the root or absolute.
    """

    def __init__(self, root: Path, paths: Names) -> None:
        self.root = root
        self.paths = paths

    def path(self, index: int) -> Path:
        """Return the path of a tile's file."""
        return self.root / self.paths[index]

    def read(self, index: int) -> bytes:
        """Return a file's bytes.

        Raises:
            UnreadableImage: If the file cannot be read.
        """
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            raise UnreadableImage(f"cannot be read: {error.strerror}") from None

    def take(self, rows: Rows) -> FileBytes:
        """Return the source of some rows."""
        return FileBytes(self.root, self.paths.take(rows))

    def digests(self) -> Iterator[bytes]:
        """Yield each file's digest, zeros for one that cannot be read."""
        for relative in self.paths:
            path = self.root / relative
            try:
                status = path.stat()
                key = (str(path), status.st_size, status.st_mtime_ns)
                if key not in _known_digests:
                    _known_digests[key] = digest(path.read_bytes())
                yield _known_digests[key]
            except OSError:
                yield bytes(DIGEST_BYTES)


@dataclass(frozen=True, eq=False)
class Tiles:
    """A source of tiles: everything but the pixels, in columns of one length.

    A column is None when it is known for no tile; in the text columns an unknown entry is None, in the others NaN.
    """

    spec: str
    """The string that opens this source."""
    names: Names
    """A stable, unique name a tile: its path under the folder, the manifest's `file`, or the name in the store."""
    source: ByteSource = field(repr=False)
    label: TextColumn | None = None
    patient: TextColumn | None = None
    slide: TextColumn | None = None
    split: TextColumn | None = None
    mpp: FloatColumn | None = None
    """µm/px."""
    x: FloatColumn | None = None
    """Left edge in level-0 px of the slide (or px of the image that the tile was cut from)."""
    y: FloatColumn | None = None
    remarks: tuple[str, ...] = ()
    """What opening the source left out, for the user to see."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        """Return a tile's encoded bytes as stored.

        Raises:
            UnreadableImage: If they cannot be read.
        """
        return self.source.read(int(index))

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Return a tile's pixels: uint8 [3, H, W] RGB.

        Raises:
            UnreadableImage: If it cannot be read or decoded.
        """
        return decode_image(self.read(index), self.names[index])

    def select(self, rows: npt.ArrayLike) -> Tiles:
        """Return the tiles of some rows.

        Args:
            rows: Integers [n] in the order wanted, or bool [N].
        """
        chosen = np.asarray(rows)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        columns: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[chosen]
            for name in ("label", "patient", "slide", "split", "mpp", "x", "y")
        }
        return dataclasses.replace(self, names=self.names.take(chosen), source=self.source.take(chosen), **columns)

    def without_columns(self) -> Tiles:
        """Return the same tiles with names and bytes only, which is what workers need."""
        return dataclasses.replace(
            self, label=None, patient=None, slide=None, split=None, mpp=None, x=None, y=None, remarks=()
        )

    def require_labels(self) -> TextColumn:
        """Return the labels of all tiles.

        Raises:
            EosinError: If there are none, or a tile has none; the message names it.
        """
        if self.label is None:
            raise EosinError(
                f"{self.spec}: the tiles have no labels; give class folders, a `label` column or --label-column"
            )
        missing = np.flatnonzero(self.label == None)  # noqa: E711 (elementwise)
        if len(missing):
            raise EosinError(
                f"{self.spec}: {len(missing):,} of {len(self):,} tiles have an empty label, first "
                f"'{self.names[missing[0]]}' (row {missing[0] + 1}); fill the label or remove the row"
            )
        return self.label

    def content_hash(self) -> str:
        """Return a SHA-256 over the names and encoded bytes of all tiles, in order.

        A folder and a store packed from it without cutting have the same hash.
        """
        known = self.__dict__.get("_content_hash")
        if known is None:
            total = hashlib.sha256()
            for name, value in zip(self.names, self.source.digests(), strict=True):
                total.update(name.encode() + b"\0" + value)
            known = self.__dict__["_content_hash"] = total.hexdigest()
        return str(known)

    def describe(self) -> str:
        """Return one line: how many tiles, from where, and what was left out."""
        count = f"{len(self):,} tile{'' if len(self) == 1 else 's'}"
        return f"{count} from {self.spec}" + (f" ({'; '.join(self.remarks)})" if self.remarks else "")


def load_square(
    tiles: Tiles, index: int, size: int, interpolation: Interpolation = "bilinear"
) -> npt.NDArray[np.uint8]:
    """Read a tile, resize its short side to `size` and cut the central square; see `images.square_image`.

    A source that makes its pixels itself, such as slides, makes them at that size.

    Returns:
        uint8 [3, size, size] RGB.

    Raises:
        UnreadableImage: If it cannot be read or decoded.
    """
    if isinstance(tiles.source, ViewSource):
        return tiles.source.square(int(index), size)
    return square_image(tiles.read(index), size, interpolation)


def text_column(column: Any) -> TextColumn | None:
    """Turn an Arrow text column into an object array that shares equal strings; None when all are null."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column.null_count == len(column):
        return None
    coded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
    values = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    return values[coded.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False).astype(np.int64)]
