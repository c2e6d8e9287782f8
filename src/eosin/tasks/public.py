"""From a public set's folder to a task: what all of them share.

A set's own module says what lies in its folder (`Found`) and on which side each image is (`Assigned`); here the two are
checked and made into a task that says what it is: the whole set under a pinned split, or something less.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.config import Config
from eosin.core.errors import EosinError
from eosin.data.folder import IMAGE_SUFFIXES
from eosin.data.tiles import FileBytes, Names, Tiles
from eosin.tasks.data_sets import DATA_SETS, DataSet
from eosin.tasks.labelled import TASKS
from eosin.tasks.splits import divide, split_hash
from eosin.tasks.task import SPLITS, Task, TaskOptions, build_task

__all__ = [
    "READERS",
    "Assigned",
    "Found",
    "PublicOptions",
    "count_problems",
    "file_tiles",
    "hold_out",
    "image_names",
    "register",
    "root_of",
]

Texts = npt.NDArray[np.object_]

VAL_SEED = 0
"""Parts that eosin cuts itself are cut by this seed and never by a run's: one set, one split."""


class PublicOptions(Config):
    """What may follow the `?` of a public set's spec, such as ``bach:DIR?split=eva``."""

    name: str | None = None
    """Name to show."""
    check: Literal["strict", "loose"] = "strict"
    """loose takes a folder that is not the whole set; the task's name and notes then say what it is."""
    group: Literal["patient", "slide", "none"] | None = None
    """As for other tasks: what may not cross the split."""


@dataclass(frozen=True)
class Found:
    """What lies in a set's folder, by names and tables alone; no image was decoded.

    Attributes:
        tiles: Images with label and, where known, patient or slide; names do not depend on where the folder lies.
        part: str [N], the official part of each image, a key of the entry's `counts`.
        problems: One line for each thing that is not as published, with the fix.
        notes: What a reader of scores must know of this copy.
    """

    tiles: Tiles
    part: Texts
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assigned:
    """A side for each image.

    Attributes:
        split: str [N]: train, val or test.
        name: Key of the entry's `splits`, or None where the options ask for another.
        source: How it was made, in words.
        validate_on_test: The published split has two parts: settings are chosen on the images that are reported.
        notes: What a reader of scores must know of it.
        unit: str [N] of what is pinned, where that is not the image.
    """

    split: Texts
    name: str | None
    source: str
    validate_on_test: bool = False
    notes: tuple[str, ...] = ()
    unit: Texts | None = None


Read = Callable[[DataSet, Path, Any], Found]
Assign = Callable[[DataSet, Found, Any], Assigned]

READERS: dict[str, tuple[type[PublicOptions], Read, Assign]] = {}
"""Scheme -> its options, what reads its folder, and what puts its images on sides."""


def register(about: DataSet, options: type[PublicOptions], read: Read, assign: Assign) -> None:
    """Add a public set: its entry, and its scheme among the tasks."""
    DATA_SETS.register(about.name)(about)
    READERS[about.name] = options, read, assign

    def open_public(source: str, given: dict[str, str], spec: str, seed: int, label_column: str) -> Task:
        return _open(about.name, source, given, spec)

    open_public.__doc__ = f"Open {about.title}: ``{about.name}:DIR``."
    TASKS.register(about.name)(open_public)


def _open(name: str, source: str, given: dict[str, str], spec: str) -> Task:
    about = DATA_SETS[name]
    model, read, assign = READERS[name]
    options = model.parse(given, spec)
    root = root_of(about, source, spec)
    found = read(about, root, options)
    if found.problems and options.check == "strict":
        raise EosinError(_refusal(about, root, found))
    assigned = assign(about, found, options)
    tiles = dataclasses.replace(found.tiles, split=assigned.split, mpp=np.full(len(found.tiles), about.mpp))
    task = build_task(
        tiles,
        TaskOptions(group=options.group),
        name=options.name or about.name,
        version=about.version,
        reference=about.reference,
        seed=VAL_SEED,
        validate_on_test=assigned.validate_on_test,
    )
    suffix, said = _what_it_is(about, found)
    # Of a part of a set, whose val is not there, one was made.
    made = not assigned.validate_on_test and "val" not in assigned.split.tolist()
    return dataclasses.replace(
        task,
        name=task.name + suffix,
        split_source=f"{assigned.source}; {task.split_source}" if made else assigned.source,
        licence=about.licence,
        data_set=about.name,
        notes=(*task.notes, *said, *found.notes, *assigned.notes, *_pin_notes(about, assigned, task.split_hash)),
    )


def root_of(about: DataSet, source: str, spec: str) -> Path:
    """Return a set's folder.

    Raises:
        EosinError: If none is given or there is none.
    """
    if not source:
        raise EosinError(f"{spec}: give the folder of the set, as {about.name}:DIR")
    root = Path(source).expanduser()
    if not root.is_dir():
        raise EosinError(f"{root}: no such folder; `eosin data get {about.name} --root {root}` says how to get it")
    return root


def _refusal(about: DataSet, root: Path, found: Found) -> str:
    rest = len(found.problems) - 1
    more = f" (and {rest:,} more: `eosin data check {about.name} --root {root}` lists all)" if rest else ""
    return f"{found.problems[0]}{more}; to use what is there, write ?check=loose"


def _what_it_is(about: DataSet, found: Found) -> tuple[str, tuple[str, ...]]:
    """Return what is added to the name, and the notes, where the folder is not the published set."""
    if not found.problems:
        return "", ()
    count, whole = len(found.tiles), about.images
    more = f" and {len(found.problems) - 1:,} more" if len(found.problems) > 1 else ""
    if count == whole:
        return " (altered)", (f"not the published set: {found.problems[0]}{more}",)
    said = f"subset ({count:,} of {whole:,} images)"
    return f" (subset: {count:,} of {whole:,})", (f"{said}: {found.problems[0]}{more}",)


def _pin_notes(about: DataSet, assigned: Assigned, made: str) -> tuple[str, ...]:
    """Say so when the split, whose hash by image is `made`, is not the pinned one."""
    if assigned.name is None:
        return (f"the split is not a pinned one of {about.title}: its options ask for another",)
    sizes = Counter(assigned.split.tolist())
    wanted = about.splits[assigned.name]
    got = tuple(sizes[side] for side in SPLITS)
    if assigned.validate_on_test:
        got = (got[0], got[2], got[2])
    if got != wanted:
        return (
            f"the split is not the pinned '{assigned.name}' one: train/val/test "
            f"{'/'.join(f'{n:,}' for n in got)}, not {'/'.join(f'{n:,}' for n in wanted)}",
        )
    if about.pinned_by == "counts":
        return ()
    if assigned.unit is not None:
        pairs = sorted(set(zip(assigned.unit.tolist(), assigned.split.tolist(), strict=True)))
        made = split_hash([unit for unit, _ in pairs], [side for _, side in pairs])
    if made != about.pins[assigned.name]:
        return (f"the split is not the pinned '{assigned.name}' one: hash {made}, not {about.pins[assigned.name]}",)
    return ()


def image_names(folder: Path) -> list[str]:
    """Return the image files right in a folder, sorted; hidden files and other kinds are passed over.

    Raises:
        EosinError: If the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122 (100,000 files)
            )
    except OSError as error:
        raise EosinError(f"{folder}: cannot be read ({error.strerror}); change its permissions") from None


def file_tiles(
    about: DataSet, base: Path, names: Sequence[str], labels: Iterable[str], patients: Iterable[str] | None = None
) -> Tiles:
    """Return tiles that are files below `base`.

    Raises:
        EosinError: If there are none.
    """
    if not names:
        raise EosinError(
            f"{base}: no images of {about.title}; expected {about.layout[0]} …; "
            f"`eosin data get {about.name} --root DIR` says how to get it"
        )
    column = Names(names)
    return Tiles(
        spec=f"{about.name}:{base}",
        names=column,
        source=FileBytes(base, column),
        label=np.array([*labels, None], dtype=object)[:-1],
        patient=None if patients is None else np.array([*patients, None], dtype=object)[:-1],
    )


def count_problems(where: dict[str, Path], counts: dict[str, int], got: Counter[str], what: str) -> list[str]:
    """Say of which classes there are too few or too many images.

    Args:
        where: Class -> its folder or table.
        counts: Class -> images as published.
        got: Class -> images found.
        what: What to do about it.
    """
    return [
        f"{where[label]}: {got[label]:,} images of class {label}, not the published {count:,}; {what}"
        for label, count in counts.items()
        if got[label] != count
    ]


def hold_out(labels: Texts, names: Texts, share: float, spec: str) -> npt.NDArray[np.bool_]:
    """Choose a share of each class by image, the same for every run.

    Raises:
        EosinError: If the share is not between 0 and 1.
    """
    if not 0.0 < share < 1.0:
        raise EosinError(f"{spec}: ?val={share:g} must be a share between 0 and 1")
    _, codes = np.unique(labels.astype(str), return_inverse=True)
    return divide(codes, names, share, VAL_SEED, "val")
