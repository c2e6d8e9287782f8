"""By what a slide that was replaced is told from the one that was cut."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

__all__ = ["file_identity", "file_state"]

# Of each file, this much is hashed at its beginning, middle and end.
_SAMPLE = 1 << 20


def file_state(path: Path) -> tuple[int, int]:
    """Return a slide's bytes and when it was last changed, in ns.

    Raises:
        OSError: If it is gone or cannot be looked at.
    """
    states = [file.stat() for file in _files(path)]
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


def file_identity(path: Path) -> dict[str, Any]:
    """Return a slide's size, time and a hash of samples of its files, by which a replaced file is noticed.

    Raises:
        OSError: If it is gone or cannot be read.
    """
    size, modified = file_state(path)
    total = hashlib.sha256(str(size).encode())
    for part in _files(path):
        length = part.stat().st_size
        with open(part, "rb") as file:
            for start in (0, max(0, length // 2 - _SAMPLE // 2), max(0, length - _SAMPLE)):
                file.seek(start)
                total.update(file.read(_SAMPLE))
    return {"bytes": size, "modified_ns": modified, "sample_sha256": total.hexdigest()}


def _files(path: Path) -> list[Path]:
    """Return a slide's own file and, of a MIRAX slide, the files with its pixels."""
    folder = path.with_suffix("")
    if path.suffix.lower() != ".mrxs" or not folder.is_dir():
        return [path]
    return [path, *sorted(file for file in folder.iterdir() if file.is_file())]
