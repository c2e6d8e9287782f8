"""The distribution of a source's stain, in a file that augmentation draws from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from eosin import __version__
from eosin.augment.spaces import Space
from eosin.augment.stain_statistics import StainStatistics, fit_statistics, save_statistics
from eosin.core.console import console
from eosin.core.draws import permuted, stream_seed
from eosin.core.errors import EosinError
from eosin.core.files import output_file, storage_errors
from eosin.data import Quarantine, Tiles, open_tiles
from eosin.stain.measure import MeasureConfig, measure, native_size, require_tissue
from eosin.stain.partial import partial_path

__all__ = ["Components", "Model", "check_seed", "fit", "parse_components", "subset"]

Model = Literal["independent", "gmm"]
Components = int | Literal["auto"]

# Side in px; a tile of it takes a few hundred megabytes while it is measured.
_LARGEST = 2048


def parse_components(text: str | None, model: Model) -> Components:
    """Read the number of Gaussians of a mixture.

    Args:
        text: "auto", a whole number from 1, or None for auto.
        model: Only a mixture has components.

    Raises:
        EosinError: If it is neither, or the model is independent.
    """
    if text is None:
        return "auto"
    if model == "independent":
        raise EosinError("--components: an independent model has none; leave it out, or use --model gmm")
    if text == "auto":
        return "auto"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise EosinError(f"--components {text}: give a whole number from 1, or auto")
    return int(text)


def check_seed(seed: int) -> None:
    """Refuse a seed that a generator does not take.

    Raises:
        EosinError: If it is negative or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise EosinError(f"--seed {seed}: give a whole number from 0 to {2**32 - 1}")


def subset(tiles: Tiles, limit: int | None, seed: int) -> Tiles:
    """Return `limit` tiles drawn at random, in the source's order; all of them if there are no more.

    Raises:
        EosinError: If the limit is below 1.
    """
    if limit is None:
        return tiles
    if limit < 1:
        raise EosinError(f"--limit {limit}: give a number of tiles from 1")
    if limit >= len(tiles):
        return tiles
    chosen = permuted(np.arange(limit), len(tiles), stream_seed(seed, "stain", "limit"))
    return tiles.select(np.sort(chosen))


def fit(
    source: str,
    out: Path,
    *,
    space: Space = "lab",
    model: Model = "gmm",
    components: Components = "auto",
    limit: int | None = None,
    splits: Sequence[str] | None = None,
    tissue_only: bool = True,
    size: int | None = None,
    seed: int = 0,
    workers: int = 0,
    quarantine_limit: float = 0.01,
) -> tuple[StainStatistics, Quarantine]:
    """Fit the distribution of a source's stain and write it.

    Each tile gives six numbers: the average and the standard deviation of each channel of the color space over its
    tissue. Blank tiles are left out and counted. The result is the same for any number of workers, and after a stop:
    the same call goes on with what is kept in a hidden file beside `out`.

    Args:
        source: A source of tiles.
        out: The JSON file to write.
        space: lab, hsv or hed.
        model: "independent" for one distribution a number, "gmm" for a full-covariance Gaussian mixture besides.
        components: Gaussians of the mixture; "auto" takes the number with the least BIC.
        limit: Measure only so many tiles, drawn at random.
        splits: Take only tiles of these splits.
        tissue_only: Leave out the pixels of bare glass.
        size: Side in pixels to which tiles are brought; their own, at most 256, if not given.
        seed: Seed of the subset and of the mixture's start.
        workers: Processes that decode and measure.
        quarantine_limit: Share of unreadable tiles above which nothing is written.

    Returns:
        The statistics as written, and the tiles that could not be read.

    Raises:
        EosinError: If the source, the settings or the output are not usable, or no tile shows tissue.
    """
    if size is not None and not 8 <= size <= _LARGEST:
        raise EosinError(f"--size {size}: give a side from 8 to {_LARGEST:,} px")
    check_seed(seed)
    output_file(out, ".json", "stain.json")
    tiles = subset(open_tiles(source, splits=splits), limit, seed)
    if components != "auto" and components > len(tiles):
        raise EosinError(f"--components {components}: {tiles.spec} has only {len(tiles):,} tiles; give fewer, or auto")
    console.print(tiles.describe(), markup=False)
    partial, listed = partial_path(out), out.with_suffix(".quarantine.jsonl")
    if not partial.exists():
        # An earlier fit's list, perhaps of other tiles.
        with storage_errors(listed):
            listed.unlink(missing_ok=True)
    quarantine = Quarantine(listed, quarantine_limit)
    config = MeasureConfig(space=space, tissue_only=tissue_only, size=native_size(tiles) if size is None else size)
    with console.status("reading the tiles' digests"):
        content = tiles.content_hash()
    measured = measure(tiles, config, workers=workers, quarantine=quarantine, partial=partial, key=content)
    require_tissue(measured, tiles.spec)
    stained = measured.stained
    settings: dict[str, Any] = {
        "model": model,
        "components": components,
        "limit": limit,
        "splits": None if splits is None else list(splits),
        "size": config.size,
        "minimum_tissue": config.minimum_tissue,
        "seed": seed,
        "blank": int((~stained).sum()),
        "unreadable": measured.total - len(measured.rows),
        "versions": versions(),
    }
    # Sums on several threads come in another order, and the same tiles would give another last digit.
    with threadpool_limits(1):
        statistics = fit_statistics(
            measured.values[stained],
            space=space,
            tissue_only=tissue_only,
            model=model,
            components=components,
            seed=seed,
            skipped=measured.total - int(stained.sum()),
            source=tiles.spec,
            source_hash=content,
            settings=settings,
        )
    save_statistics(statistics, out)
    partial.unlink(missing_ok=True)
    return statistics, quarantine


def versions() -> dict[str, str]:
    """Return the versions of what the numbers pass through."""
    names = ("torch", "torchvision", "numpy", "scikit-learn", "pillow")
    return {"eosin": __version__} | {name: metadata.version(name) for name in names}
