"""Tiles to look at: samples, the blankest, the most blurred, the blackest, and those that are there twice."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.core.errors import EosinError
from eosin.data import Tiles, UnreadableImage, decode_image
from eosin.data.images import square_image
from eosin.describe.run import Description
from eosin.describe.words import percent

__all__ = ["Gallery", "Picture", "galleries"]

Int64Array = npt.NDArray[np.int64]

_SIDE = 176
_QUALITY = 85
_SAMPLES, _MOST_A_LABEL, _MOST_LABELS = 48, 8, 12
_EXTREMES = 8
_COPIES_A_GROUP = 4


@dataclass(frozen=True)
class Picture:
    """A tile as it is shown.

    Attributes:
        source: JPEG as a data URI.
        name: Of the tile.
        caption: What it is an example of.
    """

    source: str
    name: str
    caption: str


@dataclass(frozen=True)
class Gallery:
    """Pictures that belong together.

    Attributes:
        title: What they are.
        note: What is to be known of them.
        groups: Heading, "" for none, and pictures.
    """

    title: str
    note: str
    groups: tuple[tuple[str, tuple[Picture, ...]], ...]


def galleries(description: Description, tiles: Tiles) -> list[Gallery]:
    """Choose and read the tiles to show; the same source gives the same ones.

    Args:
        description: Of the tiles.
        tiles: The source.
    """
    found = [_samples(description, tiles), _twice(description, tiles), *_extremes(description, tiles)]
    return [gallery for gallery in found if gallery.groups]


def _samples(description: Description, tiles: Tiles) -> Gallery:
    measured, columns = description.measured, description.columns
    rows = measured.rows[~description.blank]
    rows = measured.rows if not len(rows) else rows
    label = columns.label
    if label is None or len(label.names) > _MOST_LABELS:
        parts = [("", rows)]
    else:
        parts = [(name, rows[label.codes[rows] == code]) for code, name in enumerate(label.names)]
        parts.append(("no label", rows[label.codes[rows] < 0]))
    parts = [(name, part) for name, part in parts if len(part)]
    each = _SAMPLES if len(parts) == 1 else min(_MOST_A_LABEL, max(4, _SAMPLES // max(1, len(parts))))
    groups = []
    for name, part in parts:
        if columns.slide is not None:
            part = part[np.argsort(columns.slide.codes[part], kind="stable")]
        chosen = part[np.linspace(0, len(part) - 1, min(each, len(part))).round().astype(np.int64)]
        groups.append((name, tuple(_pictures(tiles, [(int(row), _origin(description, int(row))) for row in chosen]))))
    note = "A cross-section of the tiles looked at, without blank ones."
    return Gallery("Spread evenly", note, tuple(group for group in groups if group[1]))


def _origin(description: Description, row: int) -> str:
    slide = description.columns.slide
    return "" if slide is None or slide.codes[row] < 0 else str(slide.names[slide.codes[row]])


def _twice(description: Description, tiles: Tiles) -> Gallery:
    groups = []
    for how, found in (("same bytes", description.copies), ("look alike", description.lookalikes)):
        for group in found.examples if found else ():
            shown = [(row, _belonging(description, row)) for row in group[:_COPIES_A_GROUP]]
            more = len(group) - len(shown)
            groups.append((how + (f", and {more:,} more" if more else ""), tuple(_pictures(tiles, shown))))
    note = "Groups across splits or labels come first."
    return Gallery("There twice", note, tuple(group for group in groups if group[1]))


def _belonging(description: Description, row: int) -> str:
    columns = description.columns
    known = [column for column in (columns.label, columns.split) if column is not None]
    return ", ".join(str(column.names[column.codes[row]]) for column in known if column.codes[row] >= 0)


def _extremes(description: Description, tiles: Tiles) -> Iterator[Gallery]:
    measured = description.measured
    tissue, sharp, black = (measured.column(name) for name in ("tissue", "sharpness", "black"))
    judged = np.flatnonzero(description.judged)
    for title, note, places, values, whole in (
        (
            "Blankest",
            "The least stained tissue, without black tiles.",
            np.flatnonzero(~description.black),
            tissue,
            True,
        ),
        ("Most blurred", "The least sharpness; the center of each, pixel by pixel.", judged, sharp, False),
        ("Blackest", "The most black pixels.", np.flatnonzero(description.black), -black, True),
    ):
        order = places[np.argsort(values[places], kind="stable")][:_EXTREMES]
        texts = [percent(abs(float(values[place]))) if whole else f"{values[place]:.2f}" for place in order.tolist()]
        shown = list(zip(measured.rows[order].tolist(), texts, strict=True))
        pictures = tuple(_pictures(tiles, shown, whole=whole))
        yield Gallery(title, note, (("", pictures),) if pictures else ())


def _pictures(tiles: Tiles, shown: Sequence[tuple[int, str]], *, whole: bool = True) -> Iterator[Picture]:
    """Read tiles, given with their captions; one that has become unreadable is left out."""
    for row, caption in shown:
        try:
            data = tiles.read(row)
            pixels = square_image(data, _SIDE) if whole else _center(decode_image(data))
        except (UnreadableImage, EosinError):
            continue
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "JPEG", quality=_QUALITY)
        source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        yield Picture(source, tiles.names[row], caption)


def _center(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    side = min(_SIDE, *pixels.shape[1:])
    top, left = (pixels.shape[1] - side) // 2, (pixels.shape[2] - side) // 2
    return pixels[:, top : top + side, left : left + side]
