"""Nuclei in columns: what a block of a slide holds, small enough to keep, write and read a million of."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.nuclei.labels import Labels
from eosin.nuclei.postprocess import Nucleus

__all__ = ["Nuclei", "joined", "loaded"]

UNTYPED = -1
"""Stands for the type where the network has none."""


@dataclass(frozen=True, eq=False)
class Nuclei:
    """Nuclei, all in px of the image as the network saw it.

    Attributes:
        boxes: int64 [n, 4], (x0, y0, x1, y1), x1 and y1 just outside.
        centroids: float64 [n, 2], (x, y); pixel (0, 0) lies at (0, 0).
        areas: int64 [n], in pixels.
        types: int64 [n]; -1 where the network has no types.
        probabilities: float64 [n], see `postprocess.Nucleus`.
        points: int32 [k, 2], the corners of all outlines, one nucleus after the other.
        point_ends: int64 [n], where each nucleus's end.
        bits: uint8 [m], the pixels of each box, row by row, eight to a byte, each nucleus from a byte of its own on.
        bit_ends: int64 [n], where each nucleus's end.
    """

    boxes: npt.NDArray[np.int64]
    centroids: npt.NDArray[np.float64]
    areas: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    points: npt.NDArray[np.int32]
    point_ends: npt.NDArray[np.int64]
    bits: npt.NDArray[np.uint8]
    bit_ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.areas)

    @staticmethod
    def of(table: Sequence[Nucleus], instances: Labels, origin: tuple[int, int] = (0, 0)) -> Nuclei:
        """Take over described nuclei.

        Args:
            table: Of the nuclei in `instances`, in the order of ids.
            instances: int [H, W].
            origin: (x, y) of the label map's first pixel.
        """
        count = len(table)
        shift = np.array(origin)
        boxes = np.array([nucleus.bbox for nucleus in table], dtype=np.int64).reshape(count, 4)
        masks = [
            np.packbits(instances[y0:y1, x0:x1] == nucleus.id)
            for nucleus, (x0, y0, x1, y1) in zip(table, boxes.tolist(), strict=True)
        ]
        outlines = [nucleus.contour for nucleus in table]
        return Nuclei(
            boxes + np.tile(shift, 2),
            np.array([nucleus.centroid for nucleus in table], dtype=np.float64).reshape(count, 2) + shift,
            np.array([nucleus.area for nucleus in table], dtype=np.int64),
            np.array([UNTYPED if n.type is None else n.type for n in table], dtype=np.int64),
            np.array([nucleus.probability for nucleus in table], dtype=np.float64),
            (np.concatenate([np.empty((0, 2), np.int32), *outlines]) + shift).astype(np.int32),
            np.cumsum([len(outline) for outline in outlines], dtype=np.int64),
            np.concatenate([np.empty(0, np.uint8), *masks]),
            np.cumsum([len(mask) for mask in masks], dtype=np.int64),
        )

    def outline(self, place: int) -> npt.NDArray[np.int32]:
        """Return the outline of one nucleus: int32 [k, 2], (x, y), not closed."""
        return self.points[self.point_ends[place - 1] if place else 0 : self.point_ends[place]]

    def mask(self, place: int) -> npt.NDArray[np.bool_]:
        """Return the pixels of one nucleus within its box: bool [h, w]."""
        x0, y0, x1, y1 = self.boxes[place].tolist()
        bits = self.bits[self.bit_ends[place - 1] if place else 0 : self.bit_ends[place]]
        return np.unpackbits(bits, count=(x1 - x0) * (y1 - y0)).reshape(y1 - y0, x1 - x0).astype(bool)

    def paint(self, canvas: npt.NDArray[Any], origin: tuple[int, int], first: int) -> None:
        """Write ids into a label map, those of the nuclei that it shows.

        Args:
            canvas: Integer [H, W].
            origin: (x, y) of its first pixel.
            first: Id of the first nucleus; the others follow.
        """
        height, width = canvas.shape
        left, top = origin
        x0, y0, x1, y1 = (self.boxes - np.tile(np.array(origin), 2)).T
        for place in np.flatnonzero((x0 < width) & (x1 > 0) & (y0 < height) & (y1 > 0)).tolist():
            box = self.boxes[place] - (left, top, left, top)
            a, b, c, d = (int(value) for value in np.clip(box, 0, (width, height, width, height)))
            mask = self.mask(place)[b - box[1] : d - box[1], a - box[0] : c - box[0]]
            canvas[b:d, a:c][mask] = first + place

    def save(self, path: Path) -> None:
        """Write to a file, whole or not at all."""
        with atomic_file(path) as file:
            np.savez_compressed(file, **vars(self))

    @staticmethod
    def load(path: Path) -> Nuclei | None:
        """Read from a file; None where it is absent or damaged."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                return Nuclei(**{name: stored[name] for name in Nuclei.__dataclass_fields__})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def loaded(part: Nuclei | Path) -> Nuclei:
    """Return a block's nuclei, read from the file that holds them if need be.

    Raises:
        EosinError: If the file is damaged.
    """
    if isinstance(part, Nuclei):
        return part
    found = Nuclei.load(part)
    if found is None:
        raise EosinError(f"{part}: damaged; remove it and run the same command again")
    return found


def joined(parts: Iterable[Nuclei]) -> Nuclei:
    """Put nuclei of several parts one after the other."""
    every = [_nothing(), *parts]

    def ends(name: str) -> npt.NDArray[np.int64]:
        return np.concatenate(list(_shifted(getattr(part, name) for part in every)))

    columns: dict[str, Any] = {
        name: ends(name) if name.endswith("_ends") else np.concatenate([getattr(part, name) for part in every])
        for name in Nuclei.__dataclass_fields__
    }
    return Nuclei(**columns)


def _shifted(ends: Iterable[npt.NDArray[np.int64]]) -> Iterator[npt.NDArray[np.int64]]:
    before = 0
    for part in ends:
        yield part + before
        before += int(part[-1]) if len(part) else 0


def _nothing() -> Nuclei:
    return Nuclei.of([], np.zeros((0, 0), np.int32))
