"""What was counted in each test image, as a Parquet file, and intervals and paired tests from such files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.core.errors import EosinError
from eosin.evaluate.paired_means import PerImage
from eosin.evaluate.statistics import bootstrap_statistic
from eosin.nuclei.metrics import Panoptic
from eosin.nuclei.score import THRESHOLDS, ImageScore, statistics_of
from eosin.nuclei.types import Detection, TypeCounts

__all__ = ["image_scores", "load_scores", "metric_types", "per_image", "pooled_intervals", "score_table"]

METRICS = ("dice", "aji", "aji_plus", "dq", "sq", "pq")
_COUNTS = ("tp", "fp", "fn", "iou_sum")
_PAIRED = ("tp", "fp", "fn", "fp_d", "fn_d")

Column = list[Any]


def metric_types(classes: Sequence[str]) -> dict[int, str]:
    """Number the types as they are scored."""
    return dict(enumerate(classes, start=1))


def score_table(scores: Sequence[ImageScore], classes: Sequence[str]) -> pa.Table:
    """Return a row for each image.

    The columns are `name`, `group`, `tissue`; `true_nuclei`, `found_nuclei`; the metrics, null where undefined; `tp`,
    `fp`, `fn`, `iou_sum` of matches at an IoU above 0.5, and above each higher threshold with it behind an `@`;
    `pairs`, `pairs_fp`, `pairs_fn` of centers; and with types `pairs_same`, and behind a colon the counts of each type:
    of matches, and `pairs_tp`, `pairs_fp`, `pairs_fn`, `pairs_fp_d`, `pairs_fn_d` of centers.

    Args:
        scores: Of the images.
        classes: Types that were counted; empty without types.
    """
    columns: dict[str, Column] = {
        "name": [image.name for image in scores],
        "group": [image.group for image in scores],
        "tissue": [image.tissue for image in scores],
        "true_nuclei": [image.truth for image in scores],
        "found_nuclei": [image.predicted for image in scores],
    }
    columns |= {name: [_defined(image.metrics[name]) for image in scores] for name in METRICS}
    for place, threshold in enumerate(THRESHOLDS):
        columns |= _counts([image.curve[place] for image in scores], f"@{threshold:g}" if place else "")
    columns |= {"pairs": [image.detection.pairs for image in scores]}
    columns |= {f"pairs_{name}": [getattr(image.detection, name) for image in scores] for name in ("fp", "fn")}
    if classes:
        columns["pairs_same"] = [image.detection.same for image in scores]
    for place, kind in enumerate(classes):
        columns |= _counts([image.types[place] for image in scores], f":{kind}")
        for name in _PAIRED:
            columns[f"pairs_{name}:{kind}"] = [getattr(image.detection.types[place], name) for image in scores]
    floats = {*METRICS, *(name for name in columns if name.startswith("iou_sum"))}
    return pa.table({name: pa.array(values, _kind(name, floats)) for name, values in columns.items()})


def _kind(name: str, floats: set[str]) -> pa.DataType:
    if name in ("name", "group", "tissue"):
        return pa.string()
    return pa.float64() if name in floats else pa.int64()


def _counts(counts: Sequence[Panoptic], suffix: str) -> dict[str, Column]:
    return {f"{name}{suffix}": [getattr(each, name) for each in counts] for name in _COUNTS}


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


def image_scores(table: pa.Table, classes: Sequence[str]) -> list[ImageScore]:
    """Read back what `score_table` wrote.

    Raises:
        KeyError: If a column is missing.
    """
    columns = {name: table[name].to_pylist() for name in table.column_names}

    def panoptic(row: int, suffix: str) -> Panoptic:
        return Panoptic(*(columns[f"{name}{suffix}"][row] for name in _COUNTS))

    def centers(row: int, kind: str) -> TypeCounts:
        return TypeCounts(*(columns[f"pairs_{name}:{kind}"][row] for name in _PAIRED))

    found = []
    for row in range(table.num_rows):
        values = {name: columns[name][row] for name in METRICS}
        detection = Detection(
            pairs=columns["pairs"][row],
            fp=columns["pairs_fp"][row],
            fn=columns["pairs_fn"][row],
            same=columns["pairs_same"][row] if classes else None,
            types=tuple(centers(row, kind) for kind in classes),
        )
        found.append(
            ImageScore(
                name=columns["name"][row],
                group=columns["group"][row],
                tissue=columns["tissue"][row],
                truth=columns["true_nuclei"][row],
                predicted=columns["found_nuclei"][row],
                metrics={name: np.nan if value is None else value for name, value in values.items()},
                curve=tuple(panoptic(row, f"@{t:g}" if place else "") for place, t in enumerate(THRESHOLDS)),
                detection=detection,
                types=tuple(panoptic(row, f":{kind}") for kind in classes),
            )
        )
    return found


def load_scores(out: Path, record: Mapping[str, Any]) -> list[ImageScore]:
    """Read the test images of a cell.

    Raises:
        EosinError: If the file is missing, damaged, or does not fit the record.
    """
    path = out / record["predictions"]
    try:
        return image_scores(pq.read_table(path), record["classes"])
    except FileNotFoundError:
        raise EosinError(f"{path}: not found; run the same command again") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EosinError(f"{path}: unreadable ({reason}); remove it and run the same command again") from None


def pooled_intervals(out: Path, records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float | None, float | None]]:
    """Compute the intervals of metrics averaged over cells that differ in their seed only.

    Each resample draws images, patients or slides once for all seeds.

    Returns:
        Low and high by metric; None and None where there is none.

    Raises:
        EosinError: If a file of predictions cannot be read.
    """
    seeds = [load_scores(out, record) for record in records]
    types = metric_types(records[0]["classes"])
    measured = [statistics_of(scores, types) for scores in seeds]
    groups = [[image.group for image in scores] for scores in seeds]
    found: dict[str, tuple[float | None, float | None]] = {}
    for name in measured[0]:
        parts = [(units, seed[name][0]) for units, seed in zip(groups, measured, strict=True)]
        estimate = bootstrap_statistic(parts)
        found[name] = (_number(estimate["low"]), _number(estimate["high"]))
    return found


def _number(value: float | str | None) -> float | None:
    return value if isinstance(value, float) else None


def per_image(out: Path, record: Mapping[str, Any], metric: str) -> PerImage:
    """Read one metric of each test image of a cell, for a paired test.

    Raises:
        EosinError: If the file is missing, damaged, or does not fit the record.
    """
    scores = load_scores(out, record)
    return PerImage(
        [image.name for image in scores],
        [image.metrics[metric] for image in scores],
        [image.group for image in scores],
    )
