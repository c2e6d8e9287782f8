"""What a user says of slides in a table, and which slide a name there means."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from eosin.core.errors import EosinError
from eosin.slides.discover import FoundSlide
from eosin.slides.mpp import COARSEST_MPP, FINEST_MPP

__all__ = ["SlideNames", "given_mpp", "slide_table"]


def names_of(slide: FoundSlide) -> list[str]:
    """Return what a table or a file may call a slide, the most exact first."""
    name = PurePosixPath(slide.name)
    paths = [str(slide.path), os.path.abspath(slide.path)]  # noqa: PTH100 (links stay as they are)
    return list(dict.fromkeys([slide.name, str(name.with_name(slide.path.name)), slide.path.name, name.name, *paths]))


class SlideNames:
    """Finds the slide that a name in a table or folder means."""

    def __init__(self, found: Sequence[FoundSlide]) -> None:
        self._slides: dict[str, list[str]] = {}
        for slide in found:
            for name in names_of(slide):
                self._slides.setdefault(name, []).append(slide.name)

    def find(self, name: str, where: str) -> str | None:
        """Return the slide's name, or None where none is called so.

        Raises:
            EosinError: If several slides are.
        """
        slides = list(dict.fromkeys(self._slides.get(name, [])))
        if name in slides:
            return name
        if len(slides) > 1:
            raise EosinError(f"{where}: '{name}' is the name of {len(slides)} slides; write {' or '.join(slides[:3])}")
        return slides[0] if slides else None


def slide_table(path: Path, column: str, found: Sequence[FoundSlide], remarks: list[str]) -> dict[str, str]:
    """Read a CSV of slide and one more column; empty cells are left out.

    Args:
        path: The file.
        column: The other column.
        found: The slides, which the table may call by name, by file or by path.
        remarks: Where rows that name no slide are told.

    Returns:
        The column's text by the slide's name.

    Raises:
        EosinError: If the file cannot be read or lacks a column, or a row means several slides or contradicts another.
    """
    rows = _rows(path, column)
    names, values, unknown = SlideNames(found), dict[str, str](), list[str]()
    for number, (called, value) in enumerate(rows, start=1):
        if not called or not value:
            continue
        slide = names.find(called, f"{path}: row {number}")
        if slide is None:
            unknown.append(called)
        elif values.setdefault(slide, value) != value:
            raise EosinError(f"{path}: row {number} gives '{called}' a second {column}; keep one")
    if not values and not unknown:
        raise EosinError(f"{path}: no row has both a slide and its {column}; fill in the table")
    if unknown:
        remarks.append(
            f"{path}: {len(unknown):,} rows name no slide given (first '{unknown[0]}'; write '{found[0].name}')"
        )
    return values


def _rows(path: Path, column: str) -> list[tuple[str, str]]:
    """Return the cells of the columns slide and `column`; capitals and spaces around names do not matter.

    Raises:
        EosinError: If the file cannot be read, or lacks one of them.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except UnicodeDecodeError:
        raise EosinError(f"{path}: not a readable CSV (its text is not UTF-8); save it as CSV UTF-8") from None
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise EosinError(f"{path}: not a readable CSV ({reason})") from None
    present = [name.strip() for name in rows[0]] if rows else []
    places = []
    for wanted in ("slide", column):
        fitting = [place for place, name in enumerate(present) if name.lower() == wanted]
        if not fitting:
            parted = len(present) == 1 and re.search(r"[;\t|]", present[0])
            fix = "; part them by commas, and write numbers with a point" if parted else ""
            columns = ", ".join(map(repr, present)) or "none"
            raise EosinError(f"{path}: no column '{wanted}'; its columns: {columns}{fix}")
        places.append(fitting[0])
    # A row may be shorter than the header.
    return [
        (cells[places[0]].strip(), cells[places[1]].strip())
        for cells in ([*row, *[""] * len(present)] for row in rows[1:])
    ]


def given_mpp(
    found: Sequence[FoundSlide], given: str | None, where: str, remarks: list[str]
) -> tuple[float | None, dict[str, float]]:
    """Return the µm/px that a user gave for slides whose file says none, and of slides by name, whatever theirs say.

    Args:
        found: The slides.
        given: A number for the former, or a CSV with the columns slide and mpp for the latter.
        where: What to name in an error, such as the option.
        remarks: Where rows that name no slide are told.

    Raises:
        EosinError: If it is neither, a row is faulty, or a value is not between 0.05 and 20 µm/px.
    """
    if given is None:
        return None, {}
    if not given.lower().endswith(".csv"):
        return _number(given, where), {}
    table = slide_table(Path(given).expanduser(), "mpp", found, remarks)
    return None, {name: _number(value, f"{given}: mpp of '{name}'", "") for name, value in table.items()}


def _number(text: str, where: str, else_a: str = " nor a .csv of slide,mpp") -> float:
    try:
        value = float(text)
    except ValueError:
        raise EosinError(f"{where}: '{text}' is {'neither' if else_a else 'not'} a number{else_a}") from None
    if not (math.isfinite(value) and FINEST_MPP <= value <= COARSEST_MPP):
        raise EosinError(f"{where}: {text} µm/px is not between {FINEST_MPP:g} and {COARSEST_MPP:g}")
    return value
