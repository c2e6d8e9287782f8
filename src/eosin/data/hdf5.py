"""Tiles in HDF5 files: images of one size in a data set [N, H, W, 3], as PatchCamelyon is published.

Such a file is read lazily, and each process opens it once: an open costs more than a tile, and a handle that was opened
before a fork must not be used after it. h5py is the extra `h5`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.data.digests import DIGEST_BYTES, digest
from eosin.data.images import UnreadableImage

__all__ = ["HDF5File", "HDF5Images", "h5py_module", "open_hdf5", "read_hdf5"]

# How much of a file its identity is made of: blocks at equal distances, the first and the last among them.
_SAMPLES, _SAMPLE_BYTES = 256, 4096

# HDF5 keeps chunks it has unpacked; a loader reads neighbours one after the other.
_CHUNK_CACHE = 16 * 2**20

Rows = npt.NDArray[np.int64]

# One handle for each file and process: (path, identity) -> its images.
_handles: dict[tuple[str, str], Any] = {}
_owner = os.getpid()


@dataclass(frozen=True)
class HDF5File:
    """A file of images, checked on opening.

    Attributes:
        path: The file.
        key: Name of the data set of images in it.
        count: Number of images.
        identity: 32 hexadecimal digits over size, shape and blocks at equal distances over the whole file.
    """

    path: Path
    key: str
    count: int
    identity: str


def h5py_module() -> ModuleType:
    """Return h5py.

    Raises:
        EosinError: If it is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise EosinError("HDF5 files need h5py: pip install 'eosin[h5]'") from None
    module: ModuleType = h5py
    return module


def _opened(path: Path) -> Any:
    h5py = h5py_module()
    try:
        # No lock: network file systems often have none, and the files are only read.
        return h5py.File(path, "r", locking=False, rdcc_nbytes=_CHUNK_CACHE)
    except OSError as error:
        raise EosinError(_why(path, error)) from None


def _why(path: Path, error: OSError) -> str:
    if not path.exists():
        return f"{path}: no such file"
    if not os.access(path, os.R_OK):
        return f"{path}: cannot be read; change its permissions"
    if "truncated" in str(error):
        return f"{path}: the HDF5 file is cut short ({path.stat().st_size:,} bytes are there); get it again"
    return f"{path}: not a readable HDF5 file ({str(error).splitlines()[0]}); get it again"


def open_hdf5(path: Path, key: str, size: tuple[int, int]) -> HDF5File:
    """Open a file of images and check what it holds; no image is read.

    Args:
        path: The file.
        key: Name of its data set, uint8 [N, H, W, 3].
        size: Width and height in px that the images must have.

    Raises:
        EosinError: If h5py is missing, or the file is absent, cut short, no HDF5 file, or holds something else.
    """
    with _opened(path) as file:
        found = _own(file, path, key)
        shape = tuple(getattr(found, "shape", ()))
        kind = str(getattr(found, "dtype", "nothing"))
        if shape[1:] != (size[1], size[0], 3) or kind != "uint8":
            there = ", ".join(sorted(file)) or "nothing"
            raise EosinError(
                f"{path}: expected '{key}' as uint8 [N, {size[1]}, {size[0]}, 3], found {kind} {list(shape)} "
                f"(the file holds {there}); get it again"
            )
    return HDF5File(path, key, int(shape[0]), _identity(path, shape))


def read_hdf5(path: Path, key: str) -> npt.NDArray[Any]:
    """Read a whole data set, such as labels.

    Raises:
        EosinError: As `open_hdf5`.
    """
    with _opened(path) as file:
        found = _own(file, path, key)
        if getattr(found, "shape", None) is None:
            if found is not None and key in file:
                raise EosinError(f"{path}: '{key}' holds no values; get it again")
            raise EosinError(f"{path}: no data set '{key}' (it holds {', '.join(sorted(file)) or 'nothing'})")
        try:
            values: npt.NDArray[Any] = found[()]
        except OSError as error:
            raise EosinError(_why(path, error)) from None
        return values


def _own(file: Any, path: Path, key: str) -> Any:
    """Return what a file holds under a name, None if nothing.

    Raises:
        EosinError: If it is a link, or its values lie in another file: any file of this machine could be read so.
    """
    link = file.get(key, getlink=True) if key in file.keys() else None  # noqa: SIM118 (follows no link)
    found = file[key] if isinstance(link, h5py_module().HardLink) else None
    elsewhere = getattr(found, "is_virtual", False) or getattr(found, "external", None)
    if elsewhere or (link is not None and found is None):
        raise EosinError(f"{path}: '{key}' leads to another file or place; the file is not to be trusted, get it again")
    return found


def _identity(path: Path, shape: tuple[int, ...]) -> str:
    size = path.stat().st_size
    total = hashlib.sha256(f"{size} {shape}".encode())
    with open(path, "rb") as file:
        for start in np.linspace(0, max(0, size - _SAMPLE_BYTES), _SAMPLES).astype(np.int64).tolist():
            file.seek(start)
            total.update(file.read(_SAMPLE_BYTES))
    return total.hexdigest()[: 2 * DIGEST_BYTES]


class HDF5Images:
    """Tiles in one or more HDF5 files, one after the other: a `ByteSource`.

    A tile's bytes are its pixels behind a header of the PPM format, which every decoder of images reads without loss or
    work. The digests, from which cache keys are made, come from a file's size, shape and 1 MiB of samples of it, so
    that 7 GB need not be read each time: they are the same for every copy of a file, but do not see a change between
    the samples. A checksum of the whole file does.

    Args:
        files: The files.
        rows: int64 [N], images counted over all files; all of them if not given.
    """

    def __init__(self, files: Sequence[HDF5File], rows: Rows | None = None) -> None:
        self.files = tuple(files)
        self.rows = np.arange(sum(file.count for file in self.files)) if rows is None else rows
        self._ends = np.cumsum([file.count for file in self.files])

    def read(self, index: int) -> bytes:
        """Return a tile as a PPM image.

        Raises:
            UnreadableImage: If the file cannot be read there.
        """
        file, place = self._place(index)
        try:
            pixels = _images(file)[place]
        except (OSError, EosinError) as error:
            reason = str(error).splitlines()[0]
            raise UnreadableImage(f"image {place} of {file.path} cannot be read ({reason})") from None
        height, width = pixels.shape[:2]
        return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()

    def take(self, rows: Rows) -> HDF5Images:
        """Return the source of some rows."""
        return HDF5Images(self.files, self.rows[rows])

    def digests(self) -> Iterator[bytes]:
        """Yield a digest of each tile: of its file's identity and its place there."""
        numbers = np.searchsorted(self._ends, self.rows, side="right")
        starts = self._ends - [file.count for file in self.files]
        heads = [f"{file.identity} {file.key} " for file in self.files]
        for number, place in zip(numbers.tolist(), (self.rows - starts[numbers]).tolist(), strict=True):
            yield digest(f"{heads[number]}{place}".encode())

    def _place(self, index: int) -> tuple[HDF5File, int]:
        row = int(self.rows[index])
        number = int(np.searchsorted(self._ends, row, side="right"))
        file = self.files[number]
        return file, row - int(self._ends[number]) + file.count


def _images(file: HDF5File) -> Any:
    """Return this process's handle of a file's images."""
    global _owner
    if _owner != os.getpid():
        # The parent's: their state was copied in the middle of whatever it did.
        _handles.clear()
        _owner = os.getpid()
    key = (str(file.path), file.identity)
    if key not in _handles:
        _handles[key] = _opened(file.path)[file.key]
    return _handles[key]
