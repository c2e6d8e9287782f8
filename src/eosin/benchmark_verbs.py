"""The verbs that measure encoders: `eosin embed`, `evaluate`, `benchmark` and `report`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro

from eosin.arguments import command_line, listed, output, say
from eosin.core.errors import EosinError

__all__ = ["benchmark", "embed", "evaluate", "report"]

Positional = tyro.conf.Positional


def embed(
    *,
    encoder: str,
    data: str,
    out: Path,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    dense: bool = False,
    layers: str = "-1",
    dense_dtype: Literal["float16", "float32"] = "float16",
    shard: str | None = None,
    devices: str = "",
    ray: str | None = None,
) -> int:
    """Embed tiles with an encoder and write features, names and labels to a Parquet file.

    A run that was stopped, by kill -9 too, goes on with the same command: what is done is in OUT.parts until OUT is.

    Args:
        encoder: pathology:NAME (see `eosin encoders`), lunit:NAME, timm:NAME, hf-hub:OWNER/NAME, random:NAME,
            color:stats, a run directory or a weights file.
        data: Tiles: folder:DIR, csv:FILE, store:DIR or a path.
        out: The Parquet file.
        batch_size: Tiles per forward pass; found by itself if not given.
        workers: Processes that decode; chosen by the number of cores if not given.
        precision: bf16 runs the encoder under autocast; the features are float32 either way.
        dense: Keep feature maps too, for segmentation and nuclei, in a folder beside OUT that ends in .dense.
        layers: Which maps, separated by commas, finest first from 0; negative ones count from the deepest.
        dense_dtype: How maps are kept.
        shard: i/n, counted from 0: do this part of the tiles, for job arrays that share OUT; then once without.
        devices: Devices, separated by commas, a process on each: cuda:0,cuda:1, or auto for every GPU here.
        ray: Address of a Ray cluster to use instead, auto for the one that runs here, or local to start one.
    """
    from eosin.evaluate import DenseMaps, embed_to_parquet
    from eosin.tiling import parse_shard

    try:
        chosen = tuple(int(layer) for layer in listed(layers))
    except ValueError:
        raise EosinError(f"--layers '{layers}': give whole numbers, separated by commas, such as -1 or 1,3") from None
    summary = embed_to_parquet(
        encoder,
        data,
        out,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        dense=DenseMaps(chosen, dense_dtype) if dense else None,
        shard=None if shard is None else parse_shard(shard),
        devices=listed(devices),
        ray=ray,
    )
    say(summary)
    return 0


def evaluate(
    *,
    encoder: str,
    task: str,
    out: Path,
    protocol: str = "knn,logistic",
    fractions: str = "1",
    seeds: str = "0",
    label_column: str = "label",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> int:
    """Score one encoder on one labelled task, with 95 % bootstrap intervals.

    Args:
        encoder: pathology:NAME (see `eosin encoders`), lunit:NAME, timm:NAME, hf-hub:OWNER/NAME, random:NAME,
            color:stats, a run directory or a weights file.
        task: folder:DIR, csv:FILE, store:DIR, a public set such as bach:DIR (see `eosin data list`), synthetic, or
            nuclei:SPEC, labelled nuclei (see `eosin data list --nuclei`).
        out: Output directory: results.jsonl, predictions, cached embeddings.
        protocol: Protocols, separated by commas: knn, logistic, linear, linear-cached, eva, finetune, fewshot, shift;
            hovernet of nuclei; NAME:VARIANT for one variant, settings after a `?`; "all" for all.
        fractions: Shares of the training and validation labels, separated by commas, such as 0.01,0.1,1.
        seeds: Seeds, separated by commas.
        label_column: Column of the label in a manifest.
        precision: Of the encoder's passes.
    """
    return benchmark(
        encoders=encoder,
        tasks=task,
        protocols=protocol,
        fractions=fractions,
        out=out,
        seeds=seeds,
        label_column=label_column,
        precision=precision,
    )


def benchmark(
    *,
    encoders: str,
    tasks: str,
    out: Path,
    protocols: str = "knn,logistic",
    fractions: str = "1",
    seeds: str = "0",
    label_column: str = "label",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch_size: int | None = None,
    workers: int | None = None,
    devices: str = "",
    shard: str | None = None,
    ray: str | None = None,
) -> int:
    """Score encoders on tasks; what is done already is not done again.

    Args:
        encoders: Encoders, separated by commas, each SPEC or NAME=SPEC: pathology:NAME (see `eosin encoders`),
            lunit:NAME, timm:NAME, hf-hub:OWNER/NAME, random:NAME, color:stats, a run directory or a weights file;
            {seed} in a spec stands for each seed.
        tasks: Tasks, separated by commas: folder:DIR, csv:FILE, store:DIR, a public set such as bach:DIR (see `eosin
            data list`), synthetic, or nuclei:SPEC (see `eosin data list --nuclei`), with options after a `?`.
        out: Output directory; `eosin report` makes a page of it.
        protocols: Protocols, separated by commas: knn, logistic, linear, linear-cached, eva, finetune, fewshot, shift;
            hovernet of nuclei; NAME:VARIANT for one variant, settings after a `?`; "all" for all.
        fractions: Shares of the training and validation labels, separated by commas, such as 0.01,0.1,1.
        seeds: Seeds, separated by commas.
        label_column: Column of the label in manifests.
        precision: Of the encoder's passes.
        batch_size: Tiles per forward pass; found by itself if not given.
        workers: Processes that decode; chosen by the number of cores if not given.
        devices: Devices to embed on, separated by commas, a process each, such as cuda:0,cuda:1; or auto, every GPU.
        shard: i/n, counted from 0: only embed, and only this part of the tiles, for job arrays that share OUT.
        ray: Address of a Ray cluster to embed on, auto for the one that runs here, or local to start one.
    """
    from eosin.benchmark import BenchmarkConfig, print_table, run_benchmark
    from eosin.benchmark.config import read_fractions, read_seeds
    from eosin.tiling import parse_shard

    config = BenchmarkConfig.parse(
        {
            "encoders": listed(encoders),
            "tasks": listed(tasks),
            "protocols": listed(protocols),
            "fractions": read_fractions(fractions),
            "seeds": read_seeds(seeds),
            "label_column": label_column,
            "out": out,
            "precision": precision,
            "batch_size": batch_size,
            "workers": workers,
            "devices": listed(devices),
            "shard": None if shard is None else parse_shard(shard),
            "ray": ray,
        },
        "benchmark",
    )
    records = run_benchmark(config, command=command_line())
    if shard is not None:
        say(f"{out / 'embeddings'}: when all parts are there, the same command without --shard goes on")
        return 0
    print_table(records, output, out)
    say(f"{out / 'results.jsonl'}; page: eosin report {shlex.quote(str(out))}")
    return 0


def report(
    results: Annotated[Path, Positional],
    /,
    *,
    format: Literal["html", "md", "csv", "json", "png"] = "html",
    out: Path | None = None,
) -> int:
    """Make one self-contained HTML page of a benchmark's results; it opens from disk, offline.

    Args:
        results: A directory written by `eosin benchmark`, `eosin evaluate` or `eosin demo`.
        format: html is the page; md the leaderboards as tables; csv a line per line of the leaderboard and metric; json
            all numbers of the page; png a picture of the leaderboards.
        out: The file to write; RESULTS/report.FORMAT by default.
    """
    from eosin.report import write_report

    say(str(write_report(results, out, format)))
    return 0
