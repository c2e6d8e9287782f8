"""What the columns of a source say, for all tiles: vectorized, so that millions of them are counted in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eosin.data import Tiles
from eosin.data.tiles import TextColumn

__all__ = ["Coded", "Columns", "Conflicts", "conflicts", "read_columns"]

Int64Array = npt.NDArray[np.int64]

_EXAMPLES = 5


@dataclass(frozen=True, eq=False)
class Coded:
    """A text column as numbers.

    Attributes:
        names: The K distinct values, sorted.
        codes: int64 [N], which of them each tile has; -1 where it is unknown.
    """

    names: Sequence[str]
    codes: Int64Array

    @cached_property
    def counts(self) -> Int64Array:
        """int64 [K], tiles of each value; at least 1."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names)).astype(np.int64)

    @property
    def unknown(self) -> int:
        """Tiles without a value."""
        return int((self.codes < 0).sum())


@dataclass(frozen=True)
class Conflicts:
    """Entries of one column that belong to several entries of another, such as patients in two splits.

    Attributes:
        count: How many there are.
        examples: The first few, in order of their names: (name, the entries it belongs to).
    """

    count: int
    examples: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a source; None where it has none.

    Attributes:
        total: N, tiles in the source.
        mpp: float64 [N], µm/px, NaN where unknown.
        leaks: Patients, and slides, with tiles in more than one split: by "patient" and "slide", where both are known.
        mixed_slides: Slides of more than one patient.
    """

    total: int
    label: Coded | None
    split: Coded | None
    slide: Coded | None
    patient: Coded | None
    mpp: npt.NDArray[np.float64] | None
    leaks: dict[str, Conflicts]
    mixed_slides: Conflicts | None


def read_columns(tiles: Tiles) -> Columns:
    """Count what the columns hold."""
    label, split, slide, patient = (_coded(column) for column in (tiles.label, tiles.split, tiles.slide, tiles.patient))
    leaks = {
        name: conflicts(column, split)
        for name, column in (("patient", patient), ("slide", slide))
        if column is not None and split is not None
    }
    mixed = None if slide is None or patient is None else conflicts(slide, patient)
    return Columns(len(tiles), label, split, slide, patient, tiles.mpp, leaks, mixed)


def _coded(column: TextColumn | None) -> Coded | None:
    if column is None:
        return None
    encoded = pa.array(column, pa.large_string(), from_pandas=True).dictionary_encode()
    names = encoded.dictionary.to_pylist()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    if not names:
        return None
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names) + 1, dtype=np.int64)
    place[order] = np.arange(len(names))
    # Unknown is code -1, which is the last place.
    place[-1] = -1
    return Coded([names[number] for number in order], place[codes])


def conflicts(of: Coded, among: Coded) -> Conflicts:
    """Find the entries of a column whose tiles have several entries of another; unknown entries conflict with none."""
    known = (of.codes >= 0) & (among.codes >= 0)
    pairs = np.unique(of.codes[known] * len(among.names) + among.codes[known])
    owner, entry = np.divmod(pairs, len(among.names))
    twice = np.flatnonzero(np.bincount(owner, minlength=len(of.names)) > 1)
    examples = tuple(
        (of.names[place], tuple(among.names[number] for number in entry[owner == place]))
        for place in twice[:_EXAMPLES].tolist()
    )
    return Conflicts(len(twice), examples)
