"""A CSV or Parquet list of images as a source."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from eosin.core.errors import EosinError, nearest
from eosin.data.tiles import FileBytes, FloatColumn, Names, Tiles, text_column

__all__ = ["open_manifest"]

UNKNOWN = ("", "nan", "NaN", "NA", "N/A", "null", "NULL")
TEXT = ("patient", "slide", "split")
NUMBERS = ("mpp", "x", "y")


def open_manifest(path: Path, label_column: str) -> Tiles:
    """Open a manifest: a column `file`, and any of label, patient, slide, split, mpp (µm/px), x, y.

    Files are relative to the manifest's folder, or absolute. Empty cells and nan, NA, N/A, null are unknown. Rows are
    counted from 1, without the header.

    Raises:
        EosinError: If the manifest cannot be read, lacks `file` or a label column asked for by another name than
            "label", names no file, names a file that does not exist, or lists a file twice with different values.
    """
    table, columns = _read(path, label_column)
    if len(table) == 0:
        raise EosinError(f"{path}: no rows below the header")
    files = _text(table["file"])
    if files.null_count:
        row = int(np.flatnonzero(files.is_null().to_numpy(zero_copy_only=False))[0])
        raise EosinError(f"{path}: row {row + 1} has no `file`; fill it or remove the row")
    texts = {name: _text(table[name]) for name in (label_column, *TEXT) if name in columns}
    numbers = {name: _numbers(table[name], name, path) for name in NUMBERS if name in columns}
    files = _normal(files)
    keep = _first_of_each(files, texts, numbers, path)
    remarks: tuple[str, ...] = ()
    if len(keep) < len(files):
        remarks = (f"{len(files) - len(keep):,} row(s) that repeat an earlier row in full were merged",)
        files = files.take(pa.array(keep))
        texts = {name: column.take(pa.array(keep)) for name, column in texts.items()}
        numbers = {name: column[keep] for name, column in numbers.items()}
    names = Names(files)
    _check_files(path, names, keep)
    known = {name: text_column(column) for name, column in texts.items()}
    measured = {name: None if np.isnan(column).all() else column for name, column in numbers.items()}
    return Tiles(
        spec=f"csv:{path}",
        names=names,
        source=FileBytes(path.parent, names),
        label=known.get(label_column),
        patient=known.get("patient"),
        slide=known.get("slide"),
        split=known.get("split"),
        mpp=measured.get("mpp"),
        x=measured.get("x"),
        y=measured.get("y"),
        remarks=remarks,
    )


def _read(path: Path, label_column: str) -> tuple[Any, list[str]]:
    """Return the table of the columns in use, and their names."""
    if not path.is_file():
        raise EosinError(f"{path}: no such file")
    parquet = path.suffix.lower() == ".parquet"
    try:
        if parquet:
            present = pa.parquet.read_schema(path).names
        else:
            with pa.csv.open_csv(path) as reader:
                present = reader.schema.names
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None
    if "file" not in present:
        raise EosinError(f"{path}: no column 'file'; its columns: {', '.join(present)}; rename the one with the paths")
    if label_column not in present and label_column != "label":
        raise EosinError(
            f"{path}: no column '{label_column}'; {nearest(label_column, present)} (columns: {', '.join(present)})"
        )
    columns = [name for name in dict.fromkeys(("file", label_column, *TEXT, *NUMBERS)) if name in present]
    twice = [name for name in columns if present.count(name) > 1]
    if twice:
        raise EosinError(f"{path}: column '{twice[0]}' appears twice; rename one")
    try:
        if parquet:
            return pa.parquet.read_table(path, columns=columns), columns
        options = pa.csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.large_string()),
            strings_can_be_null=True,
            null_values=list(UNKNOWN),
        )
        return pa.csv.read_csv(path, convert_options=options), columns
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> EosinError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, PermissionError):
        fix = "change its permissions"
    elif path.stat().st_size == 0:
        fix = "write a header with the column 'file', and a row an image"
    elif "UTF8" in reason:
        fix = "save it as UTF-8"
    elif path.suffix.lower() == ".parquet":
        fix = "write it again"
    else:
        fix = "correct that line: every row needs as many values as the header"
    return EosinError(f"{path}: not a readable manifest ({reason}); {fix}")


def _text(column: Any) -> Any:
    """Return a column as one trimmed text array in which every unknown is null."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        # pandas stores whole numbers beside an empty cell as 1.0.
        column = pc.if_else(pc.is_finite(column), column, None)
        if pc.all(pc.equal(pc.floor(column), column), min_count=0).as_py():
            column = column.cast(pa.int64())
    column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    return pc.if_else(pc.is_in(column, pa.array(UNKNOWN, pa.large_string())), None, column)


def _numbers(column: Any, name: str, path: Path) -> FloatColumn:
    """Return a column as float64, NaN where unknown."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            values = column.cast(pa.float64())
        else:
            values = _text(column).cast(pa.float64())
    except pa.ArrowInvalid:
        for row, text in enumerate(_text(column).to_pylist(), start=1):
            try:
                float(text or 0)
            except ValueError:
                raise EosinError(f"{path}: row {row}: {name} '{text}' is not a number") from None
        raise
    numbers: FloatColumn = values.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return numbers


def _normal(files: Any) -> Any:
    """Bring paths to one spelling, so that `./a.jpg` and `a.jpg` are one file."""
    odd = pc.match_substring_regex(files, r"(^|/)\.{1,2}(/|$)|//")
    if not pc.any(odd).as_py():
        return files
    return pa.array([os.path.normpath(name) for name in files.to_pylist()], pa.large_string())


def _placed(files: Any, root: Path) -> Any:
    """Name files so that two spellings of one are equal: `a.jpg`, `../tiles/a.jpg` and `/data/tiles/a.jpg`.

    Links are followed for folders alone, each asked for once: a million files are too many to ask for.
    """
    folders = pc.dictionary_encode(pc.replace_substring_regex(files, r"[^/]*$", ""))
    places = [os.path.realpath(root / folder) for folder in folders.dictionary.to_pylist()]
    if len(set(places)) == len(places):
        return files
    leaves = pc.replace_substring_regex(files, r"(?s)^.*/", "")
    above = pa.array(places, pa.large_string()).take(folders.indices)
    return pc.binary_join_element_wise(above, leaves, pa.scalar("/", pa.large_string()))


def _first_of_each(files: Any, texts: dict[str, Any], numbers: dict[str, FloatColumn], path: Path) -> Any:
    """Return the rows that list a file for the first time; repeated rows must agree with them."""
    codes = pc.dictionary_encode(_placed(files, path.parent)).indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    if len(first) == len(codes):
        return first
    repeats = np.setdiff1d(np.arange(len(codes)), first)
    for row in repeats:
        earlier = int(first[codes[row]])
        values = {name: (column[earlier].as_py(), column[int(row)].as_py()) for name, column in texts.items()}
        values |= {name: (column[earlier], column[row]) for name, column in numbers.items()}
        for name, (old, new) in values.items():
            if old != new and not (old != old and new != new):
                one, other = files[earlier].as_py(), files[int(row)].as_py()
                spelled = "" if one == other else f" (as '{other}')"
                raise EosinError(
                    f"{path}: rows {earlier + 1} and {row + 1} both list '{one}'{spelled} but differ in '{name}' "
                    f"({old} and {new}); keep one"
                )
    return np.sort(first)


def _check_files(path: Path, names: Names, rows: Any) -> None:
    """Make sure that the listed files exist, reading each folder once rather than asking for each file."""
    wanted: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for position, name in enumerate(names):
        folder, _, leaf = name.rpartition("/")
        wanted[f"{folder}/" if name.startswith("/") else folder].append((position, leaf))
    missing: list[int] = []
    for folder, leaves in wanted.items():
        try:
            present = set(os.listdir(path.parent / folder))  # noqa: PTH208 (names, not a million paths)
        except (FileNotFoundError, NotADirectoryError):
            present = set()
        except OSError as error:
            raise EosinError(f"{path.parent / folder}: cannot be read ({error.strerror})") from None
        missing += [position for position, leaf in leaves if leaf not in present]
    if missing:
        first = min(missing)
        raise EosinError(
            f"{path}: {len(missing):,} of {len(names):,} listed files do not exist, first '{names[first]}' "
            f"(row {int(rows[first]) + 1}, sought in {path.parent}); correct the paths or remove the rows"
        )
