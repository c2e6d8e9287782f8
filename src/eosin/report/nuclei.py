"""Nuclei on the page: what each test image reached, and pictures of the best and the worst."""

from __future__ import annotations

import base64
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.benchmark.nuclei_gallery import NUCLEI_SCHEMA
from eosin.benchmark.nuclei_scores import load_scores
from eosin.benchmark.record import Record, is_nuclei
from eosin.core.errors import EosinError
from eosin.nuclei.score import THRESHOLDS, ImageScore, curve
from eosin.report.board import rounded

__all__ = ["Nuclei", "NucleiCell", "NucleiGallery", "load_nuclei", "nuclei_figures"]

_BUDGET = 5_000_000
"""Bytes of pictures and outlines on the page."""
_VALUES = 400
"""Images of a cell that are drawn one by one; of more, so many quantiles."""
_EACH = (3, 2, 1)
"""Best and worst images of a gallery that are shown, as the budget allows."""


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


def nuclei_figures(nuclei: Nuclei, condition: Any) -> dict[str, Any]:
    """Return what the page's script draws, with at most some 5 MB of pictures.

    Args:
        nuclei: Of a benchmark.
        condition: Names a protocol at a fraction.
    """
    return {
        "thresholds": list(THRESHOLDS),
        "cells": [
            {
                "encoder": cell.encoder,
                "task": cell.task,
                "condition": condition(cell.protocol, cell.fraction),
                "seeds": cell.seeds,
                "images": len(cell.values),
                "values": [rounded(value, 4) for value in _thinned(cell.values)],
                "curve": [None if value is None else rounded(value, 4) for value in cell.curve],
            }
            for cell in nuclei.cells
        ],
        **_pictures(nuclei.galleries, condition),
    }


def _thinned(values: Sequence[float]) -> list[float]:
    if len(values) <= _VALUES:
        return list(values)
    return np.quantile(values, np.linspace(0, 1, _VALUES)).tolist()


def _pictures(galleries: Sequence[NucleiGallery], condition: Any) -> dict[str, Any]:
    """Show as many images of each gallery as the budget allows; then as many galleries."""
    for each in _EACH:
        shown = _Shown(each, condition, math.inf)
        for gallery in galleries:
            shown.add(gallery)
        if shown.bytes <= _BUDGET:
            return shown.encode()
    shown = _Shown(_EACH[-1], condition, _BUDGET)
    for gallery in galleries:
        shown.add(gallery)
    return shown.encode()


class _Shown:
    """Galleries with each distinct picture once.

    Args:
        each: Best and worst images of a gallery.
        condition: Names a protocol at a fraction.
        budget: Bytes; galleries that would exceed them are left out.
    """

    def __init__(self, each: int, condition: Any, budget: float) -> None:
        self.each = each
        self.condition = condition
        self.budget = budget
        self.bytes = 0
        self.left_out = 0
        self.numbers: dict[bytes, int] = {}
        self.galleries: list[dict[str, Any]] = []

    def add(self, gallery: NucleiGallery) -> None:
        """Add a gallery, unless it does not fit."""
        rows = [row for row in gallery.rows if row["rank"] <= self.each]
        new = {row["picture"] for row in rows} - self.numbers.keys()
        size = sum(4 * len(picture) // 3 for picture in new)
        size += sum(len(row[name] or "") for row in rows for name in ("truth", "missed", "found", "false"))
        if self.bytes + size > self.budget:
            self.left_out += 1
            return
        self.bytes += size
        self.galleries.append(
            {
                "encoder": gallery.encoder,
                "task": gallery.task,
                "condition": self.condition(gallery.protocol, gallery.fraction),
                "seed": gallery.seed,
                "images": [self._image(row) for row in rows],
            }
        )

    def _image(self, row: dict[str, Any]) -> dict[str, Any]:
        kept = ("kind", "rank", "name", "tp", "fp", "fn", "width", "height", "truth", "missed", "found", "false")
        return {
            **{name: row[name] for name in kept},
            **{name: rounded(row[name], 4) for name in ("pq", "aji", "dice")},
            "part": (row["width"], row["height"]) != (row["image_width"], row["image_height"]),
            "picture": self.numbers.setdefault(row["picture"], len(self.numbers)),
        }

    def encode(self) -> dict[str, Any]:
        """Return galleries, and pictures as data URIs."""
        sources = [f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" for picture in self.numbers]
        return {"galleries": self.galleries, "pictures": sources, "left_out": self.left_out}
