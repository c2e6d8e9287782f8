"""`eosin tile`, and what says and exports what came of it: `eosin data describe`, `eosin data export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from eosin.arguments import output, say
from eosin.core.server import start_server

__all__ = ["data_describe", "data_export", "tile"]

Positional = tyro.conf.Positional


def tile(
    slides: Annotated[tuple[Path, ...], Positional],
    /,
    *,
    out: Path,
    mpp: tyro.conf.UseAppendAction[tuple[float, ...]] = (),
    size: int = 256,
    stride: int | None = None,
    minimum_tissue: float = 0.5,
    source_mpp: str | None = None,
    patient: str | None = None,
    masks: Path | None = None,
    regions: Path | None = None,
    coordinates: Path | None = None,
    encoding: Literal["jpeg", "png"] = "jpeg",
    quality: int = 90,
    tissue_mpp: float | None = None,
    smallest_tissue: float | None = None,
    smallest_hole: float | None = None,
    keep_pen: bool = False,
    plain: bool = False,
    jobs: int | None = None,
    shard: str | None = None,
    ray: str | None = None,
) -> int:
    """Cut slides into tiles at an exact physical scale; the same command again does only what is missing.

    Args:
        slides: Slides and folders of slides, at any depth.
        out: The tile store to write, slide by slide, with slides.csv, failures.csv and previews/.
        mpp: µm/px of the tiles; 0.5 if not given; given several times, several fields of view.
        size: Side of a tile in px.
        stride: Distance between tiles in px; the size if not given, so that tiles touch.
        minimum_tissue: Share of a tile that must be tissue, 0 to 1.
        source_mpp: µm/px of slides: a number, where a file does not say it, or a CSV of slide,mpp, whatever it says.
        patient: Patients: a regular expression with a group, searched in slides' names, or a CSV of slide,patient.
        masks: Folder of tissue masks NAME.png, used instead of eosin's own.
        regions: Folder of regions of interest NAME.geojson, as QuPath writes them: only tiles in them.
        coordinates: Folder of CLAM's or TRIDENT's coordinates NAME.h5: these tiles, instead of --mpp and --size.
        encoding: jpeg, or png for no loss at all.
        quality: JPEG quality, 1 to 100.
        tissue_mpp: µm/px at which tissue is sought.
        smallest_tissue: Pieces of tissue smaller than this, in µm², are left out.
        smallest_hole: Holes in tissue smaller than this, in µm², are filled.
        keep_pen: Do not leave out what looks like pen marks.
        plain: Take images without levels (PNG, JPEG) in folders too; they need --source-mpp.
        jobs: Processes; one for each core if not given.
        shard: i/n, counted from 0: do this part of the slides, for job arrays that share OUT.
        ray: Address of a Ray cluster to use instead, auto for the one that runs here, or local to start one.
    """
    if ray is None:
        # It imports what cuts slides while this process does.
        start_server("eosin.tiling.preload")
    from eosin.tiling import Extras, TilingConfig, parse_shard, slide_table, tile_slides

    tissue = {"mpp": tissue_mpp, "smallest_tissue": smallest_tissue, "smallest_hole": smallest_hole}
    config = TilingConfig.parse(
        {
            "mpp": mpp or (0.5,),
            "size": size,
            "stride": stride,
            "minimum_tissue": minimum_tissue,
            "encoding": encoding,
            "quality": quality,
            "tissue": {"pen": not keep_pen, **{name: value for name, value in tissue.items() if value is not None}},
        },
        "eosin tile",
    )
    summary = tile_slides(
        slides,
        out,
        config,
        extras=Extras(source_mpp, patient, masks, regions, coordinates),
        processes=jobs,
        shard=None if shard is None else parse_shard(shard),
        ray=ray,
        plain=plain,
    )
    if len(summary.records) > 1 or summary.without_tiles:
        output.print(slide_table(summary.records))
    say(str(summary))
    return 0


def data_export(
    source: Annotated[str, Positional],
    /,
    *,
    out: Path,
    format: Literal["folder", "webdataset", "parquet", "clam", "trident"],
    label_column: str = "label",
    splits: tuple[str, ...] | None = None,
) -> int:
    """Write tiles in another layout, their bytes as they are, or the coordinates of a store for CLAM or TRIDENT.

    Args:
        source: folder:DIR, csv:FILE, store:DIR or a path.
        out: The folder to write; appears whole or not at all.
        format: folder with index.csv; webdataset tar shards; parquet as Hugging Face datasets load it; clam or trident
            for one H5 file of coordinates a slide.
        label_column: Column of the label.
        splits: Take only tiles of these splits.
    """
    from eosin.data import open_tiles
    from eosin.data.export import export_tiles
    from eosin.tiling.coordinates import export_coordinates

    tiles = open_tiles(source, label_column=label_column, splits=splits)
    if format == "clam" or format == "trident":
        say(str(export_coordinates(tiles, out, format)))
    else:
        say(str(export_tiles(tiles, out, format)))
    return 0


def data_describe(
    source: Annotated[str, Positional],
    /,
    *,
    out: Path | None = None,
    sample: int = 2000,
    label_column: str = "label",
    workers: int | None = None,
    seed: int = 0,
) -> int:
    """Say what a source of tiles holds: counts, sizes, µm/px, slides, blank, blurred and duplicate tiles, stain.

    Args:
        source: folder:DIR, csv:FILE, store:DIR, slides:DIR or a path.
        out: An HTML page to write too, with figures and a sheet of samples.
        sample: Tiles whose pixels are looked at, spread over the slides; 0 for all.
        label_column: Column of the label.
        workers: Processes that read; chosen by the number of cores if not given.
        seed: Seed of the sample.
    """
    from eosin.describe import describe, print_description

    description = describe(source, out=out, sample=sample, workers=workers, label_column=label_column, seed=seed)
    print_description(description, output)
    if out is not None:
        say(f"Page: {out}")
    return 0
