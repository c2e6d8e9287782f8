"""Cells of nuclei as a benchmark leaves them, made without any network: the truth, moved and with nuclei left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from eosin.benchmark.nuclei_gallery import Extremes
from eosin.benchmark.nuclei_scores import metric_types, score_table
from eosin.core.files import short_hash
from eosin.nuclei.datasets import NucleiSample
from eosin.nuclei.labels import relabel_with_ids
from eosin.nuclei.score import score_image, set_scores
from eosin.synthetic import render_tile

TISSUES = ("tumor", "lymphocytes", "glands", "stroma")


def samples(count: int, size: int) -> list[NucleiSample]:
    """Draw images with their nuclei, all of type 1 or 2."""
    found = []
    for number in range(count):
        tile = render_tile(TISSUES[number % 4], size=size, mpp=0.25, index=number)
        labels = relabel_with_ids(tile.instances).instances
        types = np.arange(labels.max() + 1) % 2 + 1
        types[0] = 0
        found.append(NucleiSample(tile.image, labels, types.astype(np.int64)))
    return found


def guessed(sample: NucleiSample, skill: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Move each true nucleus by up to a few pixels, and leave out some, the more the lower the skill."""
    generator = np.random.default_rng(seed)
    guess = np.zeros_like(sample.instances)
    height, width = guess.shape
    for number in range(1, sample.count + 1):
        if generator.random() > skill + 0.1:
            continue
        y, x = np.nonzero(sample.instances == number)
        dy, dx = generator.integers(-3, 4, 2) if generator.random() > skill else (0, 1)
        guess[np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)] = number
    part = relabel_with_ids(guess)
    return part.instances, 1 + (part.ids + (generator.random(len(part.ids)) > skill)) % 2


def nuclei_cell(
    out: Path,
    encoder: str,
    task: str,
    protocol: str,
    images: list[NucleiSample],
    *,
    skill: float,
    seed: int = 0,
    fraction: float = 1.0,
    classes: tuple[str, ...] = (),
    **changes: Any,
) -> dict[str, Any]:
    """Write the predictions and the gallery of a cell, and return its record."""
    key = short_hash(encoder, task, protocol, seed, fraction)
    scores, extremes = [], Extremes()
    for number, sample in enumerate(images):
        found, types = guessed(sample, skill - 0.05 * (number % 5), 100 * seed + number)
        typed = (sample.types[1:], types, tuple(metric_types(classes))) if classes else (None, None, ())
        score = score_image(f"images/{number:03}.png", sample.instances, found, *typed)
        scores.append(score)
        extremes.add(score, sample, found)
    for folder in ("predictions", "galleries"):
        (out / folder).mkdir(exist_ok=True, parents=True)
    pq.write_table(score_table(scores, classes), out / "predictions" / f"{key}.parquet")
    extremes.write(out / "galleries" / f"{key}.parquet", {"seed": seed})
    return {
        "key": key,
        "encoder": encoder,
        "spec": f"runs/{encoder}-s{seed}",
        "architecture": "resnet50",
        "fingerprint": short_hash(encoder, seed),
        "normalization": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 256},
        "run": None,
        "task": task,
        "task_spec": f"nuclei:{task}:data",
        "task_version": 1,
        "task_hash": short_hash(task),
        "split_hash": short_hash("split", task),
        "split_source": "given by folders",
        "classes": list(classes),
        "grouping": "image",
        "n_train": round(40 * fraction),
        "n_val": 12,
        "n_test": len(images),
        "n_groups": len(images),
        "protocol": protocol,
        "protocol_version": 1,
        "fraction": fraction,
        "seed": seed,
        "chosen": {"step": 400, "val_pq": 0.5},
        "metrics": set_scores(scores, metric_types(classes) or None, resamples=100),
        "higher_is_better": True,
        "synthetic": False,
        "predictions": f"predictions/{key}.parquet",
        "map": None,
        "gallery": f"galleries/{key}.parquet",
        "libraries": {"eosin": "0.1.0", "torch": "2.6.0"},
        "seconds": 512.3,
        "command": f"eosin benchmark --encoders moco=runs/s0 --tasks nuclei:{task}:data --protocols {protocol}",
        "created": "2025-11-23T07:30:00+00:00",
        **changes,
    }
