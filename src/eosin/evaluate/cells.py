"""Finished cells as files: what makes a command that was stopped go on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eosin.core.console import warn
from eosin.core.files import atomic_file

__all__ = ["load_cells", "save_cell"]


def save_cell(out: Path, folder: str, record: Mapping[str, Any]) -> None:
    """Write a cell's record as `out/folder/KEY.json`, whole or not at all.

    Raises:
        EosinError: If the disk is full or the place is not writable.
    """
    with atomic_file(out / folder / f"{record['key']}.json", "w") as file:
        json.dump(record, file, ensure_ascii=False, indent=1)


def load_cells(out: Path, folder: str, identify: Callable[[Any], object]) -> dict[str, Any]:
    """Read the cells that are done; a damaged one, or one whose predictions are gone, is not done.

    What a killed process left half written in the directory and its folders is removed.

    Args:
        out: The output directory, locked.
        folder: Where in it the cells are.
        identify: Names what a record is about; raises KeyError or TypeError for one that lacks it.

    Returns:
        Records by key.
    """
    for part in [*out.glob(".*.jsonl.*.part"), *out.glob("*/.*.part")]:
        part.unlink(missing_ok=True)
    cells: dict[str, Any] = {}
    for path in sorted((out / folder).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            identify(record)
            whole = (out / record["predictions"]).is_file() and record["key"] == path.stem and record["created"]
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            cells[path.stem] = record
        else:
            warn(f"{path}: damaged or without its predictions; computing this cell again")
    return cells
