"""A task, an encoder's embeddings of it and a protocol, joined to scores with intervals and per-image predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.evaluate.embed import Embeddings
from eosin.evaluate.protocol import Fit, Material, Prediction, Protocol, open_protocol
from eosin.evaluate.statistics import Interval, Predicted, predicted_intervals, spread_of_voters

if TYPE_CHECKING:
    import pyarrow as pa

    from eosin.data import Tiles
    from eosin.encoders import Encoder
    from eosin.tasks import Task

__all__ = ["Evaluation", "ProbeData", "evaluate", "fit_of", "material_of", "probe_data", "score"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ProbeData:
    """A task's images that have features; `train`, `val` and `test` are rows of `features`.

    Attributes:
        features: float32 [n, D].
        labels: int64 [n], class indices.
        classes: C class names.
        train: Rows to fit on.
        val: Rows to choose settings on.
        test: Rows to report.
        names: str [n].
        groups: str [n], patient or slide; None when each image stands for itself.
        grouping: "patient", "slide" or "image".
        dropped: How many of the task's images had no features because they could not be read.
        tiles: The images, in step with the features; None where only features are at hand.
    """

    features: npt.NDArray[np.float32]
    labels: Rows
    classes: tuple[str, ...]
    train: Rows
    val: Rows
    test: Rows
    names: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_] | None
    grouping: str
    dropped: int
    tiles: Tiles | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of one encoder on one task under one protocol.

    Attributes:
        metrics: ``{metric: {"value", "low", "high"}}``, with "reason" where one of them is None.
        chosen: What the protocol selected, on the validation images.
        classes: C class names.
        predicted: The test images' names, truth, probabilities and groups.
        grouping: Unit of the intervals: "patient", "slide" or "image".
        n_train: Images fitted on.
        n_val: Images chosen on.
        n_test: Images reported.
        dropped: Unreadable images left out of the task.
    """

    metrics: dict[str, Interval]
    chosen: dict[str, Any]
    classes: tuple[str, ...]
    predicted: Predicted
    grouping: str
    n_train: int
    n_val: int
    n_test: int
    dropped: int

    def table(self) -> pa.Table:
        """Return the per-image predictions: columns name, group, truth, predicted, and p_<class> of each class."""
        from eosin.evaluate.predictions import prediction_table

        return prediction_table(self.predicted, self.classes)


def probe_data(task: Task, embeddings: Embeddings) -> ProbeData:
    """Match a task with the embeddings of its tiles; unreadable tiles leave its splits and are counted.

    Raises:
        EosinError: If the embeddings are of other tiles, or a split or the training classes do not survive.
    """
    total = len(task.tiles)
    if embeddings.total != total:
        raise EosinError(f"{task.name}: embeddings of {embeddings.total} tiles for a task of {total}; embed its tiles")
    if embeddings.missing:
        raise EosinError(
            f"{task.name}: {embeddings.missing:,} of {total:,} tiles are left to other jobs; embed once more without "
            "a shard, to join the parts"
        )
    position = np.full(total, -1, dtype=np.int64)
    position[embeddings.rows] = np.arange(len(embeddings.rows))
    splits = {name: position[getattr(task, name)] for name in ("train", "val", "test")}
    readable = {name: rows[rows >= 0] for name, rows in splits.items()}
    dropped = sum(len(splits[name]) - len(readable[name]) for name in splits)
    for name, rows in readable.items():
        if not len(rows):
            raise EosinError(f"{task.name}: no image of the {name} split could be read; repair its files")
    labels = task.labels[embeddings.rows]
    if len(np.unique(labels[readable["train"]])) < 2:
        raise EosinError(f"{task.name}: the readable training images are of one class; repair the others' files")
    return ProbeData(
        features=embeddings.features,
        labels=labels,
        classes=task.classes,
        train=readable["train"],
        val=readable["val"],
        test=readable["test"],
        names=embeddings.names,
        groups=None if task.groups is None else task.groups[embeddings.rows],
        grouping=task.grouping,
        dropped=dropped,
        tiles=task.tiles if not dropped and len(embeddings.rows) == total else task.tiles.select(embeddings.rows),
    )


def material_of(data: ProbeData, encoder: Encoder | None = None, **more: Any) -> Material:
    """Gather what a protocol may look at; `more` are further fields of `Material`."""
    return Material(data.features, data.classes, data.groups, data.tiles, encoder, **more)


def fit_of(data: ProbeData, seed: int = 0, fraction: float = 1.0) -> Fit:
    """Gather a split and its labels, with those of every image that is not to be learned from blanked out (-1)."""
    labels = np.full_like(data.labels, -1)
    for rows in (data.train, data.val):
        labels[rows] = data.labels[rows]
    return Fit(labels, data.train, data.val, data.test, seed, fraction)


def evaluate(
    data: ProbeData,
    protocol: str | Protocol,
    *,
    encoder: Encoder | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Evaluation:
    """Run a protocol and score its predictions of the test images, with 95 % bootstrap intervals.

    The protocol is handed labels in which those of the test images are blanked out (-1), so that none can choose on
    them.

    Args:
        data: Features and splits.
        protocol: A name in `PROTOCOLS` (with its variant, where it has several), or a protocol with settings of its
            own and no variants.
        encoder: What made the features; needed by protocols that look at pixels.
        seed: Of the protocol and of the resampling.
        resamples: For the intervals.

    Raises:
        EosinError: If the protocol is unknown or cannot be run on these splits.
    """
    variants: list[str] | None = None
    if isinstance(protocol, str):
        asked = open_protocol(protocol)
        if len(asked) > 1:
            raise EosinError(f"protocol '{protocol}' has variants; name one, such as '{asked[0].shown}'")
        protocol, variants = asked[0].protocol, [asked[0].variant]
    material = material_of(data, encoder)
    for answer in protocol.answers(material, [fit_of(data, seed)], variants):
        if isinstance(answer.result, EosinError):
            raise answer.result
        return score(data, answer.result, seed=seed, resamples=resamples)
    raise AssertionError(f"{type(protocol).__name__} gave no answer")


def score(data: ProbeData, prediction: Prediction, *, seed: int = 0, resamples: int = 1000) -> Evaluation:
    """Score a prediction of the test images, with 95 % bootstrap intervals.

    Where the prediction is of changed pixels, the metrics lost (`accuracy_lost`, `balanced_accuracy_lost`: unchanged
    minus changed, paired) and the mean movement of the embeddings (`embedding_moved`) stand beside the metrics.

    Args:
        data: The split that was fitted, with the share of its labels that was used.
        prediction: Of the test images, in their order.
        seed: Of the resampling.
        resamples: For the intervals.
    """
    groups = None if data.groups is None else data.groups[data.test]
    truth = data.labels[data.test]
    predicted = Predicted(
        data.names[data.test],
        truth,
        prediction.probabilities,
        groups,
        prediction.votes,
        prediction.unchanged,
        prediction.moved,
    )
    chosen = prediction.chosen
    if prediction.decisions is not None:
        chosen = {**chosen, "sd": spread_of_voters(truth, prediction.decisions, len(data.classes))}
    return Evaluation(
        metrics=predicted_intervals(predicted, seed, resamples),
        chosen=chosen,
        classes=data.classes,
        predicted=predicted,
        grouping=data.grouping,
        n_train=len(data.train),
        n_val=len(data.val),
        n_test=len(data.test),
        dropped=data.dropped,
    )
