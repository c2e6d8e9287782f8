"""The verbs that begin with `eosin nuclei`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from eosin.arguments import command_line, output, say
from eosin.core.console import console
from eosin.core.errors import EosinError, nearest

if TYPE_CHECKING:
    from eosin.nuclei.score_files import Scored

__all__ = ["nuclei_predict", "nuclei_score", "nuclei_train"]

Positional = tyro.conf.Positional


def nuclei_train(
    recipe: Annotated[str, Positional] = "hovernet",
    /,
    *,
    data: str | None = None,
    encoder: str | None = None,
    out: Path | None = None,
    fraction: float | None = None,
    field: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
) -> int:
    """Train nuclei segmentation on an encoder; the same command again goes on where it was stopped.

    Any field of the recipe is set by its dotted name: --decoder.epochs 10 --network.width 0.5.

    Args:
        recipe: hovernet, nuclei-small, or a YAML file such as a run's config.yaml.
        data: Labelled nuclei: folder:DIR, consep:DIR, monuseg:DIR, pannuke:DIR, nucls:DIR, lizard:DIR or synthetic:.
        encoder: As of `eosin evaluate`, or preact_resnet50; short for --network.encoder.
        out: The run directory.
        fraction: Share of the training images; short for --data.fraction.
        field: NAME=VALUE, the long form of --NAME VALUE.
    """
    from eosin.core.config import parse_overrides
    from eosin.nuclei.recipe import load_nuclei_recipe, nuclei_recipe_names
    from eosin.nuclei.train import train_nuclei
    from eosin.training.signals import Interrupted

    overrides = parse_overrides([f"--{assignment}" for assignment in field])
    given = {"data.source": data, "network.encoder": encoder, "data.fraction": fraction}
    overrides |= {name: value for name, value in given.items() if value is not None}
    config = load_nuclei_recipe(recipe, overrides)
    if config.data.source is None:
        raise EosinError(
            f"--data is missing: eosin nuclei train RECIPE --data SET --out RUN; {nearest('', nuclei_recipe_names())}"
        )
    if out is None:
        raise EosinError("--out is missing: name the run directory with --out RUN")
    try:
        model = train_nuclei(config, out, command_line())
    except Interrupted as stop:
        console.print(f"{stop}; a checkpoint is saved. Go on with the same command:\n  {escape(command_line())}")
        return 130 if stop.signal == signal.SIGINT else 0
    say(f"{model}; nuclei of images and slides: eosin nuclei predict {out} IMAGES --out OUT")
    return 0


def nuclei_predict(
    run: Annotated[Path, Positional],
    pictures: Annotated[tuple[Path, ...], Positional],
    /,
    *,
    out: Path,
    mpp: float | None = None,
    source_mpp: str | None = None,
    whole: bool = False,
    objects: Literal["detection", "cell"] = "detection",
    table: Literal["parquet", "csv"] = "parquet",
    labels: Literal["auto", "png", "tiff", "npy", "none"] = "auto",
    overlays: bool = True,
    batch_size: int | None = None,
    block: int | None = None,
    device: str | None = None,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
) -> int:
    """Find the nuclei of images and slides: GeoJSON for QuPath, tables, label maps, pictures; resumable.

    Args:
        run: A run of `eosin nuclei train`, or its model.safetensors.
        pictures: Images, slides and folders of them, at any depth.
        out: The folder to write.
        mpp: µm/px at which the network sees; that of its training images if not given.
        source_mpp: µm/px of the files: a number, where a file does not say it, or a CSV of slide,mpp, whatever it says.
        whole: Look at all of a slide, not at its tissue alone.
        objects: What QuPath makes of nuclei.
        table: Format of the tables.
        labels: Label maps: auto is PNG of images, and none of slides, whose label maps are tiled TIFFs if asked for.
        overlays: Draw outlines over pictures.
        batch_size: Windows a pass; 16 on a GPU and 4 elsewhere if not given.
        block: Side in px of the blocks in which large pictures are searched; 2048 on a GPU and 1024 elsewhere.
        device: cpu, cuda, cuda:N; the best one present if not given.
        precision: auto is bf16 where the device has it in hardware.
    """
    from eosin.nuclei.model import NucleiModel
    from eosin.nuclei.predict import PredictConfig, predict

    config = PredictConfig.parse(
        {
            "mpp": mpp,
            "whole": whole,
            "objects": objects,
            "table": table,
            "labels": labels,
            "overlays": overlays,
            "batch_size": batch_size,
            "block": block,
        },
        "eosin nuclei predict",
    )
    if not pictures:
        raise EosinError(f"give images or slides: eosin nuclei predict {run} IMAGES --out OUT")
    model = NucleiModel.load(run, device=device, precision=precision)
    result = predict(model, pictures, out, config, source_mpp=source_mpp)
    say(str(result))
    return 2 if result.failed else 0


def nuclei_score(
    predicted: Annotated[Path, Positional],
    truth: Annotated[str, Positional],
    /,
    *,
    out: Path | None = None,
    side: Literal["train", "val", "test", "all"] = "test",
    radius: float | None = None,
    pairing: Literal["official", "within"] = "official",
    seed: int = 0,
) -> int:
    """Score predicted nuclei: Dice, AJI, AJI+, PQ, mPQ in three definitions, F per type, with 95 % intervals.

    Args:
        predicted: A folder of `eosin nuclei predict`, or of label maps (PNG, TIFF, NPY, NPZ, MAT).
        truth: A set such as consep:DIR?classes=4, or a folder of label maps of the same names.
        out: A file to write too: .json with all there is, .csv with a row for each image.
        side: Which images of a set.
        radius: Largest distance in px of centers that are a pair; 3 µm, or 12 px, if not given.
        pairing: official pairs all centers with all, as the authors' code does; within only those near enough, which
            also suits whole slides.
        seed: Of the intervals.
    """
    from eosin.nuclei.score_files import score_files, scores_file, write_scores

    if out is not None:
        scores_file(out)
    scored = score_files(predicted, truth, side=side, radius=radius, seed=seed, pairing=pairing)
    output.print(_table(scored))
    if out is not None:
        say(str(write_scores(scored, out)))
    return 0


def _table(scored: Scored) -> Table:
    unit = "images" if scored.groups == len(scored.images) else "patients or slides"
    table = Table(
        title=f"{len(scored.images):,} images, 95 % intervals over {scored.groups:,} {unit}", title_justify="left"
    )
    table.add_column("metric")
    for name in ("value", "low", "high"):
        table.add_column(name, justify="right")
    table.add_column("")
    for name, interval in scored.metrics.items():
        values = [interval.get(key) for key in ("value", "low", "high")]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        table.add_row(escape(name), *cells, escape(str(interval.get("reason", ""))))
    return table
