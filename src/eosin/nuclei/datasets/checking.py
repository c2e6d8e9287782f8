"""Is the set of nuclei in a folder the published one, and can all of it be read?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eosin.core.console import progress_bar
from eosin.core.errors import EosinError
from eosin.nuclei.datasets.registry import NUCLEI_SETS, About
from eosin.nuclei.datasets.sample import SPLITS, NucleiImage, NucleiSet
from eosin.tasks.checking import Checked

__all__ = ["check_nuclei"]

_SHOWN = 20
"""Images of one kind of fault that are named."""


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
    nuclei = np.zeros(len(found.classes) + 1, dtype=np.int64)
    with progress_bar() as bars:
        bar = bars.add_task("images", total=len(found.images))
        for image in found.images:
            bars.advance(bar)
            try:
                said, counts = _look(image, about, len(nuclei))
            except EosinError as error:
                wrong.append(str(error))
                continue
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


def _look(image: NucleiImage, about: About, width: int) -> tuple[str, np.ndarray]:
    """Read an image; say what is wrong with its size, and count its nuclei by type (untyped: at 0)."""
    sample = image.read()
    height, across = sample.instances.shape
    said = ""
    if about.image_size is not None and (across, height) != about.image_size:
        said = f"{image.name}: {across}x{height} px, not {about.image_size[0]}x{about.image_size[1]}; get it again"
    kinds = np.zeros(sample.count, dtype=np.int64) if sample.types is None else sample.types[1:]
    return said, np.bincount(kinds, minlength=width)
