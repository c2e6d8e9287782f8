"""Nuclei of a benchmark directory: what each test image reached, and pictures of the best and the worst."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.benchmark.nuclei_gallery import NUCLEI_SCHEMA
from eosin.benchmark.nuclei_scores import load_scores
from eosin.benchmark.record import Record, is_nuclei
from eosin.core.errors import EosinError
from eosin.nuclei.score import ImageScore, curve

__all__ = ["Nuclei", "NucleiCell", "NucleiGallery", "load_nuclei"]


@dataclass(frozen=True)
class NucleiCell:
    """An encoder on a set of nuclei under a protocol at a fraction of the labels.

    Attributes:
        encoder: Display name.
        task: Task name.
        protocol: As shown.
        fraction: Share of the labels.
        seeds: Seeds averaged.
        values: PQ of each test image, averaged over the seeds, rising; images without any nucleus left out.
        curve: Mean PQ over images at each of `eosin.nuclei.score.THRESHOLDS`; None where undefined.
    """

    encoder: str
    task: str
    protocol: str
    fraction: float
    seeds: int
    values: list[float]
    curve: list[float | None]


@dataclass(frozen=True)
class NucleiGallery:
    """Images whose nuclei an encoder found best and worst.

    Attributes:
        encoder: Display name.
        task: Task name.
        protocol: As shown.
        fraction: Share of the labels.
        seed: Of the training.
        rows: In file order, as `eosin.benchmark.nuclei_gallery.NUCLEI_SCHEMA` has them.
    """

    encoder: str
    task: str
    protocol: str
    fraction: float
    seed: int
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Nuclei:
    """All that is shown of nuclei.

    Attributes:
        cells: In the order of the records.
        galleries: Of each encoder, task and protocol the one of the most labels and the first seed.
    """

    cells: list[NucleiCell] = field(default_factory=list)
    galleries: list[NucleiGallery] = field(default_factory=list)


def load_nuclei(out: Path, records: Sequence[Record], missing: list[str]) -> Nuclei:
    """Read what was counted in test images, and the galleries.

    Args:
        out: The benchmark directory.
        records: Of all cells.
        missing: Sentences on files that cannot be read are added to it.
    """
    groups: dict[tuple[str, str, str, float], list[Record]] = defaultdict(list)
    for record in records:
        if is_nuclei(record):
            groups[record["encoder"], record["task"], record["protocol"], float(record["fraction"])].append(record)
    cells = []
    for place, group in groups.items():
        seeds = []
        for record in group:
            try:
                seeds.append(load_scores(out, record))
            except EosinError as error:
                missing.append(str(error).partition(";")[0])
        if seeds:
            cells.append(NucleiCell(*place, len(seeds), _image_values(seeds), _mean_curve(seeds)))
    return Nuclei(cells, _galleries(out, list(groups.values()), missing))


def _image_values(seeds: Sequence[Sequence[ImageScore]]) -> list[float]:
    values: dict[str, list[float]] = defaultdict(list)
    for scores in seeds:
        for image in scores:
            if not math.isnan(image.metrics["pq"]):
                values[image.name].append(image.metrics["pq"])
    return sorted(math.fsum(found) / len(found) for found in values.values())


def _mean_curve(seeds: Sequence[Sequence[ImageScore]]) -> list[float | None]:
    means: list[float | None] = []
    for points in zip(*(curve(scores) for scores in seeds), strict=True):
        known = [point["pq"] for point in points if point["pq"] is not None]
        means.append(math.fsum(known) / len(known) if known else None)
    return means


def _galleries(out: Path, groups: Sequence[Sequence[Record]], missing: list[str]) -> list[NucleiGallery]:
    chosen: dict[tuple[str, str, str], Record] = {}
    for record in (record for group in groups for record in group):
        if not record.get("gallery"):
            continue
        key = (record["encoder"], record["task"], record["protocol"])
        if key not in chosen or _place(record) < _place(chosen[key]):
            chosen[key] = record
    found = []
    for record in chosen.values():
        path = out / str(record["gallery"])
        try:
            table = pq.ParquetFile(path).read(use_threads=False).select(NUCLEI_SCHEMA.names)
        except FileNotFoundError:
            missing.append(f"{path}: not found")
            continue
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            missing.append(f"{path}: unreadable ({str(error).splitlines()[0]})")
            continue
        about = (record["encoder"], record["task"], record["protocol"], float(record["fraction"]), record["seed"])
        found.append(NucleiGallery(*about, table.to_pylist()))
    return found


def _place(record: Record) -> tuple[float, int]:
    return (-float(record["fraction"]), record["seed"])
