"""What the page is made from: the files of a benchmark directory and of the runs its records name."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.benchmark.pooling import leaderboard
from eosin.benchmark.record import (
    Comparison,
    Failure,
    Record,
    Standing,
    identity,
    read_comparisons,
    read_failures,
    read_results,
)
from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines

__all__ = ["Confusion", "EmbeddingMap", "Results", "Run", "load_results"]


@dataclass(frozen=True)
class Confusion:
    """Counts of test images by true and predicted class.

    Attributes:
        classes: Class names.
        counts: int64 [C, C], rows are the truth, summed over the seeds.
        seeds: Number of seeds summed.
    """

    classes: list[str]
    counts: npt.NDArray[np.int64]
    seeds: int


@dataclass(frozen=True)
class EmbeddingMap:
    """Test tiles of a task laid out in two dimensions by an encoder's embeddings.

    Attributes:
        encoder: Display name.
        task: Task name.
        details: What the benchmark wrote beside the points: `method`, `seed`, `predicted_by`, `shown`, `of`.
        points: Columns x, y, label, predicted, name, thumbnail (JPEG bytes), one entry a tile.
    """

    encoder: str
    task: str
    details: dict[str, Any]
    points: dict[str, list[Any]]


@dataclass(frozen=True)
class Run:
    """A pre-training run.

    Attributes:
        path: Its directory.
        encoder: Display name of the encoder that came from it.
        seed: The benchmark's seed that used it first.
        metrics: Lines of its metrics.jsonl.
        config: Text of its config.yaml, "" where there is none.
    """

    path: str
    encoder: str
    seed: int
    metrics: list[dict[str, Any]]
    config: str


@dataclass(frozen=True)
class Results:
    """Everything the page shows.

    Attributes:
        out: The benchmark directory.
        records: One per cell.
        standings: The leaderboard's lines.
        comparisons: Paired tests between encoders whose cells are all in `records`.
        failures: Cells without a result.
        confusions: By (encoder, task, protocol, fraction).
        maps: Embedding maps.
        runs: Pre-training runs whose files were found.
        missing: Sentences on files that records name and that are absent or unreadable.
    """

    out: Path
    records: list[Record]
    standings: list[Standing]
    comparisons: list[Comparison]
    failures: list[Failure]
    confusions: dict[tuple[str, str, str, float], Confusion]
    maps: list[EmbeddingMap]
    runs: list[Run]
    missing: list[str]


def load_results(out: Path) -> Results:
    """Read a benchmark directory.

    Args:
        out: The directory given to `eosin benchmark --out`.

    Raises:
        EosinError: If results.jsonl is missing, empty or damaged.
    """
    records = read_results(out)
    present = {identity(record) for record in records}
    keys = {str(record.get("key", "")) for record in records}
    missing: list[str] = []
    return Results(
        out=out,
        records=records,
        standings=leaderboard(out, records),
        # A comparison of cells that have since been computed anew says nothing about the ones on the page.
        comparisons=[c for c in read_comparisons(out) if set(c.get("cells", [])) <= keys],
        failures=[f for f in read_failures(out) if identity(f) not in present],
        confusions=_confusions(out, records, missing),
        maps=_maps(out, records, missing),
        runs=_runs(records, missing),
        missing=missing,
    )


def _confusions(out: Path, records: list[Record], missing: list[str]) -> dict[tuple[str, str, str, float], Confusion]:
    found: dict[tuple[str, str, str, float], Confusion] = {}
    for record in records:
        path = out / str(record.get("predictions", "predictions/(not recorded)"))
        table = _read_table(path, ("truth", "predicted"), missing)
        if table is None:
            continue
        truth, predicted = table["truth"].to_pylist(), table["predicted"].to_pylist()
        key = (record["encoder"], record["task"], record["protocol"], float(record["fraction"]))
        earlier = found.get(key)
        classes = list(record.get("classes") or sorted({*map(str, truth), *map(str, predicted)}))
        if earlier is not None:
            classes = earlier.classes
        number = {name: index for index, name in enumerate(classes)}
        if not {*truth, *predicted} <= number.keys():
            missing.append(f"{path}: names classes that its record does not list; left out of the confusion matrix")
            continue
        cells = [number[t] * len(classes) + number[p] for t, p in zip(truth, predicted, strict=True)]
        counts = np.bincount(cells, minlength=len(classes) ** 2).reshape(len(classes), len(classes))
        if earlier is not None:
            counts = counts + earlier.counts
        found[key] = Confusion(classes, counts.astype(np.int64), 1 + (earlier.seeds if earlier else 0))
    return found


def _read_table(path: Path, columns: tuple[str, ...], missing: list[str]) -> pa.Table | None:
    if not path.is_file():
        missing.append(f"{path}: not found")
        return None
    try:
        return pq.read_table(path, columns=list(columns))
    except (pa.ArrowException, OSError, ValueError) as error:
        missing.append(f"{path}: unreadable ({str(error).splitlines()[0]})")
        return None


_MAP_COLUMNS = ("x", "y", "label", "predicted", "name", "thumbnail")


def _maps(out: Path, records: list[Record], missing: list[str]) -> list[EmbeddingMap]:
    found: list[EmbeddingMap] = []
    seen: set[str] = set()
    for record in records:
        name = record.get("map")
        if not name or name in seen:
            continue
        seen.add(name)
        table = _read_table(out / name, _MAP_COLUMNS, missing)
        if table is None:
            continue
        details = json.loads((table.schema.metadata or {}).get(b"eosin", b"{}"))
        points = {column: table[column].to_pylist() for column in _MAP_COLUMNS}
        found.append(EmbeddingMap(record["encoder"], record["task"], details, points))
    return found


def _runs(records: list[Record], missing: list[str]) -> list[Run]:
    users: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if run := record.get("run"):
            users[run].append(record)
    runs = []
    for path, using in users.items():
        first = min(using, key=lambda record: record["seed"])
        try:
            metrics = [line for line in read_json_lines(Path(path) / "metrics.jsonl") if _is_step(line)]
        except (EosinError, OSError, UnicodeDecodeError) as error:
            missing.append(str(error))
            metrics = []
        if not metrics:
            missing.append(f"{path}/metrics.jsonl: no training log, so no curves of '{first['encoder']}'")
        try:
            config = (Path(path) / "config.yaml").read_text(encoding="utf-8", errors="replace")
        except OSError:
            config = ""
        runs.append(Run(path, first["encoder"], first["seed"], metrics, config))
    return sorted(runs, key=lambda run: (run.encoder, run.seed))


def _is_step(line: Any) -> bool:
    step = line.get("step") if isinstance(line, dict) else None
    return isinstance(step, (int, float)) and math.isfinite(step)
