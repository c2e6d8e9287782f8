"""A benchmark directory as it is found: whether it may be written to, and which of its cells are whole."""

from __future__ import annotations

import json
from pathlib import Path

from eosin.benchmark.cells import CELLS
from eosin.benchmark.galleries import GALLERIES
from eosin.benchmark.maps import MAPS
from eosin.benchmark.record import COMPARISONS, FAILURES, LEADERBOARD, RANKS, RESULTS
from eosin.core.errors import EosinError
from eosin.core.files import storage_errors

__all__ = ["FOLDERS", "check_directory"]

FOLDERS = (CELLS, "predictions", MAPS, GALLERIES)
"""Folders that every benchmark writes to."""

_OURS = {*FOLDERS, "embeddings", "work", RESULTS, LEADERBOARD, COMPARISONS, RANKS, FAILURES}
# Beside which the demo puts its benchmark.
_DEMO = {"run", "tissue"}


def check_directory(out: Path) -> None:
    """Make sure that writing results to a directory replaces nothing but what its cells give again.

    Args:
        out: The directory; it may be absent, empty, or one of an earlier call, stopped at any moment.

    Raises:
        EosinError: If it holds other files and no benchmark, or results whose cells are not there.
    """
    with storage_errors(out):
        if not out.exists():
            return
        found = {path.name for path in out.glob("[!.]*")}
        if found - _DEMO and not found & _OURS:
            raise EosinError(f"{out}: holds other files; choose another --out")
        # Before the cells are listed: another benchmark writes a cell first, and then its record.
        lines = (out / RESULTS).read_bytes().split(b"\n") if RESULTS in found else []
        cells = {path.stem for path in (out / CELLS).glob("*.json")}
    if not all(_is_replaceable(line, cells) for line in lines if line.strip()):
        raise EosinError(
            f"{out}: {RESULTS} holds results whose {CELLS}/ are not there; copy {CELLS}/ and predictions/ too, or "
            "choose another --out"
        )


def _is_replaceable(line: bytes, cells: set[str]) -> bool:
    """Tell whether a line is the record of a cell that is there; one that cannot be read was such a record."""
    try:
        record = json.loads(line)
    except ValueError:
        return bool(cells)
    return isinstance(record, dict) and str(record.get("key")) in cells
