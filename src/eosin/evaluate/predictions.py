"""Per-image predictions as Parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.core.errors import EosinError
from eosin.evaluate.statistics import Predicted

__all__ = ["load_predictions", "prediction_table"]


def prediction_table(predicted: Predicted, classes: Sequence[str]) -> pa.Table:
    """Return columns name, group, truth, predicted, and p_<class> of each class."""
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
    return pa.table(columns)


def load_predictions(out: Path, record: Mapping[str, Any]) -> Predicted:
    """Read a cell's per-image predictions.

    Args:
        out: The output directory.
        record: The cell's record: its `predictions`, `classes` and `grouping`.

    Returns:
        Names, truth as indices into ``record["classes"]``, probabilities [n, C] and groups.

    Raises:
        EosinError: If the file is missing, damaged, or does not fit the record.
    """
    path = out / record["predictions"]
    classes = record["classes"]
    try:
        table = pq.read_table(path)
        number = {name: index for index, name in enumerate(classes)}
        truth = np.array([number[value] for value in table["truth"].to_pylist()], dtype=np.int64)
        probabilities = np.stack([table[f"p_{name}"].to_numpy() for name in classes], axis=1)
        names, groups = table["name"].to_pylist(), table["group"].to_pylist()
    except FileNotFoundError:
        raise EosinError(f"{path}: not found; run the same command again") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EosinError(f"{path}: unreadable ({reason}); remove it and run the same command again") from None
    return Predicted(names, truth, probabilities, None if record["grouping"] == "image" else groups)
