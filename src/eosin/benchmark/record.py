"""What a benchmark writes down: the typed records of results.jsonl, comparisons.jsonl and failures.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines

__all__ = [
    "COMPARISONS",
    "FAILURES",
    "LEADERBOARD",
    "RANKS",
    "RESULTS",
    "Comparison",
    "Estimate",
    "Failure",
    "Identity",
    "Normalization",
    "RankedEncoder",
    "Ranking",
    "Record",
    "Standing",
    "check_record",
    "compared_metric",
    "condition",
    "identity",
    "is_nuclei",
    "of_newest_version",
    "read_comparisons",
    "read_failures",
    "read_leaderboard",
    "read_ranks",
    "read_results",
    "version_of",
]

RESULTS = "results.jsonl"
LEADERBOARD = "leaderboard.jsonl"
COMPARISONS = "comparisons.jsonl"
RANKS = "ranks.jsonl"
FAILURES = "failures.jsonl"

Identity = tuple[str, str, str, float, int]
"""Encoder, task, protocol, fraction and seed: what a record is about, whatever produced it."""


class Estimate(TypedDict):
    """A metric on the test images."""

    value: float | None
    """The metric, on all test images; None where it is undefined."""
    low: float | None
    """Lower end of the 95 % bootstrap interval; None where none can be formed."""
    high: float | None
    """Upper end of the 95 % bootstrap interval."""
    reason: NotRequired[str]
    """Why a value or an interval is None."""
    sd: NotRequired[float]
    """Standard deviation over the seeds (n - 1 in the denominator), in pooled estimates of several seeds."""


class Normalization(TypedDict):
    """How pixels were prepared for the encoder."""

    mean: list[float]
    """Per channel, in 0..1."""
    std: list[float]
    """Per channel, in 0..1."""
    size: int
    """Side of the square input in pixels."""


class Record(TypedDict):
    """One cell: an encoder on a task under a protocol, with a fraction of the labels and one seed."""

    key: str
    """Content hash of everything that determines the result; the name of the cell's files."""
    encoder: str
    """Display name."""
    spec: str
    """The encoder's specification with the seed filled in."""
    architecture: str
    """Name of the network, or of the color baseline."""
    fingerprint: str
    """Hash of weights and preprocessing."""
    normalization: Normalization
    """How pixels were prepared."""
    width: int
    """Length of the embedding."""
    licence: str
    """Licence of the weights, as their source states it."""
    run: str | None
    """Absolute path of the pre-training run directory the encoder came from, if it came from one."""
    task: str
    """The task's name."""
    task_spec: str
    """The specification the task was opened from."""
    task_version: int
    """Version of the task's definition."""
    task_hash: str
    """Hash of the task's tiles, labels and split."""
    split_hash: str
    """Hash of the split."""
    split_source: str
    """"given", or "made: ..." with the rule by which it was made."""
    classes: list[str]
    """Class names, in the order of the confusion matrix; of nuclei the types that were learned, perhaps none."""
    grouping: str
    """What resampling draws: "patient", "slide" or "image"; of nuclei "image", or "group" for patients or slides."""
    n_train: int
    """Labelled training tiles used, after the fraction was taken."""
    n_val: int
    """Labelled tiles used to choose settings, after the fraction was taken."""
    n_test: int
    """Test tiles scored."""
    n_groups: int
    """Patients, slides or images among the test tiles."""
    n_unreadable: int
    """Tiles of the task that could not be read and were left out."""
    notes: list[str]
    """What a reader of the scores must know about the task, such as a class without test images."""
    protocol: str
    """The protocol: its name, a variant after a colon, settings other than its own after a question mark."""
    protocol_version: int
    """Version of the protocol's definition."""
    fraction: float
    """Share of the training and validation labels used, in (0, 1]."""
    seed: int
    """Seed of the split (where the task has none of its own), of the label subset, of the probe and of "{seed}" in
    the encoder's specification."""
    chosen: dict[str, Any]
    """Settings that the protocol chose on the validation tiles."""
    metrics: dict[str, Estimate]
    """Metric name to estimate."""
    higher_is_better: bool
    """Direction of the metrics."""
    synthetic: bool
    """Whether the tissue is procedural."""
    predictions: str
    """Path of the per-image predictions (Parquet), relative to the benchmark directory; of nuclei what was counted in
    each test image."""
    map: str | None
    """Path of the 2-D embedding map (Parquet), relative to the benchmark directory, where one was drawn."""
    gallery: str | None
    """Path of the encoder's gallery (Parquet), where one was made: neighbors and errors; of nuclei the images whose
    nuclei were found best and worst."""
    precision: str
    """Of the encoder's passes: "fp32" or "bf16"."""
    libraries: dict[str, str | None]
    """Library versions."""
    seconds: float
    """Wall time of the cell: embedding, unless cached, and probe; of nuclei training and scoring, without what an
    earlier call did that was stopped."""
    command: str
    """The command line that computed the cell."""
    created: str
    """When, as UTC in ISO 8601."""


class Standing(TypedDict):
    """A line of the leaderboard: the cells of an encoder that differ in their seed only, pooled."""

    encoder: str
    """Display name."""
    task: str
    """The task's name."""
    protocol: str
    """The protocol's name."""
    fraction: float
    """Share of labels used."""
    seeds: list[int]
    """Seeds pooled."""
    metrics: dict[str, Estimate]
    """Metric name to mean over the seeds, its 95 % interval over test images, and the standard deviation over seeds."""
    cells: list[str]
    """Keys of the cells pooled."""


class Comparison(TypedDict):
    """A paired test of two encoders on the same test images, pooled over the seeds they share."""

    task: str
    """The task's name."""
    protocol: str
    """The protocol's name."""
    fraction: float
    """Share of labels used."""
    metric: str
    """What is compared."""
    encoder: str
    """First encoder."""
    reference: str
    """Second encoder, whose value is subtracted."""
    difference: float
    """Mean over seeds of the first encoder's value minus the second's."""
    low: float | None
    """Lower end of its 95 % interval; None where none can be formed."""
    high: float | None
    """Upper end of its 95 % interval."""
    p: float
    """Two-sided p value of the paired test."""
    p_holm: float
    """The p value after Holm's correction over all pairs of this task, protocol and fraction."""
    seeds: list[int]
    """Seeds pooled."""
    n_groups: int
    """Patients, slides or images exchanged and resampled."""
    grouping: str
    """What was resampled: "patient", "slide" or "image"."""
    cells: list[str]
    """Keys of the cells compared."""


class RankedEncoder(TypedDict):
    """An encoder's mean rank."""

    encoder: str
    """Display name."""
    rank: float
    """Mean over the tasks; 1 is best."""


class Ranking(TypedDict):
    """Encoders ranked over several tasks under one protocol."""

    protocol: str
    """The protocol."""
    fraction: float
    """Share of labels used."""
    metric: str
    """What is ranked."""
    tasks: list[str]
    """Tasks on which every encoder ranked has a value."""
    encoders: list[RankedEncoder]
    """From the best mean rank to the worst."""
    friedman: dict[str, float] | None
    """`statistic` and `p` of the Friedman test; None where it cannot be made."""
    critical_difference: float | None
    """Difference of mean ranks from which two encoders are told apart (Nemenyi, 5 %)."""
    cliques: list[list[str]]
    """Groups of encoders that are not told apart."""
    reason: str | None
    """Why there is no ranking or no test."""


class Failure(TypedDict):
    """A cell that could not be computed."""

    encoder: str
    """Display name."""
    task: str
    """The task's name, or its specification where the task could not be opened."""
    protocol: str
    """The protocol's name."""
    fraction: float
    """Share of labels."""
    seed: int
    """The seed."""
    reason: str
    """One line: what is wrong and the fix."""
    command: str
    """The command line."""
    created: str
    """When, as UTC in ISO 8601."""


_NUCLEI = ("hovernet",)
"""Protocols that segment nuclei."""

_NEEDED = ("encoder", "task", "protocol", "seed", "metrics", "n_test")


def identity(record: Mapping[str, Any]) -> Identity:
    """Return what a record or failure is about."""
    return (record["encoder"], record["task"], record["protocol"], float(record["fraction"]), int(record["seed"]))


def condition(record: Mapping[str, Any]) -> tuple[str, str, str, float]:
    """Return the encoder, task, protocol and fraction: what is averaged over seeds."""
    return (record["encoder"], record["task"], record["protocol"], float(record["fraction"]))


def of_newest_version(records: Sequence[Record]) -> list[Record]:
    """Leave out the records of older versions of a protocol where the same encoder has newer ones.

    Seeds of two versions are no repetitions of one another; averaged, they would be a number of neither.

    Args:
        records: All records, in any order, which is kept.
    """
    versions: dict[tuple[str, str, str, float], int] = {}
    for record in records:
        place = condition(record)
        versions[place] = max(versions.get(place, 0), version_of(record))
    return [record for record in records if version_of(record) == versions[condition(record)]]


def version_of(record: Mapping[str, Any]) -> int:
    """Return the version of the record's protocol; 0 where it was not recorded."""
    return int(record.get("protocol_version") or 0)


def is_nuclei(record: Mapping[str, Any]) -> bool:
    """Tell whether a record, standing or failure is about nuclei, rather than the classes of tiles."""
    return str(record["protocol"]).partition("?")[0].partition(":")[0] in _NUCLEI


def compared_metric(record: Mapping[str, Any]) -> str:
    """Return the metric of the paired tests and of the ranks: of tiles balanced accuracy, of nuclei PQ."""
    return "pq" if is_nuclei(record) else "balanced_accuracy"


def read_results(out: Path) -> list[Record]:
    """Read OUT/results.jsonl.

    Args:
        out: The benchmark directory.

    Returns:
        The records, in file order; at least one.

    Raises:
        EosinError: If the file is missing, empty, damaged, or a line lacks a field.
    """
    path = out / RESULTS
    if not path.is_file():
        raise EosinError(f"{path}: not found; run `eosin benchmark --out {out}` first")
    records = _read_lines(path)
    if not records:
        raise EosinError(f"{path}: holds no results; run `eosin benchmark --out {out}` again")
    for number, record in enumerate(records, start=1):
        check_record(record, f"{path}: line {number}")
    return cast(list[Record], records)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        # Each is written at once, from files that are still there.
        return read_json_lines(path, whole=True, fix="run the same `eosin benchmark` again")
    except (OSError, UnicodeDecodeError) as error:
        raise EosinError(f"{path}: cannot be read ({error})") from None


def check_record(record: dict[str, Any], where: str) -> None:
    """Make sure that a record has what no reader of results can do without; one without a fraction gets it.

    Args:
        record: The record.
        where: The file and the line, for the error.

    Raises:
        EosinError: If a field is missing or of another type.
    """
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise EosinError(f"{where}: field '{missing[0]}' is missing; remove that line and run the benchmark again")
    metrics = record["metrics"]
    whole = isinstance(metrics, dict) and bool(metrics)
    if not whole or not all(isinstance(e, dict) and {"value", "low", "high"} <= e.keys() for e in metrics.values()):
        raise EosinError(f"{where}: field 'metrics' must map names to value, low and high; remove that line")
    if not all(
        isinstance(e[end], (int, float, type(None))) for e in metrics.values() for end in ("value", "low", "high")
    ):
        raise EosinError(f"{where}: field 'metrics' must hold numbers or null; remove that line")
    if not isinstance(record["n_test"], int):
        raise EosinError(f"{where}: field 'n_test' must be a whole number; remove that line")
    _check_identity(record, where)


def _check_identity(record: dict[str, Any], where: str) -> None:
    """Refuse a line that does not say what it is about; an old one without a fraction is about all labels."""
    record.setdefault("fraction", 1.0)
    try:
        names = identity(record)[:3]
        version_of(record)
    except KeyError as missing:
        raise EosinError(f"{where}: field {missing} is missing; remove that line") from None
    except (ValueError, TypeError):
        raise EosinError(
            f"{where}: fields 'fraction', 'seed' and 'protocol_version' must be numbers; remove that line"
        ) from None
    if not all(isinstance(name, str) for name in names):
        raise EosinError(f"{where}: fields 'encoder', 'task' and 'protocol' must be text; remove that line")


def read_leaderboard(out: Path) -> list[Standing]:
    """Read OUT/leaderboard.jsonl; an absent file holds none, and lines that lack a field are left out."""
    return cast(list[Standing], _fitting(out / LEADERBOARD, _STANDING, None))


def read_comparisons(out: Path, missing: list[str] | None = None) -> list[Comparison]:
    """Read OUT/comparisons.jsonl; an absent file holds none, and lines that lack a field are left out.

    Args:
        out: The benchmark directory.
        missing: Gets a sentence on lines left out.

    Raises:
        EosinError: If the file is damaged.
    """
    return cast(list[Comparison], _fitting(out / COMPARISONS, _COMPARISON, missing))


def read_ranks(out: Path, missing: list[str] | None = None) -> list[Ranking]:
    """Read OUT/ranks.jsonl; an absent file holds none, and lines that lack a field are left out.

    Args:
        out: The benchmark directory.
        missing: Gets a sentence on lines left out.

    Raises:
        EosinError: If the file is damaged.
    """
    return cast(list[Ranking], _fitting(out / RANKS, _RANKING, missing))


Fits = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _or_none(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _list_of(fits: Fits) -> Fits:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and all(_or_none(_number)(value.get(end, "")) for end in ("value", "low", "high"))


_PLACE: dict[str, Fits] = {"task": _text, "protocol": _text, "fraction": _number}
_STANDING: dict[str, Fits] = {
    **_PLACE,
    "encoder": _text,
    "seeds": _list_of(_number),
    "metrics": lambda value: isinstance(value, dict) and all(map(_is_estimate, value.values())),
    "cells": _list_of(_text),
}
_COMPARISON: dict[str, Fits] = {
    **_PLACE,
    **dict.fromkeys(("metric", "encoder", "reference", "grouping"), _text),
    **dict.fromkeys(("difference", "p", "p_holm", "n_groups"), _number),
    **dict.fromkeys(("low", "high"), _or_none(_number)),
    "seeds": _list_of(_number),
    "cells": _list_of(_text),
}
_RANKING: dict[str, Fits] = {
    "protocol": _text,
    "fraction": _number,
    "metric": _text,
    "tasks": _list_of(_text),
    "encoders": _list_of(lambda entry: isinstance(entry, dict) and _text(entry.get("encoder"))),
}
_MORE: dict[str, Fits] = {
    "friedman": _or_none(lambda value: isinstance(value, dict)),
    "cliques": _or_none(_list_of(_list_of(_text))),
    "reason": _or_none(_text),
}
"""Fields that a line may lack."""


def _fitting(path: Path, needed: Mapping[str, Fits], missing: list[str] | None) -> list[dict[str, Any]]:
    """Read the lines whose fields are there and of their types."""
    lines = _read_lines(path)
    whole = [
        line
        for line in lines
        if all(name in line and fits(line[name]) for name, fits in needed.items())
        and all(fits(line.get(name)) for name, fits in _MORE.items())
    ]
    if missing is not None and len(whole) < len(lines):
        count = len(lines) - len(whole)
        lack = "line lacks a field or has" if count == 1 else "lines lack a field or have"
        missing.append(f"{path}: {count} {lack} a wrong one; left out")
    return whole


def read_failures(out: Path) -> list[Failure]:
    """Read OUT/failures.jsonl: the cells that have no result; an absent file holds none.

    Raises:
        EosinError: If a line is damaged or does not say which cell it is about.
    """
    failures = _read_lines(out / FAILURES)
    for number, failure in enumerate(failures, start=1):
        where = f"{out / FAILURES}: line {number}"
        _check_identity(failure, where)
        if not _text(failure.setdefault("reason", "not recorded")):
            raise EosinError(f"{where}: field 'reason' must be text; remove that line")
    return cast(list[Failure], failures)
