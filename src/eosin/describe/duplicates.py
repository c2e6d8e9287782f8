"""Tiles that are there twice: byte for byte among all, by their looks among those that are decoded."""

from __future__ import annotations

import contextlib
import os
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

__all__ = [
    "Duplicates",
    "FileSizes",
    "Groups",
    "describe_groups",
    "file_sizes",
    "find_copies",
    "find_lookalikes",
    "group_digests",
]

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


@dataclass(frozen=True, eq=False)
class Groups:
    """Tiles that are in groups of two or more.

    Attributes:
        looked_at: Tiles compared.
        rows: int64 [n], ascending.
        group: int64 [n], the group of each, numbered from 0 in the order of their first rows.
    """

    looked_at: int
    rows: Int64Array
    group: Int64Array

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @property
    def first(self) -> Int64Array:
        """int64 [count], the first row of each group."""
        return self.rows[np.unique(self.group, return_index=True)[1]]


@dataclass(frozen=True)
class Duplicates:
    """Groups of tiles that are the same.

    Attributes:
        looked_at: Tiles compared.
        groups: Groups of two or more, without blank ones.
        surplus: Tiles that could go without a picture being lost: those in groups, less one a group.
        blank: Groups of blank tiles.
        across: Groups that have more than one "split", "label" or "patient", for the columns there are.
        examples: Rows of the first few groups, those across splits or labels first.
    """

    looked_at: int
    groups: int
    surplus: int
    blank: int
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
        root = str(source.root)
        for row, name in enumerate(source.paths):
            # Plain strings: of millions of files the making of paths takes longer than the question.
            with contextlib.suppress(OSError):
                sizes[row] = os.stat(os.path.join(root, name)).st_size  # noqa: PTH116, PTH118
            if row % _BATCH == _BATCH - 1:
                progress.update(bar, completed=row + 1)
        progress.update(bar, completed=len(tiles))
    return FileSizes(sizes)


def find_copies(tiles: Tiles, sizes: FileSizes | None) -> Groups | None:
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
    return _groups(candidates[there], group_digests(digests[there]), len(tiles))


def find_lookalikes(rows: Int64Array, fingerprints: UInt64Array, digests: UInt64Array) -> Groups:
    """Find tiles that look alike without being the same bytes.

    Args:
        rows: int64 [n], rows in the source, ascending.
        fingerprints: uint64 [n].
        digests: uint64 [n, 2]; of tiles with the same bytes only the first is compared.
    """
    _, first = np.unique(group_digests(digests), return_index=True)
    first.sort()
    return _groups(rows[first], near_groups(fingerprints[first]), len(first))


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


def _groups(rows: Int64Array, group: Int64Array, looked_at: int) -> Groups:
    """Keep what is in groups of two or more, numbered in the order of their first rows.

    Args:
        rows: int64 [n], ascending.
        group: int64 [n], the group of each row.
        looked_at: Tiles compared.
    """
    size = np.bincount(group, minlength=1)
    inside = size[group] > 1
    rows, group = rows[inside], group[inside]
    _, first, which = np.unique(group, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return Groups(looked_at, rows, rank[which.ravel()])


def describe_groups(found: Groups, columns: Columns, blank: Int64Array) -> Duplicates:
    """Summarize groups.

    Args:
        found: The groups.
        columns: Of the source.
        blank: Rows of tiles known to be blank: groups with one of them are counted apart, as bare glass is the same
            on every slide.
    """
    without = np.zeros(found.count, dtype=bool)
    without[found.group[np.isin(found.rows, blank)]] = True
    kept = ~without[found.group]
    rows, group = found.rows[kept], found.group[kept]
    groups = found.count - int(without.sum())
    across, wrong = {}, np.zeros(found.count, dtype=bool)
    for name in ("split", "label", "patient"):
        column: Coded | None = getattr(columns, name)
        if column is not None:
            mixed = _mixed(group, column.codes[rows], found.count)
            across[name] = int(mixed.sum())
            if name in ("split", "label"):
                wrong |= mixed
    numbers = np.unique(group)
    shown = numbers[np.argsort(~wrong[numbers], kind="stable")][:_EXAMPLES]
    examples = tuple(tuple(rows[group == number].tolist()) for number in shown.tolist())
    return Duplicates(found.looked_at, groups, len(rows) - groups, int(without.sum()), across, examples)


def _mixed(group: Int64Array, codes: Int64Array, count: int) -> npt.NDArray[np.bool_]:
    """Tell which groups have more than one known code: bool [count]."""
    known = codes >= 0
    pairs = np.unique(np.column_stack([group[known], codes[known]]), axis=0)
    return np.bincount(pairs[:, 0], minlength=count) > 1
