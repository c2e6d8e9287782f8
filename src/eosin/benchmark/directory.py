"""A benchmark directory as it is found: whether it may be written to, and which of its cells are whole."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.benchmark.cells import CELLS
from eosin.benchmark.galleries import GALLERIES
from eosin.benchmark.maps import MAPS
from eosin.benchmark.reading import check_record
from eosin.benchmark.record import COMPARISONS, FAILURES, LEADERBOARD, RANKS, RESULTS, Record, is_nuclei
from eosin.core.errors import EosinError
from eosin.core.files import storage_errors
from eosin.evaluate.cells import load_cells

__all__ = ["FOLDERS", "check_directory", "is_drawn", "load_done"]

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
            f"{out}: {RESULTS} holds results whose {CELLS}/ are not there; copy {CELLS}/ and predictions/ too, choose "
            f"another --out, or, to give them up, remove {RESULTS}"
        )


def _is_replaceable(line: bytes, cells: set[str]) -> bool:
    """Tell whether a line is the record of a cell that is there; one that cannot be read was such a record."""
    try:
        record = json.loads(line)
    except ValueError:
        return bool(cells)
    return isinstance(record, dict) and str(record.get("key")) in cells


_TEXTS = ("key", "fingerprint", "task_hash", "grouping", "predictions", "created")


def load_done(out: Path) -> dict[str, Record]:
    """Read the cells that are done by their keys; a damaged one, or one without whole predictions, is not done.

    Args:
        out: The directory, locked.
    """
    return load_cells(out, CELLS, partial(_check_done, out))


def _check_done(out: Path, record: dict[str, Any]) -> None:
    try:
        check_record(record, "")
    except EosinError as error:
        raise ValueError from error
    if not all(isinstance(record[name], str) for name in _TEXTS) or not isinstance(record["classes"], list):
        raise ValueError
    needed = {"name", "group"}
    if not is_nuclei(record):
        needed |= {"truth", "predicted", *(f"p_{name}" for name in record["classes"])}
    if not needed <= _columns(out / record["predictions"]):
        raise ValueError


def is_drawn(path: Path) -> bool:
    """Tell whether a map or gallery is there and not cut short."""
    try:
        return bool(_columns(path))
    except (OSError, ValueError):
        return False


def _columns(path: Path) -> set[str]:
    """Return the columns of a Parquet file from its end, which a file that was cut short lacks.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is damaged.
    """
    try:
        return {*pq.read_schema(path).names}
    except pa.ArrowException as error:
        raise ValueError from error
