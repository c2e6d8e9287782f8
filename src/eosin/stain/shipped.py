"""The statistics that come with eosin: fitted on synthetic tissue, and made again by one call."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

from eosin.augment.spaces import Space
from eosin.augment.stain_statistics import StainStatistics, save_statistics
from eosin.core.files import writable_directory
from eosin.stain.fit import fit
from eosin.synthetic import write_tiles

__all__ = ["SLIDES", "TILES", "fit_synthetic"]

TILES, SLIDES = 2048, 256
"""Of the shipped files: each of the eight tissues once on every slide, so the stain varies as slides do."""
_SIZE = 128


def fit_synthetic(out: Path, *, tiles: int = TILES, slides: int = SLIDES, workers: int = 0) -> list[StainStatistics]:
    """Write `synthetic-lab.json`, `synthetic-hsv.json` and `synthetic-hed.json`.

    Args:
        out: Folder for the files.
        tiles: Synthetic tiles of 128 px at 0.5 µm/px.
        slides: Slides they are spread over, each with a stain of its own.
        workers: Processes that measure.

    Returns:
        The statistics, in that order.

    Raises:
        EosinError: If a number is out of range, or the folder is not writable.
    """
    writable_directory(out)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        index = write_tiles(Path(folder) / "tiles", tiles=tiles, slides=slides, size=_SIZE)
        for space in get_args(Space):
            path = out / f"synthetic-{space}.json"
            statistics, _ = fit(f"csv:{index}", path, space=space, workers=workers)
            # Where the tiles lay for a moment helps nobody.
            source = f"eosin.synthetic.write_tiles(tiles={tiles}, slides={slides}, size={_SIZE}): not real tissue"
            statistics = statistics.model_copy(update={"source": source})
            save_statistics(statistics, path)
            found.append(statistics)
    return found
