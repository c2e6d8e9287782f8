"""A task: labelled images with a split that no patient crosses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.config import Config
from eosin.core.errors import EosinError, nearest
from eosin.tasks.splits import divide, split_hash

if TYPE_CHECKING:
    from eosin.data import Tiles

__all__ = ["SPLITS", "Task", "TaskOptions", "build_task"]

SPLITS = ("train", "val", "test")

Rows = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]


class TaskOptions(Config):
    """What may follow the `?` of a task's spec, such as ``csv:index.csv?label=grade&group=slide``."""

    label: str | None = None
    """Column that holds the class."""
    name: str | None = None
    """Name to show; by default made from the path and the label column."""
    group: Literal["patient", "slide", "none"] | None = None
    """What may not cross the split; by default the patient where known, else the slide, else nothing."""
    test: float | None = None
    """Share of the images to hold out for the test when no split is given; 0.2 by default."""
    val: float | None = None
    """Share of the images (of the training images when a test split is given) for validation; 0.2 by default."""


@dataclass(frozen=True)
class Task:
    """Labelled images and their split.

    Attributes:
        name: Shown in results.
        version: Raised when the same spec would give other labels or another split.
        classes: Class names, sorted; their order is that of the label indices.
        tiles: The images, N rows.
        labels: int64 [N], class indices.
        train: int64, rows of `tiles` to fit on.
        val: int64, rows to choose settings on.
        test: int64, rows to report.
        groups: str [N], the patient or slide of each row; None when each image stands for itself.
        grouping: What `groups` are.
        split_hash: Identity of the split.
        split_source: "given", or "made: " and how.
        reference: Where the labels come from.
        synthetic: Whether the images are rendered, not real.
        notes: What a reader of the scores must know, such as a class too rare to be tested.
        higher_is_better: Direction of the task's metrics.
        licence: Licence of a public set's images; empty for a user's own.
        data_set: Key of `DATA_SETS` of a public set; empty for others.
    """

    name: str
    version: int
    classes: tuple[str, ...]
    tiles: Tiles
    labels: Rows
    train: Rows
    val: Rows
    test: Rows
    groups: Texts | None
    grouping: Literal["patient", "slide", "image"]
    split_hash: str
    split_source: str
    reference: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    higher_is_better: bool = True
    licence: str = ""
    data_set: str = ""


def build_task(
    tiles: Tiles,
    options: TaskOptions,
    *,
    name: str,
    version: int,
    reference: str,
    seed: int,
    synthetic: bool = False,
    validate_on_test: bool = False,
) -> Task:
    """Check the labels and the split of `tiles`, make what is missing of the split, and return the task.

    Args:
        tiles: Labelled images.
        options: Of the spec.
        name: Shown in results.
        version: Of the scheme.
        reference: Where the labels come from.
        seed: Of the parts of the split that are made.
        synthetic: Whether the images are rendered.
        validate_on_test: Of a given split without `val`, take `test` for it instead of cutting one from train.

    Raises:
        EosinError: If a label or split is missing or unknown, a class is too small, or a group crosses the split.
    """
    names = np.asarray(tiles.names).astype(str)
    if not len(names):
        raise EosinError(f"{tiles.spec}: holds no images; give a source with labelled images")
    classes, labels = _labels(tiles, names)
    groups, grouping = _groups(tiles, names, options)
    units = names if groups is None else groups
    given = _given_split(tiles, names)
    if given is None:
        assignment, source = _made_split(tiles.spec, labels, units, grouping, options, seed)
    else:
        _refuse_crossing(tiles.spec, given, groups, grouping)
        _check_classes(tiles.spec, classes, labels, given)
        if validate_on_test:
            assignment, source = given, "given; val is the test"
        else:
            assignment, source = _completed_split(tiles.spec, given, labels, units, grouping, options, seed)
    notes = _check_classes(tiles.spec, classes, labels, assignment)
    rows = {split: np.flatnonzero(assignment == split).astype(np.int64) for split in SPLITS}
    if given is not None and validate_on_test:
        rows["val"] = rows["test"]
    return Task(
        name=name,
        version=version,
        classes=classes,
        tiles=tiles,
        labels=labels,
        train=rows["train"],
        val=rows["val"],
        test=rows["test"],
        groups=groups,
        grouping=grouping,
        split_hash=split_hash(names.tolist(), assignment.tolist()),
        split_source=source,
        reference=reference,
        synthetic=synthetic,
        notes=notes,
    )


def _missing(column: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Find empty entries: None, NaN and blank text."""
    return np.array([value is None or value != value or not str(value).strip() for value in column], dtype=bool)


def _labels(tiles: Tiles, names: Texts) -> tuple[tuple[str, ...], Rows]:
    if tiles.label is None:
        fix = "put the images into one folder per class, or name the column with ?label=COLUMN"
        raise EosinError(f"{tiles.spec}: no labels found; {fix}")
    missing = _missing(tiles.label)
    if missing.any():
        first = names[int(missing.argmax())]
        raise EosinError(f"{tiles.spec}: {int(missing.sum())} rows have no label, first '{first}'; fill or remove them")
    classes, labels = np.unique(np.asarray(tiles.label).astype(str), return_inverse=True)
    if len(classes) < 2:
        raise EosinError(f"{tiles.spec}: all images are of class '{classes[0]}'; a task needs at least two classes")
    counts = np.bincount(labels)
    if counts.min() < 2:
        single = str(classes[int(counts.argmin())])
        raise EosinError(f"{tiles.spec}: class '{single}' has one image; give it more images or drop the class")
    return tuple(classes.tolist()), labels.astype(np.int64)


def _groups(
    tiles: Tiles, names: Texts, options: TaskOptions
) -> tuple[Texts | None, Literal["patient", "slide", "image"]]:
    if options.group == "none":
        return None, "image"
    columns: dict[Literal["patient", "slide"], npt.NDArray[np.object_] | None]
    columns = {"patient": tiles.patient, "slide": tiles.slide}
    for grouping, column in columns.items():
        if options.group not in (None, grouping):
            continue
        if column is None:
            if options.group is not None:
                raise EosinError(f"{tiles.spec}: ?group={grouping}, but no {grouping} is known; use ?group=none")
            continue
        missing = _missing(column)
        if missing.any():
            first = names[int(missing.argmax())]
            fix = f"fill the column, or choose another with ?group={'slide' if grouping == 'patient' else 'none'}"
            raise EosinError(f"{tiles.spec}: {int(missing.sum())} rows have no {grouping}, first '{first}'; {fix}")
        return np.asarray(column).astype(str), grouping
    return None, "image"


def _given_split(tiles: Tiles, names: Texts) -> Texts | None:
    if tiles.split is None:
        return None
    missing = _missing(tiles.split)
    if missing.any():
        first = names[int(missing.argmax())]
        raise EosinError(f"{tiles.spec}: {int(missing.sum())} rows have no split, first '{first}'; fill or remove them")
    given = np.asarray(tiles.split).astype(str)
    for value in np.unique(given).tolist():
        if value not in SPLITS:
            raise EosinError(f"{tiles.spec}: unknown split '{value}'; {nearest(value, SPLITS)}")
    for split in ("train", "test"):
        if split not in given:
            fix = f"mark some rows '{split}', or remove the split to have one made"
            raise EosinError(f"{tiles.spec}: the {split} split is empty; {fix}")
    return given


def _refuse_crossing(spec: str, given: Texts, groups: Texts | None, grouping: str) -> None:
    if groups is None:
        return
    pairs = np.unique(np.stack([groups, given], axis=1), axis=0)
    repeated = np.flatnonzero(pairs[1:, 0] == pairs[:-1, 0])
    if len(repeated):
        group, sides = pairs[repeated[0], 0], sorted({pairs[repeated[0], 1], pairs[repeated[0] + 1, 1]})
        raise EosinError(
            f"{spec}: {grouping} '{group}' is in both {sides[0]} and {sides[1]}, so scores would be optimistic;"
            " correct the split column, or accept it with ?group=none"
        )


def _made_split(
    spec: str, labels: Rows, units: Texts, grouping: str, options: TaskOptions, seed: int
) -> tuple[Texts, str]:
    test = 0.2 if options.test is None else options.test
    val = 0.2 if options.val is None else options.val
    _check_shares(spec, test=test, val=val)
    assignment = np.full(len(labels), "train", dtype="<U5")
    assignment[divide(labels, units, test, seed, "test")] = "test"
    if "test" not in assignment:
        raise EosinError(f"{spec}: no {grouping} can be held out for a test; {_more(grouping)}")
    _hold_out_validation(spec, assignment, labels, units, grouping, val / (1.0 - test), seed)
    shares = f"{100 * (1 - test - val):g}/{100 * val:g}/{100 * test:g} %"
    return assignment, f"made: train/val/test {shares} by {grouping}, stratified, seed {seed}"


def _completed_split(
    spec: str, given: Texts, labels: Rows, units: Texts, grouping: str, options: TaskOptions, seed: int
) -> tuple[Texts, str]:
    if options.test is not None:
        raise EosinError(f"{spec}: ?test= with a split that is given; remove the option or the split column")
    if "val" in given:
        if options.val is not None:
            raise EosinError(f"{spec}: ?val= with a validation split that is given; remove one of the two")
        return given, "given"
    val = 0.2 if options.val is None else options.val
    _check_shares(spec, val=val)
    assignment = given.astype("<U5")
    _hold_out_validation(spec, assignment, labels, units, grouping, val, seed)
    return assignment, f"given; made: {100 * val:g} % of train as val by {grouping}, stratified, seed {seed}"


def _hold_out_validation(
    spec: str, assignment: Texts, labels: Rows, units: Texts, grouping: str, share: float, seed: int
) -> None:
    train = np.flatnonzero(assignment == "train")
    held = train[divide(labels[train], units[train], share, seed, "val")]
    if not len(held):
        raise EosinError(f"{spec}: no {grouping} of the training images can be held out to validate; {_more(grouping)}")
    assignment[held] = "val"


def _more(grouping: str) -> str:
    return "give more images" if grouping == "image" else f"give more {grouping}s, or split by image with ?group=none"


def _check_shares(spec: str, **shares: float) -> None:
    for name, share in shares.items():
        if not 0.0 < share < 1.0:
            raise EosinError(f"{spec}: ?{name}={share:g} must be a share between 0 and 1")
    if sum(shares.values()) >= 1.0:
        raise EosinError(f"{spec}: ?test= and ?val= leave nothing to train on; choose smaller shares")


def _check_classes(spec: str, classes: tuple[str, ...], labels: Rows, assignment: Texts) -> tuple[str, ...]:
    """Refuse a class that is tested or validated without being trained; note one that is not tested."""
    present = {split: set(np.unique(labels[assignment == split]).tolist()) for split in SPLITS}
    for split in ("test", "val"):
        untrained = sorted(present[split] - present["train"])
        if untrained:
            name = classes[untrained[0]]
            fix = "move some of its images (or patients) to train, or drop the class"
            raise EosinError(f"{spec}: class '{name}' is in {split} but not in train; {fix}")
    if len(present["train"]) < 2:
        raise EosinError(f"{spec}: train holds one class only; give train images of a second class")
    untested = [classes[index] for index in sorted(present["train"] - present["test"])]
    return tuple(f"class '{name}' has no test images: its scores are left out of the means" for name in untested)
