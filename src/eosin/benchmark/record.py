"""What a benchmark writes down: the typed records of results.jsonl, comparisons.jsonl and failures.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

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
    "compared_metric",
    "condition",
    "identity",
    "is_nuclei",
    "of_newest_version",
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
