"""The verbs that begin with `eosin stain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from eosin.arguments import command_line, listed, output, say

__all__ = ["stain_fit", "stain_preview", "stain_probe"]

Positional = tyro.conf.Positional


def stain_fit(
    source: Annotated[str, Positional],
    /,
    *,
    out: Path,
    space: Literal["lab", "hsv", "hed"] = "lab",
    model: Literal["independent", "gmm"] = "gmm",
    components: str | None = None,
    limit: int | None = None,
    splits: tuple[str, ...] | None = None,
    whole_tile: bool = False,
    size: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    quarantine_limit: float = 0.01,
) -> int:
    """Fit the distribution of a source's stain, for RandStainNA; the same command again goes on after a stop.

    Args:
        source: Tiles: folder:DIR, csv:FILE, store:DIR or a path.
        out: The JSON file to write.
        space: Color space.
        model: One distribution a channel, or a Gaussian mixture of all of them besides.
        components: Gaussians of the mixture: a number, or auto for the one with the least BIC (the default).
        limit: Measure only so many tiles, drawn at random.
        splits: Take only tiles of these splits.
        whole_tile: Measure bare glass too, as the published files do.
        size: Side in pixels to which tiles are brought; their own, at most 256, if not given.
        seed: Seed of the subset and of the mixture's start.
        workers: Processes that decode and measure; chosen by the number of cores if not given.
        quarantine_limit: Share of unreadable tiles above which nothing is written.
    """
    from eosin.data import default_workers
    from eosin.stain import fit, parse_components, tables

    statistics, unreadable = fit(
        source,
        out,
        space=space,
        model=model,
        components=parse_components(components, model),
        limit=limit,
        splits=splits,
        tissue_only=not whole_tile,
        size=size,
        seed=seed,
        workers=default_workers() if workers is None else workers,
        quarantine_limit=quarantine_limit,
    )
    for table in tables(statistics):
        output.print(table)
    say(f"{statistics.tiles:,} tiles, {statistics.skipped:,} left out → {out}; {unreadable.summary()}")
    return 0


def stain_preview(
    source: Annotated[str, Positional],
    /,
    *,
    preset: str,
    out: Path,
    method: Literal["mocov2", "swav", "barlowtwins", "dino"] = "mocov2",
    statistics: str | None = None,
    rows: int = 6,
    size: int | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> int:
    """Draw a sheet of tiles and their views under a preset, with a plot of the stain: a PNG to look at.

    Args:
        source: Tiles: folder:DIR, csv:FILE, store:DIR or a path.
        preset: natural, pathology, midnight or none.
        out: The PNG file.
        method: Whose views.
        statistics: Draw stains from this file, or shipped name, instead of the preset's.
        rows: Tiles to show.
        size: Side of the views in pixels; the method's own if not given.
        seed: Seed of the choice of tiles and of the draws.
        workers: Processes that decode and measure; chosen by the number of cores if not given.
    """
    from eosin.data import default_workers
    from eosin.pretrain.presets import preset_views
    from eosin.stain import preview, with_statistics

    augment = preset_views(method, preset, size)
    if statistics is not None:
        augment = with_statistics(augment, statistics, f"preset {preset}")
    workers = default_workers() if workers is None else workers
    say(preview(source, augment, out, title=f"{method}, {preset}", rows=rows, seed=seed, workers=workers))
    return 0


def stain_probe(
    *,
    encoders: str,
    task: str,
    out: Path,
    shifts: str = "hed-light,hed-strong,template:crc-lab,template:monuseg-lab",
    protocol: str = "logistic",
    seeds: str = "0",
    label_column: str = "label",
) -> int:
    """Measure what encoders lose, and how far embeddings move, on test tiles stained differently.

    Args:
        encoders: Encoders, separated by commas, each SPEC or NAME=SPEC; {seed} in a spec stands for each seed.
        task: folder:DIR, csv:FILE, store:DIR or synthetic, with options after a `?`.
        out: Output directory; what is done there already is not done again.
        shifts: Stain shifts, separated by commas: hed-light, hed-strong, hematoxylin+, hematoxylin-, eosin+, eosin-, or
            template:STATISTICS with a shipped name or a file.
        protocol: The probe, fitted and chosen on tiles as they are.
        seeds: Seeds, separated by commas.
        label_column: Column of the label in a manifest.
    """
    from eosin.evaluate.stain_probe import RECORDS, StainProbeConfig, run_stain_probe
    from eosin.evaluate.stain_summary import print_summary

    config = StainProbeConfig.parse(
        {
            "encoders": listed(encoders),
            "task": task,
            "shifts": listed(shifts),
            "protocol": protocol,
            "seeds": listed(seeds),
            "label_column": label_column,
            "out": out,
        },
        "stain probe",
    )
    _, summary = run_stain_probe(config, command=command_line())
    print_summary(summary, output)
    say(str(out / RECORDS))
    return 0
