"""Is the set of nuclei in a folder the published one, and can all of it be read?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from eosin.core.console import progress_bar
from eosin.core.errors import EosinError
from eosin.nuclei.datasets.registry import NUCLEI_SETS, About
from eosin.nuclei.datasets.sample import SPLITS, NucleiImage, NucleiSet
from eosin.tasks.checking import Checked

__all__ = ["check_nuclei", "look_over"]

_SHOWN = 20
"""Images of one kind of fault that are named."""
_THREADS = 8

_seen: set[str] = set()
"""Fingerprints of sets that this process has looked over: a benchmark opens a set for each of its trainings."""

Seen = TypeVar("Seen")


def check_nuclei(name: str, root: Path, *, deep: bool = True) -> list[Checked]:
    """Check the folder of a set of nuclei.

    Args:
        name: The set.
        root: Its folder.
        deep: Read every image and every label map.

    Returns:
        What was found, in order; the set is fine if nothing is wrong.
    """
    entry = NUCLEI_SETS[name]
    if not entry.about.home and name != "folder":
        raise EosinError(f"{name}: is drawn, and has no files to check")
    options = "&".join(f"{key}={value}" for key, value in entry.whole.items())
    try:
        found = entry.open(str(root), entry.options.parse(entry.whole, name), f"{name}:{root}?{options}".rstrip("?"))
    except EosinError as error:
        return [Checked(False, "layout", str(error))]
    sides = ", ".join(f"{side} {len(found.of(side)):,}" for side in SPLITS)
    checked = [Checked(True, "layout", f"{len(found.images):,} images ({sides})")]
    return checked + (_read_all(found, entry.about) if deep else [])


def _read_all(found: NucleiSet, about: About) -> list[Checked]:
    wrong: list[str] = []
    empty: list[str] = []
    width = len(found.classes) + 1
    nuclei = np.zeros(width, dtype=np.int64)
    with progress_bar() as bars:
        bar = bars.add_task("images", total=len(found.images))
        for image, seen in _each(found.images, lambda image: _look(image, about, width), threads=1):
            bars.advance(bar)
            if isinstance(seen, EosinError):
                wrong.append(str(seen))
                continue
            said, counts = seen
            nuclei += counts
            wrong += [said] if said else []
            empty += [] if counts.any() else [image.name]
    checked = [Checked(False, "image", said) for said in wrong[:_SHOWN]]
    if len(wrong) > _SHOWN:
        checked.append(Checked(False, "images", f"{len(wrong) - _SHOWN:,} more like these"))
    if empty:
        checked.append(Checked(None, "empty", f"{len(empty):,} images without nuclei, first '{empty[0]}'"))
    by_type = ", ".join(f"{kind} {count:,}" for kind, count in zip(found.classes, nuclei[1:].tolist(), strict=True))
    kinds = f" ({by_type})" if by_type else ""
    checked.append(Checked(None if wrong else True, "nuclei", f"{int(nuclei.sum()):,}{kinds}"))
    return checked


def look_over(found: NucleiSet) -> None:
    """Make sure that the labels of all sides can be used, before time goes into a training.

    Those of the test side are else read at its end. Pixels are not read.

    Raises:
        EosinError: Of the first image whose labels are at fault; or if no training image has a nucleus.
    """
    if found.fingerprint in _seen:
        return
    looks = list(_each(found.images, NucleiImage.look, threads=min(_THREADS, os.cpu_count() or 1)))
    wrong = [seen for _, seen in looks if isinstance(seen, EosinError)]
    if wrong:
        more = f" ({len(wrong) - 1:,} more images have faults)" if len(wrong) > 1 else ""
        raise EosinError(f"{wrong[0]}{more}")
    learned = [seen for image, seen in looks if image.split == "train"]
    if learned and all(seen is False for seen in learned):
        raise EosinError(
            f"{found.source}: none of its {len(learned):,} training images has a nucleus; label some, or correct the "
            "label maps"
        )
    _seen.add(found.fingerprint)


def _each(
    images: Sequence[NucleiImage], look: Callable[[NucleiImage], Seen], *, threads: int
) -> Iterator[tuple[NucleiImage, Seen | EosinError]]:
    """Look at image after image; what is wrong with one is handed out in place of what was seen."""

    def safe(image: NucleiImage) -> Seen | EosinError:
        try:
            return look(image)
        except EosinError as error:
            return error

    if threads == 1:
        yield from ((image, safe(image)) for image in images)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from zip(images, pool.map(safe, images), strict=True)


def _look(image: NucleiImage, about: About, width: int) -> tuple[str, np.ndarray]:
    """Read an image; say what is wrong with its size, and count its nuclei by type (untyped: at 0)."""
    sample = image.read()
    height, across = sample.instances.shape
    said = ""
    if about.image_size is not None and (across, height) != about.image_size:
        said = f"{image.name}: {across}x{height} px, not {about.image_size[0]}x{about.image_size[1]}; get it again"
    kinds = np.zeros(sample.count, dtype=np.int64) if sample.types is None else sample.types[1:]
    return said, np.bincount(kinds, minlength=width)
