"""Nuclei as a table: a row each, where it lies, how large it is, of what type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from eosin.core.files import atomic_file
from eosin.nuclei.found import Nuclei

__all__ = ["TableFormat", "write_table"]

TableFormat = Literal["parquet", "csv"]


def write_table(
    parts: Iterable[Nuclei],
    path: Path,
    *,
    step: tuple[float, float] = (1.0, 1.0),
    mpp: float | None = None,
    classes: Sequence[str] = (),
    form: TableFormat = "parquet",
) -> None:
    """Write nuclei, part by part; the file is there whole or not at all.

    Columns: `id` (as in the label map, from 1), `x`, `y` (center, px of level 0, the corner of its first pixel at
    (0, 0)), `x_um`, `y_um`, `area_px` (px as the network saw the image), `area_um2`, `type` (0 where a nucleus's pixels
    say background, null without types), `class` (the type's name), `probability`, `left`, `top`, `right`, `bottom` (its
    box, px of level 0).

    Args:
        parts: The nuclei.
        path: The file.
        step: px of level 0 per px of the nuclei, along x and y.
        mpp: µm/px of the nuclei's px; None leaves columns in µm empty.
        classes: Types 1 to n by name.
        form: Of the file.

    Raises:
        EosinError: If the file cannot be written.
    """
    import pyarrow.csv
    import pyarrow.parquet

    schema = _schema()
    with atomic_file(path) as file:
        if form == "csv":
            writer: Any = pyarrow.csv.CSVWriter(file, schema)
        else:
            writer = pyarrow.parquet.ParquetWriter(file, schema, compression="zstd")
        with writer:
            for columns in _columns(parts, step, mpp, classes):
                writer.write_table(pyarrow.table(columns, schema=schema))


def _schema() -> Any:
    import pyarrow as pa

    places = [(name, pa.float64()) for name in ("x", "y", "x_um", "y_um")]
    sizes = [("area_px", pa.int64()), ("area_um2", pa.float64())]
    kinds = [("type", pa.int64()), ("class", pa.string()), ("probability", pa.float64())]
    box = [(name, pa.float64()) for name in ("left", "top", "right", "bottom")]
    return pa.schema([("id", pa.int64()), *places, *sizes, *kinds, *box])


def _columns(
    parts: Iterable[Nuclei], step: tuple[float, float], mpp: float | None, classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    first = 1
    names = ["background", *classes]
    scale = np.array(step)
    for part in parts:
        count = len(part)
        if not count:
            continue
        # Centers are counted from the middle of the first pixel; a place on the slide from its corner.
        middle = part.centroids + 0.5
        place = middle * scale
        box = part.boxes * np.tile(scale, 2)
        unknown = [None] * count
        typed = part.types >= 0
        columns: dict[str, Any] = {"id": np.arange(first, first + count)}
        columns |= {"x": place[:, 0], "y": place[:, 1]}
        columns |= {"x_um": unknown, "y_um": unknown, "area_px": part.areas, "area_um2": unknown}
        if mpp is not None:
            columns |= {"x_um": middle[:, 0] * mpp, "y_um": middle[:, 1] * mpp, "area_um2": part.areas * mpp * mpp}
        columns["type"] = [kind if known else None for kind, known in zip(part.types.tolist(), typed, strict=True)]
        columns["class"] = [
            None if kind < 0 else names[kind] if kind < len(names) else f"type {kind}" for kind in part.types.tolist()
        ]
        columns |= {"probability": part.probabilities}
        columns |= {name: box[:, at] for at, name in enumerate(("left", "top", "right", "bottom"))}
        yield columns
        first += count
