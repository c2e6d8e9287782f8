"""The synthetic task: rendered tissue with known classes, for trying the whole chain where no data is at hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

from eosin.core.console import console
from eosin.core.errors import EosinError
from eosin.core.files import short_hash
from eosin.core.home import eosin_home
from eosin.data import open_tiles
from eosin.synthetic import TISSUES, render_tile, write_tiles
from eosin.tasks.labelled import TASKS
from eosin.tasks.spec import parse_options
from eosin.tasks.task import Task, TaskOptions, build_task

__all__ = ["SyntheticOptions", "open_synthetic", "synthetic_index"]

_VERSION = 1


class SyntheticOptions(TaskOptions):
    """What is rendered; one set of options is rendered once and kept."""

    tiles: int = 800
    """Number of tiles."""
    slides: int = 20
    """Number of slides, one patient each, split 60/20/20."""
    size: int = 128
    """Side of a tile in pixels, at 0.5 µm/px."""
    seed: int = 0
    """Seed of the rendering; the split of the slides belongs to it."""


def synthetic_index(options: SyntheticOptions) -> Path:
    """Return the manifest of a rendered collection, rendering it first where it is not in the cache.

    The cache is ``$EOSIN_HOME/synthetic``, by default ``~/.cache/eosin/synthetic``. Its key includes what the renderer
    draws now, so a collection of an older renderer is not taken for a new one.
    """
    drawn = hashlib.sha256()
    for tissue in TISSUES:
        drawn.update(render_tile(tissue, size=32, mpp=0.5, seed=options.seed, slide=0, index=0).image.tobytes())
    key = short_hash(options.tiles, options.slides, options.size, options.seed, drawn.hexdigest())
    home = eosin_home()
    folder = home / "synthetic" / key
    index = folder / "index.csv"
    if not index.is_file():
        console.print(f"rendering {options.tiles} synthetic tiles, once, into {folder}")
        try:
            write_tiles(folder, tiles=options.tiles, slides=options.slides, size=options.size, seed=options.seed)
        except (EosinError, OSError) as error:
            # Another process may have finished the same collection first; its files are the same.
            if not index.is_file():
                raise EosinError(f"{error} (EOSIN_HOME names the place of synthetic tissue)") from error
    return index


@TASKS.register("synthetic")
def open_synthetic(source: str, options: dict[str, str], spec: str, seed: int, label_column: str) -> Task:
    """Open the synthetic task: ``synthetic`` or ``synthetic?tiles=400&slides=12&size=96&seed=1``."""
    chosen = parse_options(SyntheticOptions, options, spec)
    if source:
        raise EosinError(f"{spec}: the synthetic task has no path; set options as synthetic?tiles=800&slides=20")
    least = len(TISSUES) * chosen.slides
    if chosen.slides < 3 or chosen.tiles < least:
        fix = f"give at least 3 slides, and {len(TISSUES)} tiles to each" if chosen.slides < 3 else f"use tiles={least}"
        raise EosinError(f"{spec}: {chosen.tiles} tiles do not fill {chosen.slides} slides with every tissue; {fix}")
    tiles = open_tiles(f"csv:{synthetic_index(chosen)}", label_column=chosen.label or label_column)
    varied = {key: value for key, value in options.items() if key in ("tiles", "slides", "size", "seed")}
    suffix = "".join(f":{key}={value}" for key, value in sorted(varied.items()))
    return build_task(
        tiles,
        chosen,
        name=chosen.name or f"synthetic{suffix}",
        version=_VERSION,
        reference="rendered by eosin.synthetic; no real tissue",
        seed=seed,
        synthetic=True,
    )
