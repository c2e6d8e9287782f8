"""Bytes by key, in memory up to a limit and in a file beyond."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

__all__ = ["Shelf"]


class Shelf:
    """Maps of single windows, by key: in memory up to a limit, beyond in a file that ends with the process.

    Args:
        limit: Bytes kept in memory.
        folder: Where the file goes.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        self._room = limit
        self._folder = folder
        self._here: dict[object, bytes] = {}
        self._there: dict[object, tuple[int, int]] = {}
        self._free: list[int] = []
        self._end = 0
        self._file: IO[bytes] | None = None

    def __contains__(self, key: object) -> bool:
        return key in self._here or key in self._there

    def __len__(self) -> int:
        return len(self._here) + len(self._there)

    def put(self, key: object, data: bytes) -> None:
        """Keep bytes, all of one length, under a key that is not taken."""
        if len(data) <= self._room:
            self._room -= len(data)
            self._here[key] = data
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (it ends with the process)
        place = self._free.pop() if self._free else self._end
        self._end = max(self._end, place + len(data))
        self._file.seek(place)
        self._file.write(data)
        self._there[key] = place, len(data)

    def get(self, key: object) -> bytes | None:
        """Return the bytes of a key, None where there are none."""
        if key in self._here:
            return self._here[key]
        if key not in self._there or self._file is None:
            return None
        place, length = self._there[key]
        self._file.seek(place)
        return self._file.read(length)

    def drop(self, key: object) -> None:
        """Forget a key."""
        if key in self._here:
            self._room += len(self._here.pop(key))
        elif key in self._there:
            self._free.append(self._there.pop(key)[0])
