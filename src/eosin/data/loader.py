"""Tiles in motion: batches whose content is a pure function of (seed, step, position in the global batch)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.draws import Draws, permuted, stream_seed
from eosin.core.errors import EosinError
from eosin.data.images import Interpolation, UnreadableImage, open_image, square_image
from eosin.data.quarantine import Quarantine
from eosin.data.tiles import Tiles, ViewSource, load_square
from eosin.data.workers import read_ahead

__all__ = ["Batch", "Loaded", "MakeViews", "RowReader", "TrainingLoader", "iterate_tiles", "tiles_at"]

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

MakeViews = Callable[[Tensor, int, Int64Array, Float64Array | None], list[Tensor]]
"""From images uint8 [B, 3, size, size], their step, positions int64 [B] and µm/px float64 [B] (None where nobody asked)
to views. It runs in the workers: of an importable kind, and small to pickle."""


class Loaded(NamedTuple):
    """What a worker hands over.

    Attributes:
        images: uint8 [B, 3, size, size]; none (B = 0) where there are views.
        rows: int64 [B], the tile of each.
        bad: (tile, reason) of each unreadable tile.
        mpp: float64 [B], µm/px of the images as loaded, where it is asked for or the source draws it.
        views: What `MakeViews` made of the images.
    """

    images: Tensor
    rows: Int64Array
    bad: list[tuple[int, str]]
    mpp: Float64Array | None = None
    views: list[Tensor] | None = None


# So many unreadable tiles in a row mean that the disk or network is gone, not that tiles are broken.
_CONSECUTIVE_FAILURES = 100

# Samples of which the order is computed at once, at most.
_ORDER_BLOCK = 4096


def tiles_at(samples: npt.ArrayLike, count: int, seed: int) -> Int64Array:
    """Return which tile each global sample of a run shows.

    Sample g belongs to pass g // count and is entry g % count of that pass's own random order, so each pass shows each
    tile once, and a batch may straddle two passes.

    Args:
        samples: Integers, counted from 0 over the whole run.
        count: Number of tiles.
        seed: The run's seed.

    Returns:
        int64 array of the samples' shape.
    """
    samples = np.asarray(samples, dtype=np.int64)
    passes, entries = np.divmod(samples, count)
    tiles = np.empty(samples.shape, dtype=np.int64)
    for number in np.unique(passes):
        here = passes == number
        tiles[here] = permuted(entries[here], count, stream_seed(seed, "order", int(number)))
    return tiles


@dataclass(frozen=True, eq=False)
class Batch:
    """What one process gets for one forward pass."""

    images: Tensor
    """uint8 [B, 3, size, size] RGB, channels-last in memory; none where the workers made views of them."""
    positions: Int64Array
    """int64 [B], each image's position in the global batch of the step."""
    step: int
    indices: Int64Array
    """int64 [B], the tile that each image shows."""
    micro: int = 0
    """Which of the step's `accumulate` parts this is."""
    mpp: Float64Array | None = None
    """float64 [B], µm/px of the images as loaded, where the loader was asked for it or the source draws it."""
    views: list[Tensor] | None = None
    """Where the loader makes views: V tensors [B, ...]."""


class TrainingLoader:
    """Batches of a run, from any step.

    The global batch of a step has batch_size × world × accumulate images; part m of process r holds the positions from
    (m × world + r) × batch_size on. So what a step sees depends on the global batch alone, not on how it is divided,
    and not on the number of workers. A tile that cannot be read is replaced by the next readable one of the pass's
    order and quarantined; the last images of a pass share their batch with the first of the next. Of slides read on
    the fly a tile is seen from another place, and at another resolution, each time; both are drawn, like all else, by
    the seed, the step and the position.

    Args:
        tiles: The source.
        size: Side of the images in px; see `load_square`.
        batch_size: Images a process and part.
        seed: The run's seed.
        start_step: First step to load.
        steps: Steps of the whole run; the last one loaded is steps - 1.
        workers: Loading processes; 0 loads in this one.
        quarantine: Where unreadable tiles are listed.
        rank: This process.
        world: Number of processes.
        accumulate: Parts a step.
        mpp: float64 [N], µm/px of the tiles at rest; with it batches say the µm/px of their images.
        make_views: Run in the workers on each batch; batches then hold its views and no images.

    Raises:
        EosinError: If the global batch is larger than the source.
    """

    def __init__(
        self,
        tiles: Tiles,
        *,
        size: int,
        batch_size: int,
        seed: int,
        steps: int,
        quarantine: Quarantine,
        start_step: int = 0,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        mpp: Float64Array | None = None,
        make_views: MakeViews | None = None,
    ) -> None:
        self.global_batch = batch_size * world * accumulate
        if self.global_batch > len(tiles):
            raise EosinError(
                f"{tiles.spec}: a batch of {self.global_batch:,} is larger than the {len(tiles):,} tiles; "
                f"use a batch size of at most {max(1, len(tiles) // (world * accumulate)):,}"
                + (f" a process (× {world * accumulate})" if world * accumulate > 1 else "")
            )
        self.tiles = tiles
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.steps = steps
        self.workers = workers
        self.quarantine = quarantine
        self.rank = rank
        self.world = world
        self.accumulate = accumulate
        self.mpp = mpp
        self.make_views = make_views

    def __len__(self) -> int:
        """Return the number of batches still to come from `start_step`: steps × accumulate."""
        return max(0, self.steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order.

        Raises:
            EosinError: If too many tiles are unreadable, or a worker is killed.
        """
        reader = _TrainingReader(self)
        parts = range(self.start_step * self.accumulate, max(self.start_step, self.steps) * self.accumulate)
        starts = [(part * self.world + self.rank) * self.batch_size for part in parts]
        for part, loaded in zip(parts, read_ahead(reader, starts, self.workers), strict=True):
            _quarantine(self.tiles, loaded.bad, self.quarantine)
            step, micro = divmod(part, self.accumulate)
            first = (micro * self.world + self.rank) * self.batch_size
            positions = np.arange(first, first + self.batch_size)
            yield Batch(loaded.images, positions, step, loaded.rows, micro, loaded.mpp, loaded.views)


def iterate_tiles(
    tiles: Tiles,
    *,
    size: int,
    batch_size: int,
    workers: int,
    quarantine: Quarantine,
    interpolation: Interpolation = "bilinear",
) -> Iterator[tuple[Tensor, Int64Array]]:
    """Yield every readable tile once, in order.

    Args:
        tiles: The source.
        size: Side of the images in px; see `load_square`.
        batch_size: Images a batch; fewer in the last one and where tiles are unreadable.
        workers: Loading processes; 0 loads in this one.
        quarantine: Where unreadable tiles are listed.
        interpolation: Filter with which images are brought to the size.

    Yields:
        Images uint8 [B, 3, size, size] and their rows in `tiles`, int64 [B].

    Raises:
        EosinError: If too many tiles are unreadable, or a worker is killed.
    """
    reader = RowReader(tiles, size, interpolation)
    spans = [(first, min(first + batch_size, len(tiles))) for first in range(0, len(tiles), batch_size)]
    for loaded in read_ahead(reader, spans, workers):
        _quarantine(tiles, loaded.bad, quarantine)
        if len(loaded.rows):
            yield loaded.images, loaded.rows


def _quarantine(tiles: Tiles, bad: list[tuple[int, str]], quarantine: Quarantine) -> None:
    for tile, reason in bad:
        quarantine.add(tiles.names[tile], reason)
    if bad:
        quarantine.check(len(tiles))


def _empty_images(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return room for images, uint8 [B, 3, size, size], the channels of a pixel side by side in memory.

    So do decoders write them and crops read them: in planes each would have to be turned around, twice.
    """
    return np.empty((count, size, size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)


class _TrainingReader:
    """Loads one process's part of a batch, given its first global sample."""

    def __init__(self, loader: TrainingLoader) -> None:
        self.tiles = loader.tiles.without_columns()
        self.size = loader.size
        self.batch_size = loader.batch_size
        self.global_batch = loader.global_batch
        self.seed = loader.seed
        self.mpp = loader.mpp
        self.make_views = loader.make_views
        self.known_bad: dict[int, str] = {}
        self.order: dict[int, Int64Array] = {}

    def __call__(self, first: int, /) -> Loaded:
        samples = np.arange(first, first + self.batch_size)
        chosen = self._chosen(samples)
        pixels = _empty_images(self.batch_size, self.size)
        step, position = divmod(first, self.global_batch)
        positions = position + np.arange(self.batch_size)
        drawn = isinstance(self.tiles.source, ViewSource)
        uniforms = Draws(self.seed, step, positions, "tiles").uniform("view", 4) if drawn else None
        mpp = np.empty(self.batch_size) if drawn or self.mpp is not None else None
        bad: dict[int, str] = {}
        for slot, sample in enumerate(samples):
            draws = None if uniforms is None else uniforms[slot]
            chosen[slot], resolution = self._load(pixels[slot], int(sample), int(chosen[slot]), bad, draws)
            if mpp is not None:
                mpp[slot] = resolution
        images = torch.from_numpy(pixels)
        if self.make_views is None:
            return Loaded(images, chosen, list(bad.items()), mpp)
        views = self.make_views(images, step, positions, mpp)
        # A slice would take the memory of all of them along.
        return Loaded(images.new_empty(0, *images.shape[1:]), chosen, list(bad.items()), mpp, views)

    def _chosen(self, samples: Int64Array) -> Int64Array:
        """Return the tile of each of consecutive samples.

        A permutation of a few entries takes as long as one of thousands: they are computed block by block, none of
        which holds more than a pass.
        """
        size = min(_ORDER_BLOCK, len(self.tiles))
        blocks = range(int(samples[0]) // size, int(samples[-1]) // size + 1)
        for block in blocks:
            if block not in self.order:
                self.order[block] = tiles_at(np.arange(block * size, (block + 1) * size), len(self.tiles), self.seed)
        while len(self.order) > len(blocks) + 1:
            del self.order[next(iter(self.order))]
        chosen = np.concatenate([self.order[block] for block in blocks])
        first = int(samples[0]) - blocks[0] * size
        return chosen[first : first + len(samples)].copy()

    def _load(
        self, out: npt.NDArray[np.uint8], sample: int, tile: int, bad: dict[int, str], draws: Float64Array | None
    ) -> tuple[int, float]:
        """Fill `out` with a tile, or else with the next readable one of the pass's order.

        Returns:
            Which tile it is, and its µm/px as loaded where resolutions are asked for or drawn, else NaN.
        """
        count = len(self.tiles)
        tried = dict[int, str]()
        while len(tried) < min(count, _CONSECUTIVE_FAILURES):
            if tried:
                following = sample - sample % count + (sample + len(tried)) % count
                tile = int(tiles_at(following, count, self.seed))
            try:
                if tile in self.known_bad:
                    raise UnreadableImage(self.known_bad[tile])
                return tile, self._fill(out, tile, draws)
            except UnreadableImage as error:
                tried[tile] = bad[tile] = self.known_bad[tile] = str(error)
        name, reason = next(iter(tried.items()))
        raise EosinError(
            f"{self.tiles.spec}: {len(tried):,} tiles in a row are unreadable (first '{self.tiles.names[name]}': "
            f"{reason}); check the files and the disk"
        )

    def _fill(self, out: npt.NDArray[np.uint8], tile: int, draws: Float64Array | None) -> float:
        source = self.tiles.source
        if draws is not None and isinstance(source, ViewSource):
            out[...], resolution = source.view(tile, self.size, draws)
            return resolution
        data = self.tiles.read(tile)
        square_image(data, self.size, out=out)
        return math.nan if self.mpp is None else float(self.mpp[tile]) * min(open_image(data).size) / self.size


class RowReader:
    """Loads a batch of consecutive rows, given the first and the one after the last, without the unreadable ones.

    Args:
        tiles: The source.
        size: Side of the images in px; see `load_square`.
        interpolation: Filter with which images are brought to the size.
    """

    def __init__(self, tiles: Tiles, size: int, interpolation: Interpolation = "bilinear") -> None:
        self.tiles = tiles.without_columns()
        self.interpolation = interpolation
        self.size = size

    def __call__(self, span: tuple[int, int], /) -> Loaded:
        """Return the images of rows `span[0]` to `span[1] - 1` that can be read."""
        rows = np.arange(*span)
        images = _empty_images(len(rows), self.size)
        bad: dict[int, str] = {}
        kept = 0
        for row in rows:
            try:
                images[kept] = load_square(self.tiles, int(row), self.size, self.interpolation)
                rows[kept] = row
                kept += 1
            except UnreadableImage as error:
                bad[int(row)] = str(error)
        kept_images = images[:kept].copy(order="K") if bad else images
        return Loaded(torch.from_numpy(kept_images), rows[:kept], list(bad.items()))
