"""Tiles that are there twice: byte for byte among all, by their looks among those that are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from eosin.core.console import progress_bar
from eosin.data import Tiles
from eosin.data.store import StoreBytes
from eosin.data.tiles import DIGEST_BYTES, FileBytes
from eosin.describe.columns import Coded, Columns
from eosin.describe.fingerprints import near_groups

__all__ = ["Duplicates", "FileSizes", "file_sizes", "find_copies", "find_lookalikes", "group_digests"]

Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

_EXAMPLES = 6
_BATCH = 8192


@dataclass(frozen=True, eq=False)
class FileSizes:
    """Sizes of tiles that are files.

    Attributes:
        sizes: int64 [N], bytes; -1 where the file cannot be found.
    """

    sizes: Int64Array

    @property
    def total(self) -> int:
        """Bytes of all files together."""
        return int(self.sizes[self.sizes > 0].sum())


@dataclass(frozen=True)
class Duplicates:
    """Groups of tiles that are the same.

    Attributes:
        looked_at: Tiles compared.
        groups: Groups of two or more.
        surplus: Tiles that could go without a picture being lost: those in groups, less one a group.
        across: Groups that have more than one "split", "label", "patient" or "slide", for the columns there are.
        examples: Rows of the first few groups, those across splits or labels first.
    """

    looked_at: int
    groups: int
    surplus: int
    across: dict[str, int]
    examples: tuple[tuple[int, ...], ...]


def file_sizes(tiles: Tiles) -> FileSizes | None:
    """Ask for the size of each file; None where the tiles are no files of their own."""
    source = tiles.source
    if not isinstance(source, FileBytes):
        return None
    sizes = np.full(len(tiles), -1, dtype=np.int64)
    with progress_bar() as progress:
        bar = progress.add_task("listing", total=len(tiles))
        for row in range(len(tiles)):
            try:
                sizes[row] = source.path(row).stat().st_size
            except OSError:
                continue
            finally:
                if row % _BATCH == _BATCH - 1 or row == len(tiles) - 1:
                    progress.update(bar, completed=row + 1)
    return FileSizes(sizes)


def find_copies(tiles: Tiles, columns: Columns, sizes: FileSizes | None) -> Duplicates | None:
    """Find tiles of the same bytes among all tiles.

    Of files, only those are read that have the size of another one; a store knows its digests. Files that are empty or
    cannot be read are no copies of each other.

    Returns:
        The groups; None for a source whose tiles would all have to be made for it.
    """
    if sizes is not None:
        known, which, counts = np.unique(sizes.sizes, return_inverse=True, return_counts=True)
        candidates = np.flatnonzero((counts[which.ravel()] > 1) & (known[which.ravel()] > 0)).astype(np.int64)
    elif isinstance(tiles.source, StoreBytes):
        candidates = np.arange(len(tiles), dtype=np.int64)
    else:
        return None
    digests = _digests(tiles, candidates)
    there = digests.any(axis=1)
    rows = candidates[there]
    return _summary(rows, group_digests(digests[there]), columns, len(tiles))


def find_lookalikes(rows: Int64Array, fingerprints: UInt64Array, digests: UInt64Array, columns: Columns) -> Duplicates:
    """Find tiles that look alike without being the same bytes.

    Args:
        rows: int64 [n], rows in the source, ascending.
        fingerprints: uint64 [n].
        digests: uint64 [n, 2]; of tiles with the same bytes only the first is compared.
        columns: Of the source.
    """
    _, first = np.unique(group_digests(digests), return_index=True)
    first.sort()
    return _summary(rows[first], near_groups(fingerprints[first]), columns, len(first))


def group_digests(digests: UInt64Array) -> Int64Array:
    """Number digests, uint64 [n, 2], so that equal ones have equal numbers: int64 [n]."""
    order = np.lexsort(digests.T)
    ordered = digests[order]
    new = np.ones(len(order), dtype=np.int64)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.cumsum(new) - 1
    return group


def _digests(tiles: Tiles, rows: Int64Array) -> UInt64Array:
    """Return the digests of some rows, uint64 [n, 2], zeros for what cannot be read."""
    found = np.zeros((len(rows), 2), dtype=np.uint64)

    def parts() -> Iterator[tuple[int, bytes]]:
        values = tiles.source.take(rows).digests() if len(rows) else iter(())
        start = 0
        while part := list(islice(values, _BATCH)):
            yield start, b"".join(part)
            start += len(part)

    with progress_bar() as progress:
        bar = progress.add_task("comparing bytes", total=len(rows))
        for start, joined in parts():
            count = len(joined) // DIGEST_BYTES
            found[start : start + count] = np.frombuffer(joined, dtype=np.uint64).reshape(count, 2)
            progress.update(bar, completed=start + count)
    return found


def _summary(rows: Int64Array, group: Int64Array, columns: Columns, looked_at: int) -> Duplicates:
    """Describe groups.

    Args:
        rows: int64 [n], ascending.
        group: int64 [n], the group of each row.
        columns: Of the source.
        looked_at: Tiles compared.
    """
    size = np.bincount(group) if len(group) else np.empty(0, dtype=np.int64)
    inside = size[group] > 1 if len(group) else np.empty(0, dtype=bool)
    rows, group = rows[inside], group[inside]
    # Numbered anew, in the order of their first rows.
    _, first, which = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    group = rank[which.ravel()]
    across, wrong = {}, np.zeros(len(first), dtype=bool)
    for name in ("split", "label", "patient", "slide"):
        column: Coded | None = getattr(columns, name)
        if column is None or not len(first):
            continue
        here = _mixed(group, column.codes[rows], len(first))
        across[name] = int(here.sum())
        if name in ("split", "label"):
            wrong |= here
    shown = np.argsort(~wrong, kind="stable")[:_EXAMPLES]
    examples = tuple(tuple(rows[group == number].tolist()) for number in shown.tolist())
    return Duplicates(looked_at, len(first), len(rows) - len(first), across, examples)


def _mixed(group: Int64Array, codes: Int64Array, count: int) -> npt.NDArray[np.bool_]:
    """Tell which groups have more than one known code: bool [count]."""
    known = codes >= 0
    pairs = np.unique(np.column_stack([group[known], codes[known]]), axis=0)
    return np.bincount(pairs[:, 0], minlength=count) > 1
