"""The `eosin` command: one function a verb. A verb reads its arguments, calls one function and prints what came.

Exit codes: 0 done; 1 the demo's encoder did not beat its baselines; 2 bad input, told in one line; 130 after Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import select
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
from eosin.arguments import command_line, output, print_help, print_verb_help, read, say
from eosin.benchmark_verbs import benchmark, embed, evaluate, report
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
