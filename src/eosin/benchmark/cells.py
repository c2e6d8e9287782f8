"""One cell of a benchmark: its key, its labels, its two files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from eosin.benchmark.config import run_directory
from eosin.benchmark.record import Record, identity
from eosin.core.draws import stream_seed
from eosin.core.files import atomic_file, short_hash
from eosin.encoders import Encoder
from eosin.evaluate import Asked, Evaluation, Prediction, ProbeData, score
from eosin.evaluate.cells import save_cell
from eosin.tasks import Task
from eosin.training.run import utc_now

__all__ = [
    "CELLS",
    "OpenTask",
    "Subject",
    "about_encoder",
    "cell_key",
    "newest",
    "open_subject",
    "subset",
    "with_fraction",
    "write_cell",
]

CELLS = "cells"

# Raised when the same inputs would give another record: the drawing of label subsets, or what a key covers.
_VERSION = 1


@dataclass(frozen=True)
class OpenTask:
    """A task ready to be scored on.

    Attributes:
        spec: As the user wrote it.
        task: Its images, labels and split.
        content: Hash of everything in it that a result depends on.
        synthetic: Whether its images are procedural.
    """

    spec: str
    task: Task
    content: str
    synthetic: bool

    @property
    def name(self) -> str:
        """Shown in results."""
        return self.task.name


@dataclass(frozen=True)
class Subject:
    """An encoder under test.

    Attributes:
        name: Shown in results.
        spec: With the seed filled in.
        encoder: The network.
        fingerprint: Of its weights and pixel contract.
        run: The pre-training run it came from.
    """

    name: str
    spec: str
    encoder: Encoder
    fingerprint: str
    run: Path | None


def open_subject(name: str, spec: str, encoder: Encoder) -> Subject:
    """Gather what records say about an encoder."""
    return Subject(name, spec, encoder, encoder.fingerprint(), run_directory(spec))


def cell_key(subject: Subject, opened: OpenTask, asked: Asked, fraction: float, seed: int, precision: str) -> str:
    """Return 16 hexadecimal digits over everything that determines a cell's result, and the encoder's shown name."""
    about_encoder = (subject.name, subject.fingerprint)
    about_task = (opened.task.name, opened.content)
    # What float32 gives keeps the name it had before there was a choice.
    more: tuple[str, ...] = () if precision == "fp32" else (precision,)
    depends = asked.protocol.depends(asked.variant)
    more += (depends,) if depends else ()
    return short_hash(_VERSION, *about_encoder, *about_task, asked.shown, asked.protocol.version, fraction, seed, *more)


def subset(
    labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], fraction: float, seed: int, split: str
) -> npt.NDArray[np.int64]:
    """Keep a share of labelled rows, class by class, at least one of each class.

    A smaller fraction's rows are among those of a larger one, under one seed.

    Args:
        labels: int64 [N], class indices.
        rows: int64 [n], rows of a split.
        fraction: In (0, 1].
        seed: Which rows.
        split: Name of the split, so that splits are drawn independently.

    Returns:
        int64, rows in their order.
    """
    if fraction == 1.0:
        return rows
    generator = np.random.default_rng(stream_seed(seed, "label subset", split))
    kept = []
    for label in np.unique(labels[rows]):
        members = generator.permutation(rows[labels[rows] == label])
        kept.append(members[: max(1, round(fraction * len(members)))])
    chosen = np.concatenate(kept)
    return rows[np.isin(rows, chosen)]


def with_fraction(data: ProbeData, fraction: float, seed: int) -> ProbeData:
    """Keep a share of the training and validation labels; see `subset`."""
    return replace(
        data,
        train=subset(data.labels, data.train, fraction, seed, "train"),
        val=subset(data.labels, data.val, fraction, seed, "val"),
    )


def write_cell(
    out: Path,
    subject: Subject,
    opened: OpenTask,
    data: ProbeData,
    prediction: Prediction,
    *,
    key: str,
    asked: Asked,
    fraction: float,
    seed: int,
    about: dict[str, Any],
    started: float,
) -> Record:
    """Score a prediction and write it and its record, each whole or not at all.

    Args:
        out: The benchmark directory, with `cells/` and `predictions/`.
        subject: The encoder.
        opened: The task.
        data: The task's features, with the share of labels that was used.
        prediction: Of its test images.
        key: Of the cell.
        asked: The protocol.
        fraction: Share of labels.
        seed: The seed.
        about: The record's `command`, `libraries` and `precision`.
        started: `time.perf_counter()` at the start of the work that belongs to this cell.

    Raises:
        EosinError: If the disk is full.
    """
    result = score(data, prediction, seed=seed)
    predictions = f"predictions/{key}.parquet"
    with atomic_file(out / predictions) as file:
        pq.write_table(result.table(), file)
    record = {
        "key": key,
        **about_encoder(subject),
        **_about_task(opened, result),
        "protocol": asked.shown,
        "protocol_version": asked.protocol.version,
        "fraction": fraction,
        "seed": seed,
        "chosen": result.chosen,
        "metrics": result.metrics,
        "predictions": predictions,
        "map": None,
        "gallery": None,
        "precision": about["precision"],
        "libraries": about["libraries"],
        "seconds": round(time.perf_counter() - started, 3),
        "command": about["command"],
        "created": utc_now(),
    }
    save_cell(out, CELLS, record)
    return cast(Record, record)


def about_encoder(subject: Subject) -> dict[str, Any]:
    """Return what records say about an encoder."""
    card = subject.encoder.card
    return {
        "encoder": subject.name,
        "spec": subject.spec,
        "architecture": card.architecture,
        "fingerprint": subject.fingerprint,
        "normalization": {"mean": list(card.mean), "std": list(card.std), "size": card.size},
        "width": card.width,
        "licence": card.licence,
        "run": None if subject.run is None else str(subject.run),
    }


def _about_task(opened: OpenTask, result: Evaluation) -> dict[str, Any]:
    task = opened.task
    groups = result.predicted.names if result.predicted.groups is None else result.predicted.groups
    return {
        "task": task.name,
        "task_spec": opened.spec,
        "task_version": task.version,
        "task_hash": opened.content,
        "split_hash": task.split_hash,
        "split_source": task.split_source,
        "classes": list(task.classes),
        "grouping": task.grouping,
        "notes": list(task.notes),
        "n_train": result.n_train,
        "n_val": result.n_val,
        "n_test": result.n_test,
        "n_groups": len(np.unique(np.asarray(groups).astype(str))),
        "n_unreadable": result.dropped,
        "higher_is_better": task.higher_is_better,
        "synthetic": opened.synthetic,
    }


def newest(records: Sequence[Record]) -> list[Record]:
    """Keep, of records about one thing, the one made last."""
    latest: dict[Any, Record] = {}
    for record in sorted(records, key=lambda record: record["created"]):
        latest[identity(record)] = record
    return list(latest.values())
