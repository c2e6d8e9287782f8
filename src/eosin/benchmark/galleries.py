"""Tiles to look at: what an encoder takes for alike, and where a protocol is most sure and wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.benchmark.maps import read_predictions, rows_of, thumbnail
from eosin.core.draws import permuted, stream_seed
from eosin.core.files import atomic_file, short_hash
from eosin.evaluate import ProbeData
from eosin.tasks import Task

__all__ = ["GALLERIES", "gallery_path", "nearest_neighbors", "worst_errors", "write_gallery"]

GALLERIES = "galleries"

_QUERIES = 12
_NEIGHBORS = 6
_ERRORS = 24
_BLOCK = 8192
_VERSION = 1

Rows = npt.NDArray[np.int64]

SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("query", pa.int32()),
        ("rank", pa.int32()),
        ("name", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("probability", pa.float64()),
        ("truth_probability", pa.float64()),
        ("cosine", pa.float64()),
        ("thumbnail", pa.binary()),
    ]
)
"""Columns of a gallery. `kind` is "query" (a test tile), "neighbor" (a training tile near it) or "error" (a test tile
taken for another class); `query` numbers the queries, `rank` counts from 1 within a query or the errors. What does not
apply is null. A tile's thumbnail stands in the first row that shows it."""


def gallery_path(encoder: str, fingerprint: str, task_hash: str, predicted_by: str) -> str:
    """Return a gallery's path, relative to the benchmark directory."""
    return f"{GALLERIES}/{short_hash(_VERSION, encoder, fingerprint, task_hash, predicted_by)}.parquet"


def write_gallery(
    path: Path,
    task: Task,
    data: ProbeData,
    *,
    predictions: Path,
    predicted_by: str,
    seed: int = 0,
    queries: int = _QUERIES,
    neighbors: int = _NEIGHBORS,
    errors: int = _ERRORS,
) -> None:
    """Store test tiles with their nearest training tiles, and the test tiles most surely taken for another class.

    The queries are drawn class by class from the test tiles in an order that knows nothing of the encoder, so that
    the galleries of several encoders show the same ones.

    Args:
        path: The Parquet file, of `SCHEMA`; how it was made stands in the schema's metadata under "eosin".
        task: The task.
        data: Its features.
        predictions: Per-image predictions of the test tiles.
        predicted_by: The protocol they are of.
        seed: The benchmark's seed, for the record.
        queries: Test tiles to look up at most.
        neighbors: Training tiles shown of each.
        errors: Errors shown at most.

    Raises:
        EosinError: If the predictions cannot be read, or the file cannot be written.
    """
    asked = _queries(data, queries)
    near, cosine = nearest_neighbors(data.features, asked, data.train, neighbors)
    table = read_predictions(predictions)
    wrong = worst_errors(table, errors)
    said = {
        name: (predicted, p, of_truth)
        for name, _, predicted, p, of_truth in _answers(table, set(data.names[asked].tolist()))
    }
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(asked):
        name = str(data.names[row])
        predicted, p, of_truth = said.get(name, (None, None, None))
        entry = {"kind": "query", "query": number, "rank": 0, "predicted": predicted, "probability": p}
        rows.append(_shown(data, row) | entry | {"truth_probability": of_truth})
        for rank, (other, value) in enumerate(zip(near[number], cosine[number], strict=True), start=1):
            rows.append(
                _shown(data, other) | {"kind": "neighbor", "query": number, "rank": rank, "cosine": float(value)}
            )
    rows += [{"kind": "error", "rank": rank, **entry} for rank, entry in enumerate(wrong, start=1)]
    _add_thumbnails(task, rows)
    details = {
        "predicted_by": predicted_by,
        "seed": seed,
        "neighbors": neighbors,
        "train": len(data.train),
        "test": table.num_rows,
        "wrong": sum(t != p for t, p in zip(table["truth"].to_pylist(), table["predicted"].to_pylist(), strict=True)),
    }
    stored = pa.Table.from_pylist(rows, SCHEMA).replace_schema_metadata({"eosin": json.dumps(details)})
    with atomic_file(path) as file:
        pq.write_table(stored, file)


def _queries(data: ProbeData, count: int) -> Rows:
    """Draw test rows, one of each class in turn, int64 [at most count]."""
    order = data.test[permuted(np.arange(len(data.test)), len(data.test), stream_seed(0, "gallery"))]
    labels = data.labels[order]
    turn = np.empty(len(order), dtype=np.int64)
    for label in range(len(data.classes)):
        turn[labels == label] = np.arange(int((labels == label).sum()))
    return np.asarray(order[np.lexsort((labels, turn))][:count])


def nearest_neighbors(
    features: npt.NDArray[np.float32], queries: Rows, candidates: Rows, count: int
) -> tuple[Rows, npt.NDArray[np.float32]]:
    """Find the candidates nearest to each query by cosine similarity.

    Args:
        features: float32 [n, D].
        queries: int64 [q], rows of `features`.
        candidates: int64 [m], rows of `features`.
        count: Neighbors k of each.

    Returns:
        Rows of `features`, int64 [q, min(k, m)], nearest first, the earlier candidate first among equals; and their
        cosines, float32, in -1..1.
    """
    count = min(count, len(candidates))
    asked = _unit(features[queries])
    rows = np.empty((len(queries), 0), dtype=np.int64)
    values = np.empty((len(queries), 0), dtype=np.float32)
    # Block by block, so that millions of training tiles need no copy of their features.
    for start in range(0, len(candidates), _BLOCK):
        block = candidates[start : start + _BLOCK]
        rows = np.concatenate([rows, np.broadcast_to(block, (len(queries), len(block)))], axis=1)
        values = np.concatenate([values, asked @ _unit(features[block]).T], axis=1)
        best = np.argsort(-values, axis=1, kind="stable")[:, :count]
        rows, values = np.take_along_axis(rows, best, axis=1), np.take_along_axis(values, best, axis=1)
    return rows, np.clip(values, -1, 1)


def _unit(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.divide(features, length, out=np.zeros_like(features), where=length > 0)


def worst_errors(table: pa.Table, count: int) -> list[dict[str, Any]]:
    """Return the images taken for another class with the highest probability, the surest first.

    Args:
        table: Per-image predictions, as `eosin.evaluate.predictions.prediction_table` makes them.
        count: At most so many.

    Returns:
        `name`, `label`, `predicted`, `probability` (of the class predicted) and `truth_probability` of each.
    """
    names, truth, predicted = (table[column].to_pylist() for column in ("name", "truth", "predicted"))
    wrong = {name for name, t, p in zip(names, truth, predicted, strict=True) if t != p}
    answers = sorted(_answers(table, wrong), key=lambda answer: (-answer[3], answer[0]))[:count]
    fields = ("name", "label", "predicted", "probability", "truth_probability")
    return [dict(zip(fields, answer, strict=True)) for answer in answers]


def _answers(table: pa.Table, wanted: set[str]) -> Iterable[tuple[str, str, str, float, float]]:
    """Yield name, truth, prediction, and the probabilities of both, of the images wanted."""
    names, truth, predicted = (table[column].to_pylist() for column in ("name", "truth", "predicted"))
    columns = {name: table[f"p_{name}"] for name in {*truth, *predicted}}
    for row, (name, label, answer) in enumerate(zip(names, truth, predicted, strict=True)):
        if name in wanted:
            yield name, label, answer, columns[answer][row].as_py(), columns[label][row].as_py()


def _shown(data: ProbeData, row: int) -> dict[str, Any]:
    return {"name": str(data.names[row]), "label": data.classes[int(data.labels[row])]}


def _add_thumbnails(task: Task, rows: list[dict[str, Any]]) -> None:
    place = rows_of(task)
    seen: set[str] = set()
    for row in rows:
        if row["name"] not in seen and row["name"] in place:
            row["thumbnail"] = thumbnail(task, place[row["name"]])
            seen.add(row["name"])
