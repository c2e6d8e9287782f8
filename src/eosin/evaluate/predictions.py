"""Per-image predictions as Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.core.errors import EosinError
from eosin.evaluate.statistics import Predicted

__all__ = ["is_votes", "load_predictions", "prediction_table"]

_UNCHANGED = "unchanged_"
_MOVED = "moved"
_VOTES = b"votes"


def prediction_table(predicted: Predicted, classes: Sequence[str]) -> pa.Table:
    """Return columns name, group, truth, predicted, and p_<class> of each class.

    After a change of the pixels also unchanged_<class> of each class, and moved. The schema's metadata say where the
    probabilities are shares of votes.
    """
    probabilities = np.asarray(predicted.probabilities)
    names = np.asarray(predicted.names).astype(str)
    groups = names if predicted.groups is None else np.asarray(predicted.groups).astype(str)
    columns: dict[str, Any] = {
        "name": names.tolist(),
        "group": groups.tolist(),
        "truth": [classes[index] for index in np.asarray(predicted.truth)],
        "predicted": [classes[index] for index in probabilities.argmax(axis=1)],
    }
    columns |= {f"p_{name}": probabilities[:, index] for index, name in enumerate(classes)}
    if predicted.unchanged is not None:
        unchanged = np.asarray(predicted.unchanged)
        columns |= {f"{_UNCHANGED}{name}": unchanged[:, index] for index, name in enumerate(classes)}
    if predicted.moved is not None:
        columns[_MOVED] = np.asarray(predicted.moved)
    table = pa.table(columns)
    return table.replace_schema_metadata({_VOTES: b"true"}) if predicted.votes else table


def is_votes(table: pa.Table) -> bool:
    """Tell whether the probabilities of a table of predictions are shares of many classifiers' decisions."""
    return bool((table.schema.metadata or {}).get(_VOTES) == b"true")


def load_predictions(out: Path, record: Mapping[str, Any]) -> Predicted:
    """Read a cell's per-image predictions.

    Args:
        out: The output directory.
        record: The cell's record: its `predictions`, `classes` and `grouping`.

    Returns:
        Names, truth as indices into ``record["classes"]``, probabilities [n, C] and groups; of changed images also
        what was said of them unchanged, and how far they moved.

    Raises:
        EosinError: If the file is missing, damaged, or does not fit the record.
    """
    path = out / record["predictions"]
    classes = record["classes"]
    try:
        table = pq.read_table(path)
        number = {name: index for index, name in enumerate(classes)}
        truth = np.array([number[value] for value in table["truth"].to_pylist()], dtype=np.int64)
        probabilities = _columns(table, "p_", classes)
        changed = all(f"{_UNCHANGED}{name}" in table.column_names for name in classes)
        unchanged = _columns(table, _UNCHANGED, classes) if changed else None
        moved = table[_MOVED].to_numpy() if _MOVED in table.column_names else None
        votes = is_votes(table)
        names, groups = table["name"].to_pylist(), table["group"].to_pylist()
    except FileNotFoundError:
        raise EosinError(f"{path}: not found; run the same command again") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EosinError(f"{path}: unreadable ({reason}); remove it and run the same command again") from None
    grouped = None if record["grouping"] == "image" else groups
    return Predicted(names, truth, probabilities, grouped, votes, unchanged, moved)


def _columns(table: pa.Table, prefix: str, classes: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.stack([table[f"{prefix}{name}"].to_numpy() for name in classes], axis=1)
