"""What the page is made from: the files of a benchmark directory and of the runs its records name."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.benchmark.galleries import SCHEMA
from eosin.benchmark.pooling import leaderboard
from eosin.benchmark.reading import read_comparisons, read_failures, read_ranks, read_results
from eosin.benchmark.record import (
    Comparison,
    Failure,
    Ranking,
    Record,
    Standing,
    identity,
    is_nuclei,
    of_newest_version,
)
from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.evaluate.predictions import is_votes
from eosin.report.nuclei import Nuclei, load_nuclei
from eosin.report.roc import Roc, roc_of

__all__ = ["Cell", "Confusion", "EmbeddingMap", "Gallery", "Results", "Run", "load_results"]

T = TypeVar("T")
Cell = tuple[str, str, str, float]
"""Encoder, task, protocol, fraction."""

_ROC_POINTS = 160


@dataclass(frozen=True)
class Confusion:
    """Counts of test images by true and predicted class.

    Attributes:
        classes: Class names.
        counts: float64 [C, C], rows are the truth, summed over the seeds; whole numbers, but for votes.
        seeds: Number of seeds summed.
        votes: Whether many classifiers were asked of each image, such as the draws of few-shot: then an image counts
            for each class by the share of them that said it, as in the scores.
    """

    classes: list[str]
    counts: npt.NDArray[np.float64]
    seeds: int
    votes: bool = False


@dataclass(frozen=True)
class EmbeddingMap:
    """Test tiles of a task laid out in two dimensions by an encoder's embeddings.

    Attributes:
        encoder: Display name.
        task: Task name.
        details: What the benchmark wrote beside the points: `method`, `seed`, `predicted_by`, `shown`, `of`.
        points: Columns x, y, label, predicted, name, thumbnail (JPEG bytes), one entry a tile; and pca_x, pca_y,
            group, density, red_share where the benchmark wrote them.
    """

    encoder: str
    task: str
    details: dict[str, Any]
    points: dict[str, list[Any]]


@dataclass(frozen=True)
class Gallery:
    """Tiles of a task to look at, as `eosin.benchmark.galleries` wrote them.

    Attributes:
        encoder: Display name.
        task: Task name.
        details: `predicted_by`, `seed`, `neighbors`, `train`, `test`, `wrong`.
        rows: In file order, as `eosin.benchmark.galleries.SCHEMA` has them; each with its tile's thumbnail.
    """

    encoder: str
    task: str
    details: dict[str, Any]
    rows: list[dict[str, Any]]


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
        records: One per cell, of the newest version of the protocol that its encoder has.
        standings: The leaderboard's lines.
        comparisons: Paired tests between encoders whose cells are all in `records`.
        failures: Cells without a result.
        confusions: By (encoder, task, protocol, fraction).
        maps: Embedding maps.
        runs: Pre-training runs whose files were found.
        missing: Sentences on files that records name and that are absent or unreadable.
        rocs: ROC curves by (encoder, task, protocol, fraction), but for protocols named "shift:...".
        galleries: Neighbors and surest errors.
        ranks: Lines of ranks.jsonl: encoders ranked over tasks.
        nuclei: What was found in the test images of sets of nuclei.
        older: How many cells were left out, since their encoder has newer ones.
    """

    out: Path
    records: list[Record]
    standings: list[Standing]
    comparisons: list[Comparison]
    failures: list[Failure]
    confusions: dict[Cell, Confusion]
    maps: list[EmbeddingMap]
    runs: list[Run]
    missing: list[str]
    rocs: dict[Cell, Roc] = field(default_factory=dict)
    galleries: list[Gallery] = field(default_factory=list)
    ranks: list[Ranking] = field(default_factory=list)
    nuclei: Nuclei = field(default_factory=Nuclei)
    older: int = 0


def load_results(out: Path) -> Results:
    """Read a benchmark directory.

    Args:
        out: The directory given to `eosin benchmark --out`.

    Raises:
        EosinError: If results.jsonl is missing, empty or damaged.
    """
    everything = read_results(out)
    present = {identity(record) for record in everything}
    records = of_newest_version(everything)
    keys = {str(record.get("key", "")) for record in records}
    missing: list[str] = []
    of_tiles = [record for record in records if not is_nuclei(record)]
    confusions, rocs = _predictions(out, of_tiles, missing)
    return Results(
        out=out,
        records=records,
        standings=leaderboard(out, records),
        # A comparison of cells that have since been computed anew says nothing about the ones on the page.
        comparisons=[c for c in _optional(read_comparisons, out, missing) if set(c["cells"]) <= keys],
        failures=[f for f in read_failures(out) if identity(f) not in present],
        confusions=confusions,
        maps=_maps(out, records, missing),
        runs=_runs(records, missing),
        missing=missing,
        rocs=rocs,
        galleries=_galleries(out, of_tiles, missing),
        ranks=_optional(read_ranks, out, missing),
        nuclei=load_nuclei(out, records, missing),
        older=len(everything) - len(records),
    )


def _predictions(out: Path, records: list[Record], missing: list[str]) -> tuple[dict[Cell, Confusion], dict[Cell, Roc]]:
    """Read each file of predictions once; count what was taken for what, and trace the curves."""
    cells: dict[Cell, list[Record]] = defaultdict(list)
    for record in records:
        cells[record["encoder"], record["task"], record["protocol"], float(record["fraction"])].append(record)
    confusions: dict[Cell, Confusion] = {}
    rocs: dict[Cell, Roc] = {}
    for cell, group in cells.items():
        scored = []
        for record in group:
            path = out / str(record.get("predictions", "predictions/(not recorded)"))
            table = _read_table(path, None, missing)
            if table is None:
                continue
            classes = _add_counts(confusions, cell, record, table, path, missing)
            if (
                classes
                and not cell[2].startswith("shift:")
                and {f"p_{name}" for name in classes} <= {*table.column_names}
            ):
                scored.append(_scores(table, classes))
        if scored and (roc := roc_of(confusions[cell].classes, scored, _ROC_POINTS)):
            rocs[cell] = roc
    return confusions, rocs


def _add_counts(
    found: dict[Cell, Confusion], cell: Cell, record: Record, table: pa.Table, path: Path, missing: list[str]
) -> list[str]:
    """Add a table's counts to its cell's; return the classes, none where the table does not fit the record."""
    if not {"truth", "predicted"} <= {*table.column_names}:
        missing.append(f"{path}: unreadable (has no columns truth and predicted)")
        return []
    truth, predicted = table["truth"].to_pylist(), table["predicted"].to_pylist()
    earlier = found.get(cell)
    classes = list(record.get("classes") or sorted({*map(str, truth), *map(str, predicted)}))
    if earlier is not None:
        classes = earlier.classes
    number = {name: index for index, name in enumerate(classes)}
    if not {*truth, *predicted} <= number.keys():
        missing.append(f"{path}: names classes that its record does not list; left out of the confusion matrix")
        return []
    votes = is_votes(table) and {f"p_{name}" for name in classes} <= {*table.column_names}
    said = _scores(table, classes)[1] if votes else np.eye(len(classes))[[number[name] for name in predicted]]
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, [number[name] for name in truth], said)
    if earlier is not None:
        counts += earlier.counts
    found[cell] = Confusion(classes, counts, 1 + (earlier.seeds if earlier else 0), votes)
    return classes


def _scores(table: pa.Table, classes: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    number = {name: index for index, name in enumerate(classes)}
    truth = np.array([number[name] for name in table["truth"].to_pylist()], dtype=np.int64)
    scores = np.stack([np.asarray(table[f"p_{name}"].to_numpy(), dtype=np.float64) for name in classes], axis=1)
    return truth, np.nan_to_num(scores, nan=-1.0)


def _read_table(path: Path, columns: Sequence[str] | None, missing: list[str]) -> pa.Table | None:
    if not path.is_file():
        missing.append(f"{path}: not found")
        return None
    try:
        table = pq.ParquetFile(path).read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        missing.append(f"{path}: unreadable ({str(error).splitlines()[0]})")
        return None
    absent = [column for column in columns or () if column not in table.column_names]
    if absent:
        missing.append(f"{path}: unreadable (has no column {absent[0]})")
        return None
    return table


_MAP_COLUMNS = ("x", "y", "label", "predicted", "name", "thumbnail")
_MAP_EXTRAS = ("pca_x", "pca_y", "umap_x", "umap_y", "group", "density", "red_share")


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
        shown = [*_MAP_COLUMNS, *(column for column in _MAP_EXTRAS if column in table.column_names)]
        points = {column: table[column].to_pylist() for column in shown}
        found.append(EmbeddingMap(record["encoder"], record["task"], _details(table), points))
    return found


def _details(table: pa.Table) -> dict[str, Any]:
    try:
        details = json.loads((table.schema.metadata or {}).get(b"eosin", b"{}"))
    except ValueError:
        return {}
    return details if isinstance(details, dict) else {}


def _galleries(out: Path, records: list[Record], missing: list[str]) -> list[Gallery]:
    found: list[Gallery] = []
    seen: set[str] = set()
    for record in records:
        name = record.get("gallery")
        if not name or name in seen:
            continue
        seen.add(str(name))
        table = _read_table(out / str(name), SCHEMA.names, missing)
        if table is None:
            continue
        rows = table.to_pylist()
        pictures = {row["name"]: row["thumbnail"] for row in rows if row["thumbnail"]}
        for row in rows:
            row["thumbnail"] = pictures.get(row["name"])
        found.append(Gallery(record["encoder"], record["task"], _details(table), rows))
    return found


def _optional(read: Callable[[Path, list[str]], list[T]], out: Path, missing: list[str]) -> list[T]:
    """Read a file that the page can do without."""
    try:
        return read(out, missing)
    except EosinError as error:
        missing.append(str(error))
        return []


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
