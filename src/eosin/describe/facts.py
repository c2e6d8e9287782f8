"""A description in tables of words, for the terminal and the page alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.augment.spaces import CHANNELS
from eosin.describe.columns import Coded
from eosin.describe.duplicates import Duplicates
from eosin.describe.fingerprints import DISTANCE
from eosin.describe.run import BLACK_SHARE, BLANK, WHITE_SHARE, Description
from eosin.describe.sharpness import BLURRED
from eosin.describe.words import (
    DASH,
    bytes_of,
    decimal,
    listed,
    number,
    percent,
    share,
    signed,
    significant,
    spread,
    tiles_of,
)

__all__ = ["Section", "sections"]

_MOST_DISTINCT = 5
_MOST_LABELS = 20


@dataclass(frozen=True)
class Section:
    """A table with what is to be said of it.

    Attributes:
        name: For links.
        title: Heading.
        head: Column headings; empty for pairs of a name and a value.
        rows: Cells; all but the first of a row are numbers, unless there is no head.
        note: Below the table.
    """

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def sections(description: Description) -> list[Section]:
    """Return the tables, in reading order, those with nothing to show left out."""
    found = [
        _tiles(description),
        _labels(description),
        _quality(description),
        _copies(description),
        _stain(description),
        _compared(description),
        _unreadable(description),
    ]
    return [section for section in found if section is not None]


def _tiles(description: Description) -> Section:
    columns, measured = description.columns, description.measured
    rows = [
        ("tiles", number(description.total)),
        ("looked at", _looked_at(description)),
        ("size", _sizes(description)),
        ("resolution", _resolution(description)),
        ("extent", _extent(description)),
        ("files", listed(Counter(measured.kinds).most_common())),
        ("bytes", _bytes(description)),
    ]
    rows += [(f"{name}s", _origin(column)) for name, column in (("slide", columns.slide), ("patient", columns.patient))]
    rows += [("left out", remark) for remark in description.remarks]
    return Section("tiles", "Tiles", (), tuple(rows))


def _looked_at(description: Description) -> str:
    text = "all" if description.asked == description.total else number(description.asked)
    unreadable = description.measured.unreadable.count
    return text + (
        f", {number(unreadable)} of them unreadable ({share(unreadable, description.asked)})" if unreadable else ""
    )


def _sizes(description: Description) -> str:
    width, height = description.measured.column("width"), description.measured.column("height")
    sizes = Counter(zip(width.astype(int).tolist(), height.astype(int).tolist(), strict=True))
    if len(sizes) <= _MOST_DISTINCT:
        return listed([(f"{w} × {h} px", count) for (w, h), count in sizes.most_common()], _MOST_DISTINCT)
    return f"width {spread(width, 'px')}; height {spread(height, 'px')}"


def _resolution(description: Description) -> str:
    mpp = description.columns.mpp
    if mpp is None:
        return "unknown"
    known = mpp[np.isfinite(mpp)]
    text = _numbers(known, "µm/px")
    unknown = len(mpp) - len(known)
    return text + (f"; unknown for {tiles_of(unknown)}" if unknown else "")


def _numbers(values: npt.NDArray[np.float64], unit: str) -> str:
    """List few distinct values with their counts, or say where many lie."""
    # 0.4990 and 0.49904 are one resolution: four digits count.
    scale = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(values), 1e-12))) - 3)
    distinct, counts = np.unique(np.round(np.round(values / scale) * scale, 12), return_counts=True)
    if len(distinct) > _MOST_DISTINCT:
        return spread(values, unit)
    order = np.argsort(-counts, kind="stable").tolist()
    return listed([(f"{significant(distinct[place])} {unit}", int(counts[place])) for place in order], _MOST_DISTINCT)


def _extent(description: Description) -> str:
    """Return the tiles' sides in µm, of those whose resolution is known."""
    if description.columns.mpp is None:
        return DASH
    mpp = description.columns.mpp[description.measured.rows]
    width, height = (description.measured.column(name) * mpp for name in ("width", "height"))
    known = np.isfinite(width)
    pairs = Counter(zip(np.round(width[known], 1).tolist(), np.round(height[known], 1).tolist(), strict=True))
    if len(pairs) <= _MOST_DISTINCT:
        entries = [(f"{significant(w)} × {significant(h)} µm", count) for (w, h), count in pairs.most_common()]
        return listed(entries, _MOST_DISTINCT)
    return f"width {spread(width, 'µm')}; height {spread(height, 'µm')}"


def _bytes(description: Description) -> str:
    sizes = description.measured.column("bytes")
    if description.copies is None:
        return "made while they are read"
    if description.sizes is not None:
        total = bytes_of(description.sizes.total)
    elif len(sizes):
        total = f"about {bytes_of(float(sizes.mean()) * description.total)}"
    else:
        return DASH
    return total + (f", {bytes_of(float(np.median(sizes)))} a tile in the median" if len(sizes) else "")


def _origin(column: Coded | None) -> str:
    if column is None:
        return "unknown"
    counts = column.counts
    text = (
        f"{number(len(counts))}, of {decimal(float(np.median(counts)), 0)} tiles in the median "
        f"({number(int(counts.min()))} to {number(int(counts.max()))})"
    )
    return text + (f"; unknown for {tiles_of(column.unknown)}" if column.unknown else "")


def _labels(description: Description) -> Section | None:
    """Return the labels by split; only the splits, or nothing, where the others are unknown."""
    columns, total = description.columns, description.total
    label, split = columns.label, columns.split
    if label is None and split is None:
        return None
    nothing = np.full(total, -1, dtype=np.int64)
    rows_of, columns_of = (nothing if coded is None else coded.codes for coded in (label, split))
    names = [*(label.names if label else ()), "unknown" if label else "all"]
    splits = [*_by_use(split), *(["no split"] if split is not None and split.unknown else [])]
    table = np.zeros((len(names), len(split.names) + 1 if split else 1), dtype=np.int64)
    np.add.at(table, (rows_of, columns_of), 1)
    places = [split.names.index(name) if split and name in split.names else -1 for name in splits]
    order = sorted(range(len(names)), key=lambda row: (row == len(names) - 1, -int(table[row].sum())))
    order = [row for row in order if table[row].sum()]
    rows = [_label_row(names[row], table[row], places, total) for row in order[:_MOST_LABELS]]
    if len(order) > _MOST_LABELS:
        rest = table[order[_MOST_LABELS:]].sum(axis=0)
        rows.append(_label_row(f"{len(order) - _MOST_LABELS} more", rest, places, total))
    if len(rows) > 1:
        rows.append(_label_row("all", table.sum(axis=0), places, total))
    title = "Labels" if split is None else "Splits" if label is None else "Labels and splits"
    return Section("labels", title, ("label", "tiles", "share", *splits), tuple(rows))


def _by_use(split: Coded | None) -> list[str]:
    """Return the splits in the order in which they are used, others after them."""
    usual = ("train", "val", "test")
    names = [] if split is None else list(split.names)
    return sorted(names, key=lambda name: (usual.index(name) if name in usual else len(usual), name))


def _label_row(name: str, counts: npt.NDArray[np.int64], places: Sequence[int], total: int) -> tuple[str, ...]:
    here = int(counts.sum())
    return name, number(here), share(here, total), *(number(int(counts[place])) for place in places)


def _quality(description: Description) -> Section | None:
    count, judged = len(description.measured), int(description.judged.sum())
    if not count:
        return None
    kinds = (
        ("blank", description.blank, count, f"less than {percent(BLANK)} stained tissue"),
        ("blurred", description.blurred, judged, f"sharpness below {BLURRED:g}"),
        ("black", description.black, count, f"more than {percent(BLACK_SHARE)} black pixels"),
        ("burnt out", description.white, count, f"more than {percent(WHITE_SHARE)} pixels at 255"),
    )
    rows = tuple(
        (name, number(int(which.sum())), number(of), share(int(which.sum()), of), rule)
        for name, which, of, rule in kinds
    )
    missing = count - int(description.blank.sum()) - judged
    note = "Blurred: of the tiles that are not blank."
    if missing:
        note += f" {tiles_of(missing)} could not be judged: too small, or without detail."
    return Section("quality", "What is of little use", ("", "tiles", "of", "share", "that is"), rows, note)


def _copies(description: Description) -> Section:
    columns = description.columns
    across = [name for name in ("split", "label", "patient") if getattr(columns, name) is not None]
    rows = []
    for name, found in (("same bytes", description.copies), ("look alike", description.lookalikes)):
        if found is None:
            rows.append((name, *[DASH] * (3 + len(across))))
        else:
            rows.append(_copies_row(name, found, across))
    head = ("", "compared", "groups", "tiles too many", *(f"across {name}s" for name in across))
    note = (
        f"Across: groups whose tiles have more than one of them. Look alike: fingerprints within {DISTANCE} of 64 "
        "bits, of tiles looked at, without blank ones and copies."
    )
    blank = description.copies.blank if description.copies else 0
    if blank:
        note += f" {number(blank)} group{'' if blank == 1 else 's'} of blank tiles left out: bare glass looks the same."
    return Section("copies", "Copies", head, tuple(rows), note)


def _copies_row(name: str, found: Duplicates, across: Sequence[str]) -> tuple[str, ...]:
    mixed = (number(found.across.get(column, 0)) for column in across)
    return name, number(found.looked_at), number(found.groups), number(found.surplus), *mixed


def _stain(description: Description) -> Section | None:
    stain = description.stain
    if stain is None:
        return None
    grouped = stain.between is not None and stain.within is not None
    rows = []
    for place, channel in enumerate(CHANNELS["lab"]):
        row = [channel, _plus_minus(stain.mean[place], stain.std[place])]
        row.append(_plus_minus(stain.mean[place + 3], stain.std[place + 3]))
        if stain.between is not None and stain.within is not None:
            row += [decimal(stain.between[place]), decimal(stain.within[place])]
        rows.append(tuple(row))
    origin = (f"between {stain.origin}s", f"within a {stain.origin}") if grouped else ()
    head = ("", "average of a tile", "deviation in a tile", *origin)
    note = f"Over tissue, {tiles_of(len(stain))} that are not blank: mean ± standard deviation; L, A, B from 0 to 255."
    if grouped:
        note += f" Between and within: standard deviations of the averages, by {stain.origin}."
    return Section("stain", "Stain in LAB", head, tuple(rows), note)


def _plus_minus(mean: float, std: float) -> str:
    return f"{decimal(mean)} ± {decimal(std)}"


def _compared(description: Description) -> Section | None:
    if description.stain is None or not description.stain.compared:
        return None
    rows = tuple(
        (entry.name, *(signed(value) for value in entry.away), percent(entry.inside))
        for entry in description.stain.compared
    )
    note = (
        "L, A, B: mean of these tiles less that of the distribution, in its standard deviations. Within: tiles with "
        "all three averages inside ± 2."
    )
    return Section("compared", "Beside the stains that come with eosin", ("", "L", "A", "B", "within"), rows, note)


def _unreadable(description: Description) -> Section | None:
    unreadable = description.measured.unreadable
    if not unreadable.count:
        return None
    rows = tuple(unreadable.first)
    more = unreadable.count - len(rows)
    return Section("unreadable", "Unreadable", (), rows, f"and {number(more)} more" if more else "")
