"""The string that names a set of nuclei, what is known of each public one, and from files to a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field

from eosin.core.config import Config
from eosin.core.errors import EosinError
from eosin.core.files import short_hash
from eosin.core.registry import Registry
from eosin.nuclei.datasets.sample import SPLITS, NucleiImage, NucleiSample, NucleiSet, Split, TypesOf, hold_out
from eosin.nuclei.labels import Labels
from eosin.tasks.spec import split_spec

__all__ = [
    "NUCLEI_SETS",
    "About",
    "Found",
    "NucleiScheme",
    "PublicOptions",
    "Share",
    "assemble",
    "folder_of",
    "open_nuclei",
    "wrong_counts",
]

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class About(Config):
    """What is known of a set of nuclei."""

    name: str
    """The scheme: ``consep`` in ``consep:DIR``."""
    title: str
    task: str
    """What is labelled, in a few words."""
    version: int = 1
    """Raised when the same files would give other labels or another split."""
    classes: tuple[str, ...] = ()
    """Names of the types 1 to n as published."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Official part -> number of images; empty where there is no published number."""
    images: int = 0
    """Number of images of a set that has no published parts; 0 where it is not known."""
    image_size: tuple[int, int] | None = None
    """Width and height in px, where all images have one size."""
    mpp: float | None = None
    """µm/px."""
    licence: str = ""
    use: str = ""
    """Who may use it."""
    home: str = ""
    """Where it is published."""
    layout: tuple[str, ...] = ()
    """The tree below the root, a line each."""
    reference: str = ""
    flaws: tuple[str, ...] = ()
    """What a reader of scores on it should know."""


class PublicOptions(Config):
    """What may follow the `?` of a public set's spec."""

    check: Literal["strict", "loose"] = "strict"
    """loose takes a folder that is not the whole set; name and notes then say so."""


@dataclass(frozen=True)
class Found:
    """An image that was found, not read.

    Attributes:
        name: Unique in the set.
        part: Official part; empty where there is none.
        load: Reads it.
        shape: Height and width in px.
        content: Digest of the image.
        stamp: Digest of the labels.
        group: Patient or slide; empty where neither is known.
        mpp: µm/px.
        tissue: Organ or tissue.
        labels: See `NucleiImage`.
    """

    name: str
    part: str
    load: Callable[[], NucleiSample]
    shape: tuple[int, int]
    content: bytes
    stamp: bytes
    group: str = ""
    mpp: float | None = None
    tissue: str = ""
    labels: Callable[[], tuple[Labels, TypesOf | None]] | None = None


Open = Callable[[str, Any, str], NucleiSet]


@dataclass(frozen=True)
class NucleiScheme:
    """A scheme of specs.

    Attributes:
        about: What is known of it.
        options: What may follow the `?`.
        open: From the source (without scheme and options), the options and the whole spec to the set.
        whole: Options under which the set is checked as published.
    """

    about: About
    options: type[Config]
    open: Open
    whole: dict[str, str]


NUCLEI_SETS: Registry[NucleiScheme] = Registry("set of nuclei")
"""Scheme -> how it is opened."""


def open_nuclei(spec: str) -> NucleiSet:
    """Open a set of labelled nuclei; no image is read before it is asked for.

    Args:
        spec: ``consep:DIR?classes=4``, ``monuseg:DIR``, ``pannuke:DIR``, ``nucls:DIR``, ``lizard:DIR``, ``folder:DIR``
            (or the bare path of such a folder), ``synthetic:``; options follow a `?`.

    Raises:
        EosinError: If the scheme, an option or the layout is wrong, or the set is not whole.
    """
    source, options = split_spec(str(spec))
    scheme, separator, rest = source.partition(":")
    if not separator and source not in NUCLEI_SETS and (Path(source).expanduser().is_dir() or "/" in source):
        scheme, rest = "folder", source
    entry = NUCLEI_SETS[scheme]
    return entry.open(rest, entry.options.parse(options, str(spec)), str(spec))


def folder_of(about: About, source: str, spec: str) -> Path:
    """Return a set's folder.

    Raises:
        EosinError: If none is given or there is none.
    """
    if not source:
        raise EosinError(f"{spec}: give the folder of the set, as {about.name}:DIR")
    root = Path(source).expanduser()
    if not root.is_dir():
        where = f"; {about.title} is published at {about.home}" if about.home else ""
        raise EosinError(f"{root}: no such folder{where}")
    return root


def wrong_counts(about: About, found: Sequence[Found], root: Path) -> list[str]:
    """Say which parts of a set have not their published number of images."""
    there = Counter(each.part for each in found)
    return [
        f"{root}: {there[part]:,} of {wanted:,} images of '{part}'; get the set again"
        for part, wanted in about.counts.items()
        if there[part] != wanted
    ]


def assemble(
    about: About,
    spec: str,
    found: Sequence[Found],
    sides: dict[str, Split],
    options: Config,
    *,
    root: Path | None = None,
    classes: Sequence[str] = (),
    split_source: str,
    val: float | None = None,
    test: float | None = None,
    notes: Sequence[str] = (),
    name: str = "",
) -> NucleiSet:
    """Put images on sides and make a set of them.

    Args:
        about: What is known of the set.
        spec: By which it was opened.
        found: Its images.
        sides: Official part -> side; images of other parts are left out.
        options: Of the spec.
        root: Its folder; with it, the numbers of images are compared with the published ones.
        classes: Names of the types.
        split_source: Where the sides come from.
        val: Share of the training images to make `val` of; None where it is given.
        test: Share of the training images to make `test` of before.
        notes: Added to what is noted here.
        name: Shown in results; the scheme by default.

    Raises:
        EosinError: If the set is not whole, is not told that it need not be, or has no images to train on.
    """
    problems = wrong_counts(about, found, root) if root is not None and about.counts else []
    if problems and getattr(options, "check", "strict") == "strict":
        raise EosinError(f"{problems[0]}; to use what is there, write ?check=loose")
    kept = sorted((each for each in found if each.part in sides), key=lambda each: each.name)
    _refuse_repeated(spec, kept)
    split = np.array([sides[each.part] for each in kept], dtype=object)
    said = list(notes)
    if problems:
        said.append(f"not the published set: {'; '.join(problem.partition(': ')[2] for problem in problems)}")
    for side, share in (("test", test), ("val", val)):
        if share is not None:
            said += _cut(kept, split, cast(Split, side), share)
    leak = _leak(kept, split.tolist())
    if leak and not about.counts:
        raise EosinError(f"{spec}: {leak}; put both on one side")
    if leak:
        said.append(f"the published sides overlap: {leak}")
    if "train" not in split.tolist():
        raise EosinError(f"{spec}: there are no images to train on; expected {', '.join(about.layout)}")
    images = [_image(each, side) for each, side in zip(kept, split.tolist(), strict=True)]
    scales = {image.mpp for image in images}
    mpp = scales.pop() if len(scales) == 1 else None
    identity = [(e.name, s, e.group, e.content.hex(), e.stamp.hex()) for e, s in zip(kept, split, strict=True)]
    about_set = (about.name, about.version, list(classes), options.plain())
    return NucleiSet(
        name=(name or about.name) + (" (subset)" if problems else ""),
        classes=tuple(classes),
        images=tuple(sorted(images, key=lambda image: (SPLITS.index(image.split), image.name))),
        split_source=split_source,
        mpp=mpp,
        licence=about.licence,
        source=spec,
        notes=tuple(said),
        fingerprint=short_hash(*about_set, identity),
        reference=about.reference,
        learning=short_hash(*about_set, mpp, [entry for entry in identity if entry[1] != "test"]),
    )


def _leak(kept: Sequence[Found], sides: Sequence[str]) -> str:
    """Say which image, or patient, lies on two sides, if one does: what is tested would have been learned from."""
    first: dict[tuple[str, object], tuple[str, str]] = {}
    for each, side in zip(kept, sides, strict=True):
        keys = [("is a copy of", each.content), (f"is of the group '{each.group}', as", each.group)]
        for words, value in keys:
            name, other = first.setdefault((words, value), (each.name, side)) if value else (each.name, side)
            if other != side:
                return f"'{each.name}' ({side}) {words} '{name}' ({other})"
    return ""


def _image(found: Found, side: Split) -> NucleiImage:
    group = found.group or found.name
    return NucleiImage(found.name, side, group, found.mpp, found.shape, found.load, found.tissue, found.labels)


def _cut(kept: Sequence[Found], split: np.ndarray, side: Split, share: float) -> list[str]:
    """Move a share of the training images to another side, and say so if that is not possible."""
    rows = np.flatnonzero(split == "train").tolist()
    # Two copies of one image stay together where patients are not known.
    units = [kept[row].group or kept[row].content.hex() for row in rows]
    held = hold_out(units, [kept[row].content for row in rows], share, side)
    split[np.asarray(rows, dtype=np.int64)[held]] = side
    return [] if held.any() else [f"{side} is empty: one patient or image cannot be divided"]


def _refuse_repeated(spec: str, found: Sequence[Found]) -> None:
    twice = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if twice:
        raise EosinError(f"{spec}: two images are called '{twice[0]}'; rename one")
