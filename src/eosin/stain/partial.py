"""What is measured so far, in a file beside the result, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eosin.core.console import warn
from eosin.core.files import atomic_file

__all__ = ["load_partial", "partial_path", "save_partial"]

Table = npt.NDArray[np.float64]


def partial_path(out: Path) -> Path:
    """Return where the unfinished work for a result is kept: a hidden file beside it."""
    return out.parent / f".{out.name}.partial"


def save_partial(path: Path, key: str, done: int, table: Table, reasons: dict[int, str]) -> None:
    """Write the finished rows; a crash at any moment leaves the old file or the new one.

    Args:
        path: The file.
        key: Identity of the source and the settings.
        done: Rows 0 to done - 1 of the source are finished.
        table: float64 [n, 8], one line a readable tile.
        reasons: Why each of the other rows could not be read.

    Raises:
        EosinError: If the disk is full or the place is not writable.
    """
    from safetensors.numpy import save

    metadata = {
        "format": "eosin stain partial 1",
        "key": key,
        "done": str(done),
        "unreadable": json.dumps({str(row): reason for row, reason in reasons.items()}),
        "sha256": _checksum(table, done),
    }
    with atomic_file(path) as file:
        file.write(save({"table": np.ascontiguousarray(table)}, metadata=metadata))


def load_partial(path: Path, key: str) -> tuple[int, Table, dict[int, str]] | None:
    """Read what `save_partial` wrote; None where there is none, it is another source's, or damaged (with a warning)."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            table = file.get_tensor("table")
        done = int(metadata["done"])
        reasons = {int(row): str(reason) for row, reason in json.loads(metadata["unreadable"]).items()}
        whole = metadata["sha256"] == _checksum(table, done)
        same = metadata["key"] == key
    except (SafetensorError, OSError, KeyError, ValueError, AttributeError):
        whole = same = False
    if whole and same:
        return done, table, reasons
    warn(f"{path}: {'of another source or other settings' if whole else 'damaged'}; measuring all tiles again")
    return None


def _checksum(table: Table, done: int) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(table).data)
    digest.update(str(done).encode())
    return digest.hexdigest()
