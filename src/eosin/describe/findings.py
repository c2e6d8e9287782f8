"""What a reader should know before using the tiles, in sentences with the fix; the gravest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eosin.describe.columns import Conflicts
from eosin.describe.run import Description
from eosin.describe.words import decimal, number, share, tiles_of

__all__ = ["Finding", "findings"]

# Shares above which a sentence is due.
_MANY_BLANK, _MANY_BLURRED, _SOME_BLACK = 0.2, 0.05, 0.01
_RARE_LABEL = 10
# Color difference (CIE 1976) at which two stains look different at first sight.
_FAR = 20.0
_FEW_FAR_TILES = 3
# µm/px that tiles are made at.
_FINEST, _COARSEST = 0.05, 100.0


@dataclass(frozen=True)
class Finding:
    """A sentence.

    Attributes:
        tone: "wrong" for what makes results false, "care" for what may.
        text: One or two sentences.
    """

    tone: Literal["wrong", "care"]
    text: str


def findings(description: Description) -> list[Finding]:
    """Return what there is to say; nothing where all is well."""
    wrong = [*_leaks(description), *_contradictions(description), *_unreadable(description), *_absurd(description)]
    care = [*_unknown(description), *_labels(description), *_quality(description), *_color(description)]
    return [Finding("wrong", text) for text in wrong] + [Finding("care", text) for text in care]


def _leaks(description: Description) -> Iterator[str]:
    columns = description.columns
    for name, found in columns.leaks.items():
        if found.count:
            yield (
                f"{_counted(found.count, name)} in more than one split ({_first(found)}): scores on them are too good. "
                f"Split by {name}."
            )
    if columns.mixed_slides is not None and columns.mixed_slides.count:
        found = columns.mixed_slides
        yield (
            f"{_counted(found.count, 'slide')} of more than one patient ({_first(found)}): correct the columns `slide` "
            "and `patient`."
        )


def _counted(count: int, noun: str) -> str:
    return f"{number(count)} {noun} is" if count == 1 else f"{number(count)} {noun}s are"


def _first(found: Conflicts) -> str:
    name, entries = found.examples[0]
    return f"{'' if found.count == 1 else 'first '}'{name}': {', '.join(entries)}"


def _contradictions(description: Description) -> Iterator[str]:
    for how, found in (("of the same bytes", description.copies), ("that look alike", description.lookalikes)):
        if found is None:
            continue
        for column, what, fix in (
            ("split", "a test on them is no test", "keep each picture in one split"),
            ("label", "one of the labels is wrong", "look at them and keep one"),
            ("patient", "the patients are mixed up", "correct the column `patient`"),
        ):
            count = found.across.get(column, 0)
            if count:
                groups = f"{number(count)} group{'' if count == 1 else 's'} of tiles {how}"
                yield f"{groups} {'has' if count == 1 else 'have'} more than one {column}: {what}; {fix}."


def _unreadable(description: Description) -> Iterator[str]:
    unreadable = description.measured.unreadable
    if unreadable.count == 0:
        return
    name, reason = unreadable.first[0]
    most = (
        " Most tiles cannot be read: what is said of pixels stands for the others alone."
        if (2 * unreadable.count > description.asked)
        else ""
    )
    yield (
        f"{tiles_of(unreadable.count)} of the {number(description.asked)} looked at cannot be read "
        f"({share(unreadable.count, description.asked)}; first '{name}': {reason}). Repair or remove them.{most}"
    )


def _absurd(description: Description) -> Iterator[str]:
    mpp = description.columns.mpp
    if mpp is None:
        return
    wrong = np.isinf(mpp) | (mpp < _FINEST) | (mpp > _COARSEST)
    if wrong.any():
        yield (
            f"{tiles_of(int(wrong.sum()))} {'has' if wrong.sum() == 1 else 'have'} a resolution that no tile has, such "
            f"as {mpp[wrong][0]:g} µm/px: correct the column `mpp` (µm/px, {_FINEST:g} to {_COARSEST:g})."
        )


def _unknown(description: Description) -> Iterator[str]:
    columns = description.columns
    missing = 0 if columns.mpp is None else int((~np.isfinite(columns.mpp)).sum())
    if columns.mpp is None or missing == description.total:
        yield "The resolution (µm/px) is unknown: give it in a column `mpp`, or trust that it is the same everywhere."
    elif missing:
        part = share(missing, description.total)
        yield f"The resolution of {tiles_of(missing)} is unknown ({part}): fill the column `mpp`."
    elif columns.mpp is not None and float(columns.mpp.max()) > 1.05 * float(columns.mpp.min()):
        low, high = float(columns.mpp.min()), float(columns.mpp.max())
        yield f"Resolutions differ, from {low:.3g} to {high:.3g} µm/px: the same tissue comes in different sizes."
    if columns.slide is None and columns.patient is None:
        yield (
            "Slides and patients are unknown: a random split puts neighboring tiles on both sides, and scores are too "
            "good."
        )


def _labels(description: Description) -> Iterator[str]:
    label = description.columns.label
    if label is None:
        return
    if label.unknown:
        yield (
            f"{tiles_of(label.unknown)} {'has' if label.unknown == 1 else 'have'} no label "
            f"({share(label.unknown, description.total)}): good for pre-training, refused by a task."
        )
    rare = np.flatnonzero(label.counts < _RARE_LABEL)
    if len(rare):
        names = ", ".join(f"'{label.names[place]}' ({label.counts[place]})" for place in rare[:4].tolist())
        yield f"Few tiles of {names}{' and more' if len(rare) > 4 else ''}: no score of theirs can be trusted."


def _quality(description: Description) -> Iterator[str]:
    count, judged = len(description.measured), int(description.judged.sum())
    if not count:
        return
    blank, blurred, black = (int(which.sum()) for which in (description.blank, description.blurred, description.black))
    if blank == count:
        yield "Every tile is blank: no stained tissue is seen. Is it H&E in color?"
    elif blank > _MANY_BLANK * count:
        yield f"{share(blank, count)} of the tiles are blank: leave them out, they teach nothing and cost as much."
    if judged and blurred > _MANY_BLURRED * judged:
        yield f"{share(blurred, judged)} of the tiles are blurred at the scale of nuclei: look at them before training."
    if black > _SOME_BLACK * count:
        yield f"{share(black, count)} of the tiles are black in part: borders of the scan, or masks taken for tiles."


def _color(description: Description) -> Iterator[str]:
    stain = description.stain
    if stain is None or stain.origin == "label":
        return
    far = [group for group in stain.groups if group.away > _FAR and group.tiles >= _FEW_FAR_TILES]
    if far and len(stain.groups) > 2:
        yield (
            f"{_counted(len(far), stain.origin)} stained much unlike the others (color difference above {_FAR:g}; "
            f"'{far[0].name}': {decimal(far[0].away, 0)}): look whether {'it is' if len(far) == 1 else 'they are'} H&E."
        )
