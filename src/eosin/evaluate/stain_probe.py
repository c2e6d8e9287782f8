"""The stain-shift probe: what an encoder loses, and how far its embeddings move, when the test is stained differently.

The probe is fitted on the training tiles as they are and chooses on the validation tiles as they are; only the test
tiles are re-stained. Kang et al. (CVPR 2023) ask for encoders that bear the stains of other laboratories; testing with
altered stains follows Tellez et al. (Medical Image Analysis 2019). The protocol, its shifts and its measures are ours.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from eosin.core.config import Config
from eosin.core.console import console, warn
from eosin.core.errors import EosinError, StorageError
from eosin.core.files import DirectoryLock, atomic_file, short_hash, writable_directory, write_json_lines
from eosin.data import Quarantine, default_workers
from eosin.encoders import Encoder, load_encoder
from eosin.encoders.named import NamedEncoder, named_encoders
from eosin.evaluate.cells import load_cells, save_cell
from eosin.evaluate.embed import embed
from eosin.evaluate.evaluation import ProbeData, fit_of, probe_data
from eosin.evaluate.movement import Movement, measure_movement
from eosin.evaluate.paired import paired_test
from eosin.evaluate.predictions import prediction_table
from eosin.evaluate.protocol import PROTOCOLS, FeatureProtocol
from eosin.evaluate.shift import predict_versions
from eosin.evaluate.stain_shift import DEFAULT_SHIFTS, NONE, Restaining, Shift, open_shifts
from eosin.evaluate.stain_summary import summarize
from eosin.evaluate.statistics import Interval, Predicted, bootstrap_interval
from eosin.tasks import Task, is_synthetic, open_task, task_content
from eosin.training.run import environment, utc_now

__all__ = ["RECORDS", "SUMMARY", "VERSION", "StainProbeConfig", "run_stain_probe"]

NAME = "stain-shift"
VERSION = 1
"""Raised when the same shift of the same tiles would be scored differently."""

RECORDS = "shift.jsonl"
SUMMARY = "shift-summary.jsonl"
CELLS = "shift-cells"
SCORED = ("accuracy", "balanced_accuracy")

Record = dict[str, Any]


class StainProbeConfig(Config):
    """Encoders x shifts x seeds, on one task."""

    encoders: Annotated[tuple[str, ...], Field(min_length=1)]
    """Each SPEC or NAME=SPEC; {seed} in a SPEC stands for each seed."""
    task: str
    """Task spec."""
    shifts: tuple[str, ...] = DEFAULT_SHIFTS
    """Names of stain shifts, or template:STATISTICS."""
    protocol: str = "logistic"
    """The probe."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Seeds of a split that is made, of the probe, of the shifts' draws, and of {seed} in encoder specs."""
    out: Path
    """The output directory; a benchmark's will do, and shares its embeddings."""
    label_column: str = "label"
    """Column of the label in a manifest, unless the task spec says ?label=."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Tiles per forward pass."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode; null chooses by the number of cores."""

    @field_validator("encoders", "shifts", "seeds")
    @classmethod
    def _no_duplicates(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"'{value}' is given twice; keep one")
        return values


def run_stain_probe(config: StainProbeConfig, command: str = "") -> tuple[list[Record], list[Record]]:
    """Probe encoders under stain shifts, or go on with the probe in `config.out`.

    Args:
        config: What to run.
        command: The command line, for the records.

    Returns:
        The records of the cells asked for, and their summary over the seeds, both as in the files.

    Raises:
        EosinError: If the configuration, the task or the directory is wrong, or, after the others are done and written,
            if an encoder cannot be used.
    """
    encoders = named_encoders(config.encoders)
    _probe_of(config.protocol)
    shifts = open_shifts(config.shifts)
    out = writable_directory(config.out)
    with DirectoryLock(out):
        for name in (CELLS, "predictions"):
            writable_directory(out / name)
        run = _Run(config, shifts, command)
        failed = [failure for encoder in encoders if (failure := run.encoder(encoder))]
        records = run.asked
        summary = run.write()
    if failed and not records:
        raise failed[0]
    if failed:
        more = f" ({len(failed)} encoders failed)" if len(failed) > 1 else ""
        raise EosinError(f"{failed[0]}{more}; the others are in {out / RECORDS}, and the same command goes on")
    return records, summary


@dataclass(frozen=True, eq=False)
class _Opened:
    task: Task
    content: str
    synthetic: bool


@dataclass(frozen=True, eq=False)
class _Subject:
    name: str
    spec: str
    encoder: Encoder
    fingerprint: str


class _Run:
    """One call: what is done, what is asked for, and what is missing."""

    def __init__(self, config: StainProbeConfig, shifts: Sequence[Shift], command: str) -> None:
        self.config = config
        self.shifts = shifts
        self.out = config.out
        described = environment(command)
        libraries = {"python": described["python"], **described["libraries"]}
        self.about = {"libraries": libraries, "command": command}
        self.done = load_cells(self.out, CELLS, _identity)
        self.asked: list[Record] = []
        self.tasks: dict[int, _Opened] = {}

    def encoder(self, named: NamedEncoder) -> EosinError | None:
        """Probe an encoder under every seed; return what went wrong with it."""
        seeds: dict[str, list[int]] = defaultdict(list)
        for seed in self.config.seeds:
            seeds[named.spec(seed)].append(seed)
        # A task that cannot be opened fails for every encoder.
        opened = {seed: self._open(seed) for seed in self.config.seeds}
        try:
            for spec, mine in seeds.items():
                encoder = load_encoder(spec)
                subject = _Subject(named.name, spec, encoder, encoder.fingerprint())
                for seed in mine:
                    self._seed(subject, opened[seed], seed)
        except StorageError:
            raise
        except EosinError as error:
            warn(f"{named.name}: {error}")
            return error
        return None

    def write(self) -> list[Record]:
        """Write the files that join the cells; return the summary of the cells asked for."""
        latest: dict[Any, Record] = {}
        for record in sorted(self.done.values(), key=lambda record: record["created"]):
            latest[_identity(record)] = record
        latest |= {_identity(record): record for record in self.asked}
        asked = {_identity(record): number for number, record in enumerate(self.asked)}
        records = sorted(latest.values(), key=lambda r: (asked.get(_identity(r), len(asked)), _identity(r)))
        write_json_lines(self.out / RECORDS, records)
        summary = summarize(self.out, records)
        write_json_lines(self.out / SUMMARY, summary)
        wanted = {record["key"] for record in self.asked}
        return [line for line in summary if wanted.issuperset(line["cells"])]

    def _open(self, seed: int) -> _Opened:
        if seed not in self.tasks:
            task = open_task(self.config.task, seed=seed, label_column=self.config.label_column)
            self.tasks[seed] = _Opened(task, task_content(task), is_synthetic(task))
        return self.tasks[seed]

    def _seed(self, subject: _Subject, opened: _Opened, seed: int) -> None:
        keys = {shift.name: self._key(subject, opened, shift, seed) for shift in self.shifts}
        missing = [shift for shift in self.shifts if keys[shift.name] not in self.done]
        if missing:
            for shift, record in zip(missing, self._probe(subject, opened, missing, seed, keys), strict=True):
                self.done[keys[shift.name]] = record
        # The same weights may have moved since.
        self.asked += [{**self.done[key], "spec": subject.spec} for key in keys.values()]

    def _key(self, subject: _Subject, opened: _Opened, shift: Shift, seed: int) -> str:
        protocol = PROTOCOLS[self.config.protocol]
        about_task = (opened.task.name, opened.content)
        about_probe = (NAME, VERSION, protocol.name, protocol.version)
        return short_hash(
            about_probe, subject.name, subject.fingerprint, about_task, shift.name, shift.key, shift.version, seed
        )

    def _probe(
        self, subject: _Subject, opened: _Opened, shifts: Sequence[Shift], seed: int, keys: dict[str, str]
    ) -> list[Record]:
        """Fit once, predict the test tiles as they are and under each shift, and write a cell a shift."""
        started = time.perf_counter()
        task = opened.task
        workers = default_workers() if self.config.workers is None else self.config.workers
        options: dict[str, Any] = {"batch_size": self.config.batch_size, "workers": workers}
        options |= {"cache": self.out / "embeddings", "quarantine": Quarantine(self.out / "quarantine.jsonl")}
        embeddings = embed(subject.encoder, task.tiles, **options)
        data = probe_data(task, embeddings)
        positions = embeddings.rows[data.test]
        # The limit of unreadable tiles is one of the whole task, and these have all been read.
        options["quarantine"] = Quarantine(None)
        tests = [data.features[data.test]]
        place = {NONE: 0}
        for shift in shifts:
            if shift.operation is None:
                continue
            change = Restaining(shift, seed, positions)
            restained = embed(subject.encoder, task.tiles.select(positions), change=change, **options)
            if len(restained.rows) != len(positions):
                raise EosinError(f"{task.name}: tiles became unreadable meanwhile; run the same command again")
            place[shift.name] = len(tests)
            tests.append(restained.features)
        groups = None if data.groups is None else data.groups[data.test]
        names, truth = data.names[data.test], data.labels[data.test]
        probabilities, chosen = _predict(data, tests, self.config.protocol, seed)
        predicted = [Predicted(names, truth, part, groups) for part in probabilities]
        records = []
        for shift in shifts:
            number = place[shift.name]
            movement = measure_movement(tests[0], tests[number], groups, seed=seed)
            record = {
                "key": keys[shift.name],
                **_about(subject, opened, data, shift),
                "protocol": self.config.protocol,
                "protocol_version": PROTOCOLS[self.config.protocol].version,
                "seed": seed,
                "chosen": chosen,
                "metrics": _metrics(predicted[0], predicted[number], movement, seed),
                "predictions": f"predictions/{keys[shift.name]}.parquet",
                "unshifted": f"predictions/{keys[NONE]}.parquet",
                "seconds": round(time.perf_counter() - started, 3),
                **self.about,
                "created": utc_now(),
            }
            self._save(record, predicted[number], movement, data.classes)
            records.append(record)
            started = time.perf_counter()
        return records

    def _save(self, record: Record, predicted: Predicted, movement: Movement, classes: Sequence[str]) -> None:
        table = prediction_table(predicted, classes)
        table = table.append_column("distance", pa.array(movement.distance))
        table = table.append_column("recognized", pa.array(movement.recognized))
        with atomic_file(self.out / record["predictions"]) as file:
            pq.write_table(table, file)
        save_cell(self.out, CELLS, record)
        told = " | ".join([record["encoder"], record["task"], record["shift"], f"seed {record['seed']}"])
        value = record["metrics"]["balanced_accuracy"]["value"]
        console.print(f"{told}: {'undefined' if value is None else f'{value:.3f}'}", markup=False)


def _probe_of(name: str) -> FeatureProtocol:
    protocol = PROTOCOLS[name]
    if not isinstance(protocol, FeatureProtocol):
        plain = [known for known in PROTOCOLS if isinstance(PROTOCOLS[known], FeatureProtocol)]
        raise EosinError(f"--protocol {name}: cannot be fitted once and shown other stains; valid: {', '.join(plain)}")
    return protocol


def _predict(data: ProbeData, tests: Sequence[Any], protocol: str, seed: int) -> tuple[list[Any], dict[str, Any]]:
    """Fit once and predict every version of the test tiles: float64 [n, C] each, and what was chosen.

    The protocol sees no label of a test tile, and no re-stained tile among those it fits or chooses on.
    """
    return predict_versions(_probe_of(protocol), data.features, data.classes, fit_of(data, seed), tests, data.groups)


def _metrics(before: Predicted, after: Predicted, movement: Movement, seed: int) -> dict[str, Interval]:
    metrics = bootstrap_interval(after.truth, after.probabilities, after.groups, seed, metrics=SCORED)
    for name in SCORED:
        loss = paired_test([before], [after], name, seed=seed)
        metrics[f"{name}_loss"] = {"value": loss.difference, "low": loss.low, "high": loss.high, "p": loss.p}
    return metrics | movement.metrics


def _about(subject: _Subject, opened: _Opened, data: ProbeData, shift: Shift) -> dict[str, Any]:
    task, card = opened.task, subject.encoder.card
    groups = data.names[data.test] if data.groups is None else data.groups[data.test]
    return {
        "encoder": subject.name,
        "spec": subject.spec,
        "architecture": card.architecture,
        "fingerprint": subject.fingerprint,
        "normalization": {"mean": list(card.mean), "std": list(card.std), "size": card.size},
        "task": task.name,
        "task_version": task.version,
        "task_hash": opened.content,
        "split_hash": task.split_hash,
        "split_source": task.split_source,
        "classes": list(task.classes),
        "grouping": task.grouping,
        "notes": list(task.notes),
        "n_train": len(data.train),
        "n_val": len(data.val),
        "n_test": len(data.test),
        "n_groups": len(np.unique(groups)),
        "n_unreadable": data.dropped,
        "synthetic": opened.synthetic,
        "shift": shift.name,
        "shift_version": shift.version,
        "shift_hash": shift.key,
        "shift_about": shift.about,
        "probe": NAME,
        "probe_version": VERSION,
    }


def _identity(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("encoder", "task", "protocol", "shift", "seed"))
