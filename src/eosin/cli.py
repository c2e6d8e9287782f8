"""The `eosin` command: one function a verb. A verb reads its arguments, calls one function and prints what came.

Exit codes: 0 done; 1 the demo's encoder did not beat its baselines; 2 bad input, told in one line; 130 after Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import select
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from eosin import __version__
from eosin.arguments import command_line, listed, output, print_help, print_verb_help, read, say
from eosin.core.console import console
from eosin.core.errors import EosinError, nearest
from eosin.data_verbs import data_check, data_get, data_list
from eosin.encoder_verbs import encoders
from eosin.nuclei_verbs import nuclei_predict, nuclei_score, nuclei_train
from eosin.stain_verbs import stain_fit, stain_preview, stain_probe
from eosin.tile_verbs import data_describe, data_export, tile

__all__ = ["main"]

Positional = tyro.conf.Positional


def demo(*, out: Path = Path("demo"), minutes: float | None = None) -> int:
    """Run the main job on synthetic tissue: pre-train, evaluate, report (about 7 minutes on 2 cores).

    Exits with 1 if the pre-trained encoder does not beat the untrained one and color statistics on the kNN probe.

    Args:
        out: Output directory; a demo stopped half-way goes on there.
        minutes: Rough length of the pre-training.
    """
    from eosin.benchmark import print_table
    from eosin.demo import run_demo
    from eosin.pretrain import Interrupted

    try:
        outcome = run_demo(out, minutes, command_line())
    except Interrupted as stop:
        return _stopped(stop.signal, str(stop))
    print_table(outcome.records, output, out)
    say(f"Report: {outcome.report} (open it in a browser). Synthetic tissue: no claim about real pathology.")
    if not outcome.won:
        console.print("[red]Pre-training did not beat both baselines on the kNN probe.[/red] Try a larger --minutes.")
        return 1
    return 0


def data_pack(
    sources: Annotated[tuple[str, ...], Positional],
    /,
    *,
    out: Path,
    cut: int | None = None,
    splits: tuple[str, ...] | None = None,
    label_column: str = "label",
    quarantine_limit: float = 0.01,
) -> int:
    """Pack folders, manifests or stores into one tile store, cutting large images into tiles.

    Args:
        sources: folder:DIR, csv:FILE, store:DIR or plain paths.
        out: The store to write; appears whole or not at all.
        cut: Side in pixels: larger images are cut into tiles of this size.
        splits: Take only tiles of these splits; every source must then have splits.
        label_column: Column of the label in manifests.
        quarantine_limit: Share of unreadable images above which nothing is written.
    """
    from eosin.data import default_workers, pack

    summary = pack(
        sources,
        out,
        cut=cut,
        splits=splits,
        label_column=label_column,
        quarantine_limit=quarantine_limit,
        workers=default_workers(),
    )
    say(str(summary))
    return 0


def pretrain(
    recipe: Annotated[str, Positional] = "",
    /,
    *,
    data: str | None = None,
    out: Path | None = None,
    on_collapse: Literal["warn", "stop"] | None = None,
    field: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
) -> int:
    """Pre-train an encoder on unlabelled tiles; the same command again goes on where it was stopped.

    Any field of the recipe is set by its dotted name: --samples 100000 --method.momentum 0.99. The fields of a recipe
    and their values are shown by `eosin pretrain RECIPE --help`.

    Args:
        recipe: A recipe's name, or a YAML file such as a run's config.yaml.
        data: Unlabelled tiles: folder:DIR, csv:FILE, store:DIR, slides:DIR or a path.
        out: The run directory.
        on_collapse: What to do when the encoder collapses; short for --watch.on_collapse.
        field: NAME=VALUE, the long form of --NAME VALUE.
    """
    from eosin.core.config import parse_overrides
    from eosin.pretrain import Interrupted, load_recipe, recipe_names
    from eosin.pretrain import pretrain as run

    if not recipe:
        raise EosinError(f"give a recipe: eosin pretrain RECIPE --data SOURCE --out RUN; {nearest('', recipe_names())}")
    overrides = parse_overrides([f"--{assignment}" for assignment in field])
    if data is not None:
        overrides["data.source"] = data
    if on_collapse is not None:
        overrides["watch.on_collapse"] = on_collapse
    config = load_recipe(recipe, overrides)
    if out is None:
        raise EosinError("--out is missing: name the run directory with --out RUN")
    try:
        run(config, out, command=command_line())
    except Interrupted as stop:
        if os.environ.get("RANK", "0") == "0":
            return _stopped(stop.signal, str(stop))
    return 0


def export(
    source: Annotated[str, Positional],
    /,
    *,
    out: Path,
    format: Literal["safetensors", "timm", "torchvision", "onnx"] = "safetensors",
    checkpoint: str | None = None,
) -> int:
    """Write an encoder for use elsewhere, checked to give the same embeddings.

    Args:
        source: A run directory, finished or not, or an encoder as for --encoder.
        out: The file to write; for timm, the directory.
        format: eosin's own file, a directory for timm.create_model("local-dir:OUT", pretrained=True), a state dict for
            torchvision.models, or ONNX.
        checkpoint: best, last or a step of the run; its finished encoder, or the last checkpoint, if not given.
    """
    from eosin.pretrain.export import export as run

    say(run(source, out, format, checkpoint))
    return 0


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


def doctor() -> int:
    """Say what is installed, which device is used, what is missing and how to get it."""
    from eosin.doctor import examine

    table = Table(title=f"eosin {__version__}", show_header=False, title_justify="left")
    findings = examine()
    for subject, fine, text in findings:
        optional = subject.startswith(("extra", "GPU"))
        mark = "[green]ok[/green]" if fine else ("[dim]-[/dim]" if optional else "[red]no[/red]")
        table.add_row(mark, subject, escape(text))
    output.print(table)
    return 0 if all(fine or subject.startswith(("extra", "GPU")) for subject, fine, _ in findings) else 2


VERBS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "tile": tile,
    "data list": data_list,
    "data get": data_get,
    "data check": data_check,
    "data pack": data_pack,
    "data describe": data_describe,
    "data export": data_export,
    "pretrain": pretrain,
    "export": export,
    "encoders": encoders,
    "embed": embed,
    "evaluate": evaluate,
    "benchmark": benchmark,
    "report": report,
    "nuclei train": nuclei_train,
    "nuclei predict": nuclei_predict,
    "nuclei score": nuclei_score,
    "stain fit": stain_fit,
    "stain preview": stain_preview,
    "stain probe": stain_probe,
    "doctor": doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after `eosin`; those of the process if not given.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not debug:
        warnings.filterwarnings("ignore")
    try:
        return _run(words)
    except EosinError as error:
        if debug:
            raise
        console.print(f"[red]error:[/red] {escape(str(error))}")
        return 2
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where it was")
        return 130
    except BrokenPipeError:
        if not _reader_gone():
            raise
        # What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug or error.errno != errno.ENOSPC:
            raise
        # A result printed into a full disk: what writes files says so itself, and names them.
        console.print("[red]error:[/red] no space left on the device for what is printed; free some")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _reader_gone() -> bool:
    """Whether what is printed goes into a pipe that nobody reads any more."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print_help(VERBS)
        return 0
    if words[0] == "--version":
        output.print(f"eosin {__version__}")
        return 0
    verb = " ".join(words[:2]) if " ".join(words[:2]) in VERBS else words[0]
    rest = words[len(verb.split()) :]
    family = {name: VERBS[name] for name in VERBS if name.startswith(f"{words[0]} ")}
    if family and words[1:] in ([], ["-h"], ["--help"]):
        print_help(family)
        return 0
    if verb not in VERBS:
        raise EosinError(f"unknown verb '{' '.join(words[:2])}'; {nearest(' '.join(words[:2]), VERBS)}")
    if "-h" in rest or "--help" in rest:
        print_verb_help(verb, VERBS[verb], rest)
        return 0
    return read(verb, VERBS[verb], rest)()


def _stopped(number: int, told: str) -> int:
    """Say how a pre-training that was stopped goes on, and return the exit code."""
    console.print(f"{told}; a checkpoint is saved. Go on with the same command:\n  {escape(command_line())}")
    return 130 if number == signal.SIGINT else 0


if __name__ == "__main__":
    sys.exit(main())
