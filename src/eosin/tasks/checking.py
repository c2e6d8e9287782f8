"""Is the set in a folder the published one? By names and tables at once, and if asked by every image and checksum."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from eosin.core.console import progress_bar
from eosin.core.errors import EosinError
from eosin.data import UnreadableImage
from eosin.data.hdf5 import HDF5Images
from eosin.data.images import decode_image
from eosin.data.tiles import Tiles
from eosin.tasks.data_sets import DATA_SETS, DataSet
from eosin.tasks.download import file_md5
from eosin.tasks.public import READERS

__all__ = ["Checked", "check_data_set"]

_BATCH = 512
_SHOWN = 20  # images of one kind of fault that are named


@dataclass(frozen=True)
class Checked:
    """One thing that was looked at.

    Attributes:
        fine: Whether it is as published; None where there was nothing to compare with.
        subject: What.
        text: What was found, and if it is wrong the fix.
    """

    fine: bool | None
    subject: str
    text: str


def check_data_set(about: DataSet | str, root: Path, *, deep: bool = True) -> list[Checked]:
    """Check a public set's folder.

    Args:
        about: The set, or its name.
        root: Its folder.
        deep: Decode every image, and compare the checksums that are known.

    Returns:
        What was found, in order; the set is the published one if none is wrong.
    """
    about = DATA_SETS[about] if isinstance(about, str) else about
    model, read, _ = READERS[about.name]
    if not root.is_dir():
        return [Checked(False, "folder", f"{root}: no such folder; {about.how}")]
    checked: list[Checked] = []
    if deep:
        # First: what is wrong with a file explains what cannot be read of it.
        checked += _checksums(about, root)
    try:
        found = read(about, root, model())
    except EosinError as error:
        return [*checked, Checked(False, "layout", str(error))]
    checked += [Checked(False, "layout", problem) for problem in found.problems]
    if not found.problems:
        checked.append(Checked(True, "layout", f"{len(found.tiles):,} images where they should be"))
    for part, count in Counter(found.part.tolist()).items():
        wanted = about.parts[part]
        checked.append(Checked(count == wanted, part, f"{count:,} of {wanted:,} images"))
    if deep:
        checked += _pixels(about, found.tiles)
    return checked


def _checksums(about: DataSet, root: Path) -> Iterator[Checked]:
    known: list[tuple[Path, str]] = []
    for file in about.files:
        if file.md5 is not None:
            known.append((root / file.name, file.md5))
        if file.becomes is not None and file.becomes_md5 is not None:
            known.append((root / file.becomes, file.becomes_md5))
    known += _listed(root)
    there = [(path, md5) for path, md5 in known if path.is_file()]
    with progress_bar() as bars:
        bar = bars.add_task("checksums", total=len(there))
        for path, md5 in there:
            got = file_md5(path)
            text = "as published" if got == md5 else f"{got}, not the published {md5}; remove the file and get it again"
            yield Checked(got == md5, f"MD5 of {path.name}", text)
            bars.advance(bar)
    if not there:
        yield Checked(None, "checksums", "none to compare: the archives are not kept here, or none is published")


def _listed(root: Path) -> list[tuple[Path, str]]:
    """Read the checksums that come with MHIST, lines of MD5 and name."""
    path = root / "MD5SUMs.txt"
    if not path.is_file():
        return []
    pairs = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [(root / Path(pair[1].strip().lstrip("*")).name, pair[0].lower()) for pair in pairs if len(pair) == 2]


def _pixels(about: DataSet, tiles: Tiles) -> list[Checked]:
    """Decode every image and compare its size."""
    wrong: list[str] = []

    def look(row: int) -> str:
        try:
            pixels = decode_image(tiles.read(row))
        except UnreadableImage as error:
            return f"{tiles.names[row]}: cannot be read ({error}); get it again"
        width, height = pixels.shape[2], pixels.shape[1]
        if (width, height) != about.image_size:
            wanted = "{}×{}".format(*about.image_size)
            return f"{tiles.names[row]}: {width}×{height} px, not {wanted}; get it again"
        return ""

    # A file of HDF5 has one lock: threads would only wait for each other.
    threads = 1 if isinstance(tiles.source, HDF5Images) else min(16, os.cpu_count() or 1)
    with progress_bar() as bars, ThreadPoolExecutor(threads) as pool:
        bar = bars.add_task("images", total=len(tiles))
        for start in range(0, len(tiles), _BATCH):
            rows = range(start, min(start + _BATCH, len(tiles)))
            wrong += [said for said in pool.map(look, rows) if said]
            bars.advance(bar, len(rows))
    checked = [Checked(False, "image", said) for said in wrong[:_SHOWN]]
    if len(wrong) > _SHOWN:
        checked.append(Checked(False, "images", f"{len(wrong) - _SHOWN:,} more like these"))
    if not wrong:
        size = "{}×{}".format(*about.image_size)
        checked.append(Checked(True, "images", f"all {len(tiles):,} decode, each {size} px"))
    return checked
