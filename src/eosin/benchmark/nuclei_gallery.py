"""Test images to look at: those whose nuclei were found best and worst, with the outlines of both sides."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from eosin.core.files import atomic_file
from eosin.nuclei.datasets import NucleiSample
from eosin.nuclei.labels import Labels, relabel_with_ids
from eosin.nuclei.metrics import matches
from eosin.nuclei.outlines import outlines
from eosin.nuclei.overlap import overlap
from eosin.nuclei.score import ImageScore

__all__ = ["NUCLEI_SCHEMA", "Extremes", "svg_path"]

_SIDE = 320
_STEP = 80
_QUALITY = 85
_EACH = 3

NUCLEI_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("rank", pa.int32()),
        ("name", pa.string()),
        ("pq", pa.float64()),
        ("aji", pa.float64()),
        ("dice", pa.float64()),
        ("tp", pa.int32()),
        ("fp", pa.int32()),
        ("fn", pa.int32()),
        ("left", pa.int32()),
        ("top", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image_width", pa.int32()),
        ("image_height", pa.int32()),
        ("picture", pa.binary()),
        ("truth", pa.string()),
        ("missed", pa.string()),
        ("found", pa.string()),
        ("false", pa.string()),
    ]
)
"""Columns of a gallery of nuclei. `kind` is "best" or "worst", `rank` counts from 1 within it. `left`, `top`, `width`
and `height` are the window shown, in px of the image; `picture` is its JPEG. `truth` and `missed` are the outlines of
true nuclei with a match and without, `found` and `false` those of predicted ones, as SVG paths in px of the window."""


@dataclass(frozen=True, eq=False)
class _Kept:
    """An image and what was found in it."""

    place: tuple[float, int, str]
    score: ImageScore
    sample: NucleiSample
    found: Labels


@dataclass(eq=False)
class Extremes:
    """Keeps the best and the worst images of those that it is shown, by panoptic quality.

    Among equals, that with more nuclei is the worse one below, and the better one above.

    Attributes:
        each: Images of a kind at most.
    """

    each: int = _EACH
    _worst: list[_Kept] = field(default_factory=list)
    _best: list[_Kept] = field(default_factory=list)

    def add(self, score: ImageScore, sample: NucleiSample, found: Labels) -> None:
        """Look at an image; one in which there is nothing to measure is passed over.

        Args:
            score: Of the image.
            sample: Its pixels and true nuclei.
            found: int [H, W], predicted nuclei.
        """
        value = score.metrics["pq"]
        if np.isnan(value):
            return
        nuclei = score.truth + score.predicted
        self._worst.append(_Kept((value, -nuclei, score.name), score, sample, found))
        self._best.append(_Kept((-value, -nuclei, score.name), score, sample, found))
        for kept in (self._worst, self._best):
            kept.sort(key=lambda entry: entry.place)
            del kept[self.each :]

    def chosen(self) -> list[tuple[str, int, _Kept]]:
        """Return the kind, rank and image of what is kept; none is both best and worst."""
        names = {entry.score.name for entry in (*self._best, *self._worst)}
        # Of few images, the better half are the best.
        best = self._best[: min(self.each, (len(names) + 1) // 2)]
        shown = {entry.score.name for entry in best}
        worst = [entry for entry in self._worst if entry.score.name not in shown]
        ranked = [("worst", worst), ("best", best)]
        return [(kind, rank, entry) for kind, entries in ranked for rank, entry in enumerate(entries, start=1)]

    def write(self, path: Path, details: dict[str, Any]) -> None:
        """Write them as Parquet, of `NUCLEI_SCHEMA`, `details` in the schema's metadata under "eosin".

        Raises:
            EosinError: If the disk is full or the place is not writable.
        """
        rows = [_row(kind, rank, entry) for kind, rank, entry in self.chosen()]
        table = pa.Table.from_pylist(rows, NUCLEI_SCHEMA).replace_schema_metadata({"eosin": json.dumps(details)})
        with atomic_file(path) as file:
            pq.write_table(table, file)


def _row(kind: str, rank: int, entry: _Kept) -> dict[str, Any]:
    truth, found, image = entry.sample.instances, entry.found, entry.sample.image
    pairs = overlap(truth, found)
    matched = matches(pairs)
    hit, right = pairs.truth_ids[pairs.first[matched]], pairs.predicted_ids[pairs.second[matched]]
    alone = (truth > 0) & ~np.isin(truth, hit), (found > 0) & ~np.isin(found, right)
    wanted = (alone[0] | alone[1]) if kind == "worst" else np.isin(truth, hit)
    height, width = truth.shape
    top, left = _window(wanted)
    place = (slice(top, top + _SIDE), slice(left, left + _SIDE))
    shown = image[(slice(None), *place)]
    counts = entry.score.panoptic
    return {
        "kind": kind,
        "rank": rank,
        "name": entry.score.name,
        **{name: entry.score.metrics[name] for name in ("pq", "aji", "dice")},
        "tp": counts.tp,
        "fp": counts.fp,
        "fn": counts.fn,
        "left": left,
        "top": top,
        "width": shown.shape[2],
        "height": shown.shape[1],
        "image_width": width,
        "image_height": height,
        "picture": _jpeg(shown),
        **dict(zip(("truth", "missed"), _two_paths(truth[place], hit), strict=True)),
        **dict(zip(("found", "false"), _two_paths(found[place], right), strict=True)),
    }


def _window(wanted: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Find the window with the most of what is wanted, bool [H, W]: its top and left; (0, 0) where all fits."""
    sums = np.zeros((wanted.shape[0] + 1, wanted.shape[1] + 1), dtype=np.int64)
    sums[1:, 1:] = wanted.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    starts = [np.unique([*range(0, max(1, size - _SIDE), _STEP), max(0, size - _SIDE)]) for size in wanted.shape]
    ends = [np.minimum(start + _SIDE, size) for start, size in zip(starts, wanted.shape, strict=True)]
    (tops, lefts), (bottoms, rights) = starts, ends
    covered = sums[np.ix_(bottoms, rights)] - sums[np.ix_(tops, rights)] - sums[np.ix_(bottoms, lefts)]
    covered += sums[np.ix_(tops, lefts)]
    row, column = np.unravel_index(int(covered.argmax()), covered.shape)
    return int(tops[row]), int(lefts[column])


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _two_paths(labels: Labels, matched: npt.NDArray[np.int64]) -> tuple[str, str]:
    """Trace the nuclei that are matched, and those that are not."""
    part = relabel_with_ids(labels)
    rings = outlines(part.instances)
    kept = np.isin(part.ids, matched).tolist()
    return (
        svg_path([ring for ring, yes in zip(rings, kept, strict=True) if yes]),
        svg_path([ring for ring, yes in zip(rings, kept, strict=True) if not yes]),
    )


def svg_path(rings: Sequence[npt.NDArray[np.int32]]) -> str:
    """Write polygons whose sides lie along rows and columns as one path of SVG.

    Args:
        rings: Of each, int32 [k, 2], corners (x, y) as `outlines` gives them.
    """
    parts = []
    for ring in rings:
        if len(ring):
            x, y = ring[0].tolist()
            steps = [f"h{dx}" if dx else f"v{dy}" for dx, dy in np.diff(ring, axis=0).tolist()]
            parts.append(f"M{x} {y}{''.join(steps)}z")
    return "".join(parts)
