"""What a preset makes of a source's tiles, to look at before training on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.augment import AugmentConfig
from eosin.augment.image_statistics import image_statistics
from eosin.augment.randstainna import RandStainNA, RandStainNAConfig
from eosin.augment.spaces import Space
from eosin.augment.stain_statistics import load_statistics
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, output_file
from eosin.data import Quarantine, Tiles, load_square, open_tiles
from eosin.stain.density import density_of
from eosin.stain.fit import check_seed, subset
from eosin.stain.measure import MeasureConfig, Measured, measure, native_size, require_tissue
from eosin.stain.plot import Cloud, plot_distribution
from eosin.stain.sheet import Column, draw_sheet, sample_views, stacked

__all__ = ["preview", "stain_of", "with_statistics"]

# Tiles measured for the plot, and as many targets drawn.
_POINTS = 300
_MOST_ROWS = 40


def stain_of(augment: AugmentConfig) -> RandStainNAConfig | None:
    """Return the first kind of views' RandStainNA that is in use, or None."""
    for kind in augment.views.values():
        if kind.count and kind.randstainna.probability:
            return kind.randstainna
    return None


def with_statistics(augment: AugmentConfig, statistics: str, where: str) -> AugmentConfig:
    """Return the views with every RandStainNA that is in use drawing from other statistics.

    Where these hold no mixture, as the published ones, each number is drawn on its own.

    Args:
        augment: The views.
        statistics: A shipped name or a file.
        where: What to name in an error, such as the preset.

    Raises:
        EosinError: If no view uses RandStainNA, or the file cannot be read.
    """
    if stain_of(augment) is None:
        raise EosinError(f"--statistics: {where} draws from none; choose a preset with RandStainNA, such as pathology")
    changes = {"statistics": statistics}
    if load_statistics(statistics).mixture is None:
        changes["model"] = "independent"
    values = augment.plain()
    for kind in values["views"].values():
        if kind["randstainna"]["probability"]:
            kind["randstainna"] |= changes
    return AugmentConfig.parse(values, where)


def preview(
    source: str, augment: AugmentConfig, out: Path, *, title: str, rows: int = 6, seed: int = 0, workers: int = 0
) -> str:
    """Write a sheet of tiles beside their views, above a plot of the stain.

    With RandStainNA the plot shows the distribution that it draws from, the source's tiles and as many drawn targets;
    without, the tiles and their views.

    Args:
        source: A source of tiles; blank ones are not shown.
        augment: The views, as training makes them.
        out: The PNG file.
        title: What the views are, for the first line.
        rows: Tiles to show.
        seed: Seed of the choice of tiles and of the draws.
        workers: Processes that decode and measure.

    Returns:
        A closing line.

    Raises:
        EosinError: If the source or the output is not usable, or no tile shows tissue.
    """
    if not 1 <= rows <= _MOST_ROWS:
        raise EosinError(f"--rows {rows}: give a number from 1 to {_MOST_ROWS}")
    check_seed(seed)
    output_file(out, ".png", "sheet.png")
    every = open_tiles(source)
    tiles = subset(every, max(_POINTS, rows), seed)
    stain = stain_of(augment)
    statistics = None if stain is None else load_statistics(stain.statistics)
    space: Space = "lab" if statistics is None else statistics.space
    tissue_only = True if statistics is None else statistics.tissue_only
    config = MeasureConfig(space=space, tissue_only=tissue_only, size=native_size(tiles))
    # To look at what can be read is never wrong.
    quarantine = Quarantine(None, 1.0)
    measured = measure(tiles, config, workers=workers, quarantine=quarantine)
    require_tissue(measured, every.spec)
    images = _pick(tiles, measured, rows, seed, config.size)
    columns = sample_views(images, augment, seed)
    sheet = draw_sheet(f"{title} · {every.spec}", [Column("tile", images.numpy()), *columns])
    stained = Cloud("tiles of the source", measured.values[measured.stained])
    if stain is None or statistics is None:
        plot = plot_distribution(
            "Stain of the tiles and of their views", space, stained, _measured_views(columns, config), None, sheet.width
        )
    else:
        targets = RandStainNA(stain).sample(Draws(seed, 0, range(_POINTS)), torch.empty(_POINTS, 3, 1, 1))["target"]
        plot = plot_distribution(
            f"Stain: {stain.model} of {stain.statistics}, {space.upper()}, spread {stain.spread:g}",
            space,
            stained,
            Cloud("drawn targets", np.asarray(targets, dtype=np.float64)),
            density_of(statistics, stain),
            sheet.width,
        )
    with atomic_file(out) as file:
        stacked([sheet, plot]).save(file, format="PNG")
    shown = "1 tile" if len(images) == 1 else f"{len(images)} tiles"
    return f"{out}: {shown}, {len(columns)} views of each; {quarantine.summary()}"


def _pick(tiles: Tiles, measured: Measured, rows: int, seed: int, size: int) -> Tensor:
    """Return tiles that show tissue: uint8 [n, 3, size, size], at most `rows`."""
    stained = measured.rows[measured.stained]
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(stained))
    chosen = np.sort(stained[order[:rows]])
    return torch.from_numpy(np.stack([load_square(tiles, int(row), size) for row in chosen]))


def _measured_views(columns: list[Column], config: MeasureConfig) -> Cloud:
    """Measure every view of the sheet that shows tissue."""
    values: list[npt.NDArray[np.float64]] = []
    for column in columns:
        pixels = torch.from_numpy(column.images).to(torch.float32).mul_(1 / 255)
        numbers, tissue = image_statistics(pixels, config.space, config.tissue_only)
        shown = (tissue >= config.minimum_tissue).numpy()
        values.append(numbers.numpy().astype(np.float64)[shown])
    return Cloud("views", np.concatenate(values) if values else np.empty((0, 6)))
