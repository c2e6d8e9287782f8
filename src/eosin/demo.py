"""The main job on synthetic tissue: tiles, pre-training, evaluation against two baselines, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.core.console import console
from eosin.core.errors import EosinError
from eosin.core.files import writable_directory

__all__ = ["DemoOutcome", "run_demo"]

_TILES, _SLIDES, _SIZE, _SEED = 1600, 40, 128, 0
_BATCH = 32
_SAMPLES_PER_MINUTE = 3_000
_DEFAULT_MINUTES = 4.0
_BASELINES = ("untrained", "color statistics")


@dataclass(frozen=True)
class DemoOutcome:
    """What the demo came to.

    Attributes:
        records: The benchmark's result records.
        report: The page.
        won: Whether the pre-trained encoder beat both baselines on the kNN probe.
    """

    records: list[Any]
    report: Path
    won: bool


def run_demo(out: Path, minutes: float | None = None, command: str = "eosin demo") -> DemoOutcome:
    """Make synthetic tissue, pre-train on it, evaluate and report.

    Args:
        out: Output directory. A second call goes on where the first was stopped.
        minutes: Rough length of the pre-training on two cores; 4 if not given.
        command: The command line, for the record.

    Raises:
        EosinError: If `out` cannot be used or `minutes` is not positive.
    """
    from eosin.benchmark import BenchmarkConfig, run_benchmark
    from eosin.pretrain import load_recipe, pretrain
    from eosin.report import write_report
    from eosin.synthetic import write_tiles

    minutes = _DEFAULT_MINUTES if minutes is None else minutes
    if not minutes > 0:
        raise EosinError(f"--minutes {minutes}: give a length above 0")
    writable_directory(out)
    tissue = out / "tissue"
    index = tissue / "index.csv"
    if not index.exists():
        console.print(f"1/4  drawing {_TILES} synthetic tiles (not real tissue) of {_SLIDES} slides → {tissue}")
        write_tiles(tissue, tiles=_TILES, slides=_SLIDES, size=_SIZE, seed=_SEED)
    console.print("2/4  pre-training on the unlabelled tiles of the train and validation slides")
    recipe = load_recipe("mocov2-small", _fields(index, max(64, int(minutes * _SAMPLES_PER_MINUTE))))
    run = out / "run"
    pretrain(recipe, run, command=command)
    console.print("3/4  evaluating on test slides that pre-training has not seen")
    size = recipe.encoder.size
    records = run_benchmark(
        BenchmarkConfig(
            encoders=(
                f"pre-trained={run}",
                f"untrained=random:{recipe.encoder.architecture}?size={size}",
                "color statistics=color:stats",
            ),
            tasks=(f"csv:{index}?name=synthetic tissue",),
            protocols=("knn", "logistic"),
            out=out,
        ),
        command=command,
    )
    console.print("4/4  writing the report")
    report = write_report(out)
    return DemoOutcome(records, report, _won(records))


def _fields(index: Path, samples: int) -> dict[str, Any]:
    """What the demo sets in the recipe."""
    # Each synthetic slide has strong stains of its own: with the recipe's weak jitter, views would be matched by stain.
    jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "probability": 0.8}
    return {
        "seed": _SEED,
        "samples": samples,
        "data.source": f"csv:{index}",
        "data.splits": ["train", "val"],
        # Half of the recipe's: more steps, which learn nearly as much from two thirds of the samples.
        "batch_size": _BATCH,
        "method.norm_group": _BATCH // 2,
        "optimizer.warmup_samples": min(1500, samples // 10),
        # Views of 64 px cost half of the recipe's; smaller crops keep what a nucleus looks like.
        "augment.views.global.size": 64,
        "augment.views.global.scale": [0.2, 0.6],
        "augment.views.global.jitter": jitter,
        "augment.views.global.grayscale": 0.2,
        "watch.task": f"csv:{index}",
        "watch.tiles": 256,
        "watch.every_steps": max(1, samples // _BATCH // 5),
    }


def _won(records: list[Any]) -> bool:
    scores = {
        record["encoder"]: record["metrics"]["accuracy"]["value"] for record in records if record["protocol"] == "knn"
    }
    return all(scores["pre-trained"] > scores[name] for name in _BASELINES)
