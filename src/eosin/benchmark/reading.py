"""The files of a benchmark directory, read: every line is whole and has the fields that their readers need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from eosin.benchmark.record import (
    COMPARISONS,
    FAILURES,
    LEADERBOARD,
    RANKS,
    RESULTS,
    Comparison,
    Failure,
    Ranking,
    Record,
    Standing,
    identity,
    version_of,
)
from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines

__all__ = [
    "check_record",
    "read_comparisons",
    "read_failures",
    "read_leaderboard",
    "read_ranks",
    "read_results",
]

_NEEDED = ("encoder", "task", "protocol", "seed", "metrics", "n_test")


def read_results(out: Path) -> list[Record]:
    """Read OUT/results.jsonl.

    Args:
        out: The benchmark directory.

    Returns:
        The records, in file order; at least one.

    Raises:
        EosinError: If the file is missing, empty, damaged, or a line lacks a field.
    """
    path = out / RESULTS
    if not path.is_file():
        raise EosinError(f"{path}: not found; run `eosin benchmark --out {out}` first")
    records = _read_lines(path)
    if not records:
        raise EosinError(f"{path}: holds no results; run `eosin benchmark --out {out}` again")
    for number, record in enumerate(records, start=1):
        check_record(record, f"{path}: line {number}")
    return cast(list[Record], records)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        # Each is written at once, from files that are still there.
        return read_json_lines(path, whole=True, fix="run the same `eosin benchmark` again")
    except (OSError, UnicodeDecodeError) as error:
        raise EosinError(f"{path}: cannot be read ({error})") from None


def check_record(record: dict[str, Any], where: str) -> None:
    """Make sure that a record has what no reader of results can do without; one without a fraction gets it.

    Args:
        record: The record.
        where: The file and the line, for the error.

    Raises:
        EosinError: If a field is missing or of another type.
    """
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise EosinError(f"{where}: field '{missing[0]}' is missing; remove that line and run the benchmark again")
    metrics = record["metrics"]
    whole = isinstance(metrics, dict) and bool(metrics)
    if not whole or not all(isinstance(e, dict) and {"value", "low", "high"} <= e.keys() for e in metrics.values()):
        raise EosinError(f"{where}: field 'metrics' must map names to value, low and high; remove that line")
    if not all(
        isinstance(e[end], (int, float, type(None))) for e in metrics.values() for end in ("value", "low", "high")
    ):
        raise EosinError(f"{where}: field 'metrics' must hold numbers or null; remove that line")
    if not isinstance(record["n_test"], int):
        raise EosinError(f"{where}: field 'n_test' must be a whole number; remove that line")
    _check_identity(record, where)


def _check_identity(record: dict[str, Any], where: str) -> None:
    """Refuse a line that does not say what it is about; an old one without a fraction is about all labels."""
    record.setdefault("fraction", 1.0)
    try:
        names = identity(record)[:3]
        version_of(record)
    except KeyError as missing:
        raise EosinError(f"{where}: field {missing} is missing; remove that line") from None
    except (ValueError, TypeError):
        raise EosinError(
            f"{where}: fields 'fraction', 'seed' and 'protocol_version' must be numbers; remove that line"
        ) from None
    if not all(isinstance(name, str) for name in names):
        raise EosinError(f"{where}: fields 'encoder', 'task' and 'protocol' must be text; remove that line")


def read_leaderboard(out: Path) -> list[Standing]:
    """Read OUT/leaderboard.jsonl; an absent file holds none, and lines that lack a field are left out."""
    return cast(list[Standing], _fitting(out / LEADERBOARD, _STANDING, None))


def read_comparisons(out: Path, missing: list[str] | None = None) -> list[Comparison]:
    """Read OUT/comparisons.jsonl; an absent file holds none, and lines that lack a field are left out.

    Args:
        out: The benchmark directory.
        missing: Gets a sentence on lines left out.

    Raises:
        EosinError: If the file is damaged.
    """
    return cast(list[Comparison], _fitting(out / COMPARISONS, _COMPARISON, missing))


def read_ranks(out: Path, missing: list[str] | None = None) -> list[Ranking]:
    """Read OUT/ranks.jsonl; an absent file holds none, and lines that lack a field are left out.

    Args:
        out: The benchmark directory.
        missing: Gets a sentence on lines left out.

    Raises:
        EosinError: If the file is damaged.
    """
    return cast(list[Ranking], _fitting(out / RANKS, _RANKING, missing))


Fits = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _list_of(fits: Fits) -> Fits:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and all(_or_none(_number)(value.get(end, "")) for end in ("value", "low", "high"))


_PLACE: dict[str, Fits] = {"task": _text, "protocol": _text, "fraction": _number}
_STANDING: dict[str, Fits] = {
    **_PLACE,
    "encoder": _text,
    "seeds": _list_of(_number),
    "metrics": lambda value: isinstance(value, dict) and all(map(_is_estimate, value.values())),
    "cells": _list_of(_text),
}
_COMPARISON: dict[str, Fits] = {
    **_PLACE,
    **dict.fromkeys(("metric", "encoder", "reference", "grouping"), _text),
    **dict.fromkeys(("difference", "p", "p_holm", "n_groups"), _number),
    **dict.fromkeys(("low", "high"), _or_none(_number)),
    "seeds": _list_of(_number),
    "cells": _list_of(_text),
}
_RANKING: dict[str, Fits] = {
    "protocol": _text,
    "fraction": _number,
    "metric": _text,
    "tasks": _list_of(_text),
    "encoders": _list_of(lambda entry: isinstance(entry, dict) and _text(entry.get("encoder"))),
}
_MORE: dict[str, Fits] = {
    "friedman": _or_none(lambda value: isinstance(value, dict)),
    "cliques": _or_none(_list_of(_list_of(_text))),
    "reason": _or_none(_text),
}
"""Fields that a line may lack."""


def _fitting(path: Path, needed: Mapping[str, Fits], missing: list[str] | None) -> list[dict[str, Any]]:
    """Read the lines whose fields are there and of their types."""
    lines = _read_lines(path)
    whole = [
        line
        for line in lines
        if all(name in line and fits(line[name]) for name, fits in needed.items())
        and all(fits(line.get(name)) for name, fits in _MORE.items())
    ]
    if missing is not None and len(whole) < len(lines):
        count = len(lines) - len(whole)
        lack = "line lacks a field or has" if count == 1 else "lines lack a field or have"
        missing.append(f"{path}: {count} {lack} a wrong one; left out")
    return whole


def read_failures(out: Path) -> list[Failure]:
    """Read OUT/failures.jsonl: the cells that have no result; an absent file holds none.

    Raises:
        EosinError: If a line is damaged or does not say which cell it is about.
    """
    failures = _read_lines(out / FAILURES)
    for number, failure in enumerate(failures, start=1):
        where = f"{out / FAILURES}: line {number}"
        _check_identity(failure, where)
        if not _text(failure.setdefault("reason", "not recorded")):
            raise EosinError(f"{where}: field 'reason' must be text; remove that line")
    return cast(list[Failure], failures)
