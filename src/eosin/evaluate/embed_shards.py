"""What an encoder made of tiles, in parts of fixed rows: each a file that is whole or absent, none computed twice.

A folder holds, of one (encoder, tiles, transform), the files ``00003-of-00017.safetensors``, counted from 0. Which rows
a part has depends on the number of tiles alone; so parts of any process, machine or attempt fit together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from eosin.core.console import warn
from eosin.core.errors import EosinError, StorageError
from eosin.core.files import atomic_file, directory_held, writable_directory

__all__ = ["Layout", "Part", "PartStore", "mapped_tensors", "read_tensors", "write_tensors"]

Array = npt.NDArray[Any]

PART_TILES = 1024
"""Tiles of a part: at most so many are computed again after a kill."""

_MOST_PARTS = 4096
_FORMAT = "eosin embeddings part 1"
_NAME = re.compile(r"\d{5}-of-\d{5}\.safetensors")
_DTYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Layout:
    """How rows are divided.

    Attributes:
        total: Number of tiles.
        tiles: Tiles of every part but the last.
    """

    total: int
    tiles: int

    @classmethod
    def of(cls, total: int) -> Layout:
        """Return parts of 1,024 tiles; of more, a multiple, where there would be above 4,096 parts."""
        return cls(total, PART_TILES * max(1, -(-total // (PART_TILES * _MOST_PARTS))))

    def __len__(self) -> int:
        """Return the number of parts."""
        return -(-self.total // self.tiles)

    def span(self, number: int) -> tuple[int, int]:
        """Return a part's first row and the one after its last."""
        return number * self.tiles, min((number + 1) * self.tiles, self.total)

    def of_job(self, shard: tuple[int, int] | None) -> list[int]:
        """Return the parts that are job i's of n: every n-th, from the i-th; all of them without a shard.

        Raises:
            EosinError: If there is no such job.
        """
        if shard is None:
            return list(range(len(self)))
        number, count = shard
        if not 0 <= number < count:
            raise EosinError(f"shard {number}/{count}: i must be from 0 to n - 1, such as 0/8 for the first of 8 jobs")
        return list(range(number, len(self), count))


@dataclass(frozen=True, eq=False)
class Part:
    """What came of the rows of one part.

    Attributes:
        number: Its place, from 0.
        rows: int64 [m], the rows that could be read, ascending.
        arrays: By name, [m, ...] each: "features" float32 [m, D], or maps [m, C, h, w].
        unreadable: Reason of each other row.
        batch: Tiles per forward pass that it was made with.
    """

    number: int
    rows: npt.NDArray[np.int64]
    arrays: dict[str, Array]
    unreadable: dict[int, str]
    batch: int


class PartStore:
    """The parts in a folder.

    Args:
        folder: Where they are; None keeps them in memory.
        key: Identity of what they hold.
        layout: How the rows are divided.
    """

    def __init__(self, folder: Path | None, key: str, layout: Layout) -> None:
        self.folder = folder
        self.key = key
        self.layout = layout
        self._held: dict[int, Part] = {}

    def path(self, number: int) -> Path:
        """Return where a part is, on disk.

        Raises:
            ValueError: If the parts are in memory.
        """
        if self.folder is None:
            raise ValueError("parts in memory have no path")
        return self.folder / f"{number:05d}-of-{len(self.layout):05d}.safetensors"

    def save(self, part: Part) -> None:
        """Keep a part; its file appears whole.

        Raises:
            StorageError: If it cannot be written; the message says what is kept.
        """
        if self.folder is None:
            self._held[part.number] = part
            return
        metadata = self._about(part.number) | {
            "batch": str(part.batch),
            "unreadable": json.dumps({str(row): reason for row, reason in part.unreadable.items()}),
        }
        path = self.path(part.number)
        try:
            writable_directory(path.parent)
            with atomic_file(path) as file:
                write_tensors(file, {"rows": part.rows, **part.arrays}, metadata)
        except StorageError as error:
            raise StorageError(
                f"{error}; the {len(self.finished()):,} of {len(self.layout):,} parts that are done are kept there, "
                "and the same command goes on from them"
            ) from error

    def finished(self) -> list[int]:
        """Return the parts that are there by their names and headers; what they hold is checked by `load`."""
        if self.folder is None:
            return sorted(self._held)
        return [number for number in range(len(self.layout)) if self._header(number) is not None]

    def batch(self) -> int | None:
        """Return the batch size of the first part there is; the others are made with the same, for the same bits."""
        for number in self.finished():
            header = self._header(number)
            if header is not None:
                return int(header["batch"])
        return None

    def load(self, number: int) -> Part | None:
        """Read a part; None where it is not there or damaged, after a warning; a damaged file is removed."""
        if self.folder is None:
            return self._held.get(number)
        path = self.path(number)
        if not path.is_file():
            return None
        with contextlib.suppress(OSError, KeyError, ValueError, TypeError):
            metadata, arrays = read_tensors(path)
            if metadata.items() >= self._about(number).items():
                unreadable = {int(row): str(reason) for row, reason in json.loads(metadata["unreadable"]).items()}
                return Part(number, arrays.pop("rows"), arrays, unreadable, int(metadata["batch"]))
        warn(f"{path}: damaged; computing this part again")
        path.unlink(missing_ok=True)
        return None

    def unreadable(self, number: int) -> dict[int, str]:
        """Return the rows of a finished part that could not be read, with the reasons."""
        if self.folder is None:
            return self._held[number].unreadable
        header = self._header(number) or {"unreadable": "{}"}
        return {int(row): str(reason) for row, reason in json.loads(header["unreadable"]).items()}

    def foreign(self) -> Path | None:
        """Return a part in the folder that belongs to something else; None if there is none."""
        if self.folder is None or not self.folder.is_dir():
            return None
        own = {self.path(number).name for number in self.finished()}
        others = (path for path in sorted(self.folder.iterdir()) if _NAME.fullmatch(path.name))
        return next((path for path in others if path.name not in own and _readable(path)), None)

    @contextlib.contextmanager
    def held(self, shard: tuple[int, int] | None) -> Iterator[None]:
        """Hold the folder, alone or with the other jobs of an array; in memory there is nothing to hold.

        Raises:
            EosinError: If another process is at work there.
        """
        if self.folder is None:
            yield
            return
        writable_directory(self.folder)
        with directory_held(self.folder, shard):
            yield

    def remove(self) -> None:
        """Remove the parts and their folder; for the process that holds it alone."""
        self._held.clear()
        if self.folder is None or not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name) or path.name.startswith(".lock") or path.name.endswith(".part"):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _about(self, number: int) -> dict[str, str]:
        first, last = self.layout.span(number)
        return {
            "format": _FORMAT,
            "key": self.key,
            "part": f"{number} of {len(self.layout)}",
            "span": f"{first}:{last} of {self.layout.total}",
        }

    def _header(self, number: int) -> dict[str, str] | None:
        path = self.path(number)
        with contextlib.suppress(OSError, KeyError, ValueError, TypeError):
            metadata, _, _ = _header_of(path)
            if metadata.items() >= self._about(number).items():
                return metadata
        return None


def _readable(path: Path) -> bool:
    with contextlib.suppress(OSError, KeyError, ValueError, TypeError):
        _header_of(path)
        return True
    return False


def _checksum(arrays: Mapping[str, Array], order: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name in order or arrays:
        digest.update(arrays[name].data if arrays[name].size else b"")
    return digest.hexdigest()


def write_tensors(
    file: IO[bytes], arrays: Mapping[str, Array], metadata: Mapping[str, str], order: Sequence[str] = ()
) -> None:
    """Write a safetensors file, array by array, without a second copy of them in memory.

    The metadata gain "sha256", over the arrays' bytes.

    Args:
        file: Where to.
        arrays: int64, float32 or float16; int64 first keeps all aligned.
        metadata: What the header says besides.
        order: In which the arrays enter the checksum, if not in that of the file.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, array in contiguous.items():
        entry = {"dtype": _CODES[array.dtype], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        header[name] = entry
        end += array.nbytes
    header["__metadata__"] = {**metadata, "sha256": _checksum(contiguous, order)}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)))
    file.write(text)
    for array in contiguous.values():
        if array.size:
            file.write(array.data)


def _header_of(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]], int]:
    """Read a safetensors header: metadata, the tensors' entries, and where their bytes begin.

    Raises:
        ValueError: If it is damaged, or the file is shorter or longer than it says.
        OSError: If it cannot be read.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise ValueError("cut short")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("no header")
    metadata = header.pop("__metadata__", {})
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError("cut short")
    return metadata, header, 8 + length


def mapped_tensors(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    """Map a file written by `write_tensors` into memory: metadata, and arrays that are read as they are used.

    Raises:
        ValueError: If its header is damaged or it is cut short; the arrays' checksum is not looked at.
        OSError: If it cannot be read.
    """
    metadata, header, start = _header_of(path)
    arrays: dict[str, Array] = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        offset = start + entry["data_offsets"][0]
        empty = 0 in shape
        arrays[name] = np.empty(shape, dtype) if empty else np.memmap(path, dtype, "r", offset, shape)
    return metadata, arrays


def read_tensors(path: Path, order: Sequence[str] = ()) -> tuple[dict[str, str], dict[str, Array]]:
    """Read a file written by `write_tensors` whole, and compare its checksum.

    Args:
        path: The file.
        order: That of `write_tensors`.

    Raises:
        ValueError: If it is not what was written.
        OSError: If it cannot be read.
    """
    metadata, mapped = mapped_tensors(path)
    arrays = {name: np.array(array) for name, array in mapped.items()}
    if _checksum(arrays, order) != metadata["sha256"]:
        raise ValueError("another checksum")
    return metadata, arrays
