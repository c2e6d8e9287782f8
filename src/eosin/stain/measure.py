"""Each tile's stain statistics, streamed: nothing is kept of a tile but seven numbers, and a stopped run goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from eosin.augment.chunks import chunks
from eosin.augment.image_statistics import image_statistics
from eosin.augment.spaces import Space
from eosin.core.config import Config
from eosin.core.console import progress_bar
from eosin.core.errors import EosinError
from eosin.core.files import short_hash
from eosin.data import Quarantine, Tiles, UnreadableImage, load_square
from eosin.data.images import open_image
from eosin.data.workers import read_ahead
from eosin.stain.partial import load_partial, save_partial

__all__ = ["MeasureConfig", "Measured", "measure", "native_size", "one_thread", "require_tissue"]

# Tiles a worker measures before it hands over their numbers; partial results end at a multiple of it.
_BATCH = 32
_SAVE_SECONDS = 20.0
# A partial file is written whole each time; over millions of tiles that must stay a small share of the work.
_SAVE_SHARE = 0.02
_PROBED = 33

Loaded = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], dict[int, str]]
"""Statistics and share of tissue float64 [b, 7], rows int64 [b], and the reason of each unreadable row."""


class MeasureConfig(Config):
    """What of a tile is measured."""

    space: Space = "lab"
    """Color space: lab, hsv or hed."""
    tissue_only: bool = True
    """Leave out the pixels of bare glass."""
    size: Annotated[int, Field(ge=8)] = 256
    """Side in pixels to which a tile is brought: short side resized, antialiased, central square cut."""
    minimum_tissue: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Tiles with a smaller share of tissue are blank: they say nothing about the stain."""


@dataclass(frozen=True, eq=False)
class Measured:
    """The numbers of the tiles that could be read.

    Attributes:
        values: float64 [n, 6], averages of the three channels, then their standard deviations, in the space's units.
        tissue: float64 [n], share of tissue, 0 to 1.
        rows: int64 [n], the row of each in the source, ascending.
        total: Number of tiles in the source; `total - n` were unreadable.
        minimum_tissue: Share below which a tile is blank.
    """

    values: npt.NDArray[np.float64]
    tissue: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    total: int
    minimum_tissue: float

    @property
    def stained(self) -> npt.NDArray[np.bool_]:
        """Which tiles are not blank: bool [n]."""
        return self.tissue >= self.minimum_tissue


def native_size(tiles: Tiles, largest: int = 256) -> int:
    """Return the usual short side of a source's tiles in px, at most `largest`.

    The headers of a few tiles spread over the source are read; the median of what can be read decides.
    """
    places = np.unique(np.linspace(0, len(tiles) - 1, min(len(tiles), _PROBED)).astype(np.int64))
    sides = []
    for place in places.tolist():
        try:
            sides.append(min(open_image(tiles.read(place)).size))
        except UnreadableImage:
            continue
    return min(largest, int(np.median(sides))) if sides else largest


def require_tissue(measured: Measured, spec: str) -> None:
    """Refuse a source that shows no stained tissue.

    Raises:
        EosinError: If every tile is blank.
    """
    if not measured.stained.any():
        raise EosinError(
            f"{spec}: none of the {len(measured.rows):,} tiles that were read shows stained tissue (at least "
            f"{100 * measured.minimum_tissue:g} % of its pixels); give H&E tiles"
        )


def measure(
    tiles: Tiles,
    config: MeasureConfig,
    *,
    workers: int = 0,
    quarantine: Quarantine | None = None,
    partial: Path | None = None,
    key: str = "",
) -> Measured:
    """Measure every readable tile once, in order.

    The numbers depend on the tile and the configuration alone, not on the workers or on where a stopped run went on.

    Args:
        tiles: N tiles.
        config: What to measure.
        workers: Processes that decode and measure; 0 does it here.
        quarantine: Where unreadable tiles are listed; by default in memory, with its usual limit.
        partial: File in which finished tiles are kept while the work goes on, and from which it goes on; it stays for
            the caller to remove. None to keep nothing.
        key: Identity of the tiles' content; a partial file of another key or configuration is not used.

    Raises:
        EosinError: If no tile can be read, or more of them are unreadable than the quarantine allows.
    """
    quarantine = Quarantine(None) if quarantine is None else quarantine
    key = short_hash(key, len(tiles), config.plain(), torch.__version__, _BATCH)
    done, values, reasons = (None if partial is None else load_partial(partial, key)) or (0, np.empty((0, 8)), {})
    parts = [values]
    _quarantine(tiles, reasons, quarantine)
    saved, cost = time.monotonic(), 0.0
    starts = range(done, len(tiles), _BATCH)
    with progress_bar() as progress:
        bar = progress.add_task(f"measuring {config.space.upper()}", total=len(tiles), completed=done)
        try:
            for start, (numbers, rows, bad) in zip(
                starts, read_ahead(_Reader(tiles, config), starts, workers), strict=True
            ):
                _quarantine(tiles, bad, quarantine)
                parts.append(np.column_stack([rows, numbers]))
                reasons |= bad
                done = min(start + _BATCH, len(tiles))
                progress.update(bar, completed=done)
                if partial is not None and time.monotonic() - saved > max(_SAVE_SECONDS, cost / _SAVE_SHARE):
                    began = time.monotonic()
                    parts = [np.concatenate(parts)]
                    save_partial(partial, key, done, parts[0], reasons)
                    saved = time.monotonic()
                    cost = saved - began
        except BaseException:
            if partial is not None and done:
                save_partial(partial, key, done, np.concatenate(parts), reasons)
            raise
    table = np.concatenate(parts)
    if not len(table):
        raise EosinError(f"{tiles.spec}: no tile could be read; {quarantine.summary()}")
    return Measured(table[:, 1:7], table[:, 7], table[:, 0].astype(np.int64), len(tiles), config.minimum_tissue)


def _quarantine(tiles: Tiles, bad: dict[int, str], quarantine: Quarantine) -> None:
    for row, reason in bad.items():
        quarantine.add(tiles.names[row], reason)
    if bad:
        quarantine.check(len(tiles))


class _Reader:
    """Measures a batch of consecutive rows, given the first, without the unreadable ones."""

    def __init__(self, tiles: Tiles, config: MeasureConfig) -> None:
        self.tiles = tiles.without_columns()
        self.config = config

    def __call__(self, first: int, /) -> Loaded:
        size = self.config.size
        images, rows, bad = [], [], dict[int, str]()
        for row in range(first, min(first + _BATCH, len(self.tiles))):
            try:
                images.append(load_square(self.tiles, row, size))
                rows.append(row)
            except UnreadableImage as error:
                bad[row] = str(error)
        pixels = torch.from_numpy(np.stack(images)) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
        numbers = np.empty((len(rows), 7))
        with one_thread():
            for part in chunks(pixels):
                colors = pixels[part].to(torch.float32).mul_(1 / 255)
                values, tissue = image_statistics(colors, self.config.space, self.config.tissue_only)
                numbers[part, :6] = values.numpy()
                numbers[part, 6] = tissue.numpy()
        return numbers, np.asarray(rows, dtype=np.int64), bad


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep sums in one order: a worker has one thread, the main process as many as there are cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
