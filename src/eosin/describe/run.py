"""From a source of tiles to its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.core.files import output_file
from eosin.data import Tiles, default_workers, open_tiles
from eosin.describe.color import Stain, describe_stain
from eosin.describe.columns import Columns, read_columns
from eosin.describe.duplicates import (
    Duplicates,
    FileSizes,
    Groups,
    describe_groups,
    file_sizes,
    find_copies,
    find_lookalikes,
)
from eosin.describe.measure import Measured, measure
from eosin.describe.sample import choose_rows
from eosin.describe.sharpness import BLURRED
from eosin.stain.measure import MeasureConfig

__all__ = ["BLACK_SHARE", "BLANK", "SAMPLE", "WHITE_SHARE", "Description", "describe"]

SAMPLE = 2000
"""Tiles that are decoded unless another number is asked for."""

BLANK = float(MeasureConfig().minimum_tissue)
"""Tiles with a smaller share of stained tissue are blank: the same as in `eosin stain fit`."""

BLACK_SHARE = 0.1
"""Tiles with a larger share of black pixels are called black: a border, a hole, a tile beyond the scanned area."""

WHITE_SHARE = 0.5
"""Tiles with a larger share of pixels at 255 in all channels are called burnt out: what is there cannot be seen."""


# Groups of copies, beyond those in the sample, of which it is asked whether they show tissue.
_MOST_COPIES = 1000


@dataclass(frozen=True, eq=False)
class Description:
    """What is known of a source of tiles.

    Attributes:
        spec: The string that opens it.
        remarks: What opening it left out.
        columns: What the columns say, of all tiles.
        sizes: Sizes of the files; None where the tiles are no files.
        copies: Tiles of the same bytes, of all tiles; None for a source where that would mean to make them all.
        asked: Tiles that were to be decoded.
        seed: Seed of their choice.
        measured: What their pixels say.
        lookalikes: Tiles among those, not blank, that look alike.
        stain: None where every tile is blank or unreadable.
    """

    spec: str
    remarks: tuple[str, ...]
    columns: Columns
    sizes: FileSizes | None
    copies: Duplicates | None
    asked: int
    seed: int
    measured: Measured
    lookalikes: Duplicates
    stain: Stain | None

    @property
    def total(self) -> int:
        """Tiles in the source."""
        return self.columns.total

    @property
    def blank(self) -> npt.NDArray[np.bool_]:
        """Which measured tiles are blank: bool [n]."""
        return self.measured.column("tissue") < BLANK

    @property
    def judged(self) -> npt.NDArray[np.bool_]:
        """Which measured tiles could be judged for sharpness: not blank, large enough, with some detail: bool [n]."""
        return ~self.blank & np.isfinite(self.measured.column("sharpness"))

    @property
    def blurred(self) -> npt.NDArray[np.bool_]:
        """Which measured tiles are blurred: bool [n]."""
        return self.judged & (np.nan_to_num(self.measured.column("sharpness")) < BLURRED)

    @property
    def black(self) -> npt.NDArray[np.bool_]:
        """Which measured tiles are black in a good part: bool [n]."""
        return self.measured.column("black") > BLACK_SHARE

    @property
    def white(self) -> npt.NDArray[np.bool_]:
        """Which measured tiles are burnt out: bool [n]."""
        return self.measured.column("white") > WHITE_SHARE


def describe(
    source: str,
    *,
    out: Path | None = None,
    sample: int | None = None,
    workers: int | None = None,
    label_column: str = "label",
    seed: int = 0,
) -> Description:
    """Describe a source of tiles: the columns and copies of all, the pixels of a sample.

    The same source gives the same description, whatever the workers.

    Args:
        source: What `open_tiles` takes.
        out: HTML page to write; None writes none.
        sample: Tiles to decode, spread over slides and labels; 0 decodes all, None 2,000.
        workers: Processes that decode; None as many as suit the machine.
        label_column: Column of the label.
        seed: Seed of the choice.

    Raises:
        EosinError: If the source is absent, empty or faulty, the sample or the workers negative, or the page not
            writable.
    """
    sample = SAMPLE if sample is None else sample
    if sample < 0:
        raise EosinError(f"--sample {sample}: give how many tiles to decode, such as {SAMPLE}, or 0 for all")
    if out is not None:
        output_file(out, ".html", "tiles.html")
    if workers is not None and workers < 0:
        raise EosinError(f"--workers {workers}: give how many processes decode, 0 for none besides this one")
    workers = default_workers() if workers is None else workers
    tiles = open_tiles(source, label_column=label_column)
    if not len(tiles):
        raise EosinError(f"{tiles.spec}: no tiles; give a source with at least one")
    columns = read_columns(tiles)
    sizes = file_sizes(tiles)
    copies = find_copies(tiles, sizes)
    rows = choose_rows(columns, sample, seed)
    measured = measure(tiles, rows, workers)
    stained = measured.column("tissue") >= BLANK
    lookalikes = find_lookalikes(measured.rows[stained], measured.fingerprints[stained], measured.digests[stained])
    blank = measured.rows[~stained]
    if copies is not None:
        blank = np.concatenate([blank, _blank_copies(tiles, copies, measured, workers)])
    description = Description(
        spec=tiles.spec,
        remarks=tiles.remarks,
        columns=columns,
        sizes=sizes,
        copies=None if copies is None else describe_groups(copies, columns, blank),
        asked=len(rows),
        seed=seed,
        measured=measured,
        lookalikes=describe_groups(lookalikes, columns, blank),
        stain=describe_stain(measured, stained, columns),
    )
    if out is not None:
        from eosin.describe.page import write_page

        write_page(description, tiles, out)
    return description


def _blank_copies(tiles: Tiles, copies: Groups, measured: Measured, workers: int) -> npt.NDArray[np.int64]:
    """Return which first tiles of groups are blank; of groups without a tile in the sample the first is looked at."""
    seen = np.zeros(copies.count, dtype=bool)
    seen[copies.group[np.isin(copies.rows, measured.rows)]] = True
    unseen = copies.first[~seen][:_MOST_COPIES]
    if not len(unseen):
        return unseen
    others = measure(tiles, unseen, workers)
    return others.rows[others.column("tissue") < BLANK]
