"""A folder of synthetic slides as a hospital hands it out: several sites and formats, and some slides broken."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from eosin.core.errors import EosinError
from eosin.core.files import atomic_directory
from eosin.synthetic.collection import NOTICE
from eosin.synthetic.frame import mix
from eosin.synthetic.scene import INKS
from eosin.synthetic.slides import Kind, write_slide
from eosin.synthetic.tiles import check_whole

FAULTS = ("truncated", "zero bytes", "not an image", "no mpp", "no tissue", "smaller than a tile")
"""What can be wrong with a slide, in the order in which broken slides take turns."""

_SUFFIX: dict[Kind, str] = {"svs": ".svs", "tiff": ".tiff", "ome-tiff": ".ome.tif"}
_SITES = ("site-1", "site-2/2021", "site-2/2022", "site-3")
# Number of the slide that has the same name as the first.
_TWIN = 3
_SCALES = (0.25, 0.2527, 0.499, 0.5)


@dataclass(frozen=True)
class MadeSlide:
    """One slide that was written.

    Attributes:
        file: Its path, relative to the folder.
        kind: `svs`, `tiff` or `ome-tiff`.
        width: Of level 0 in px.
        height: Of level 0 in px.
        mpp: µm/px of level 0 as its metadata say; None where they do not.
        fault: What is wrong with it, one of `FAULTS`, or "".
    """

    file: str
    kind: Kind
    width: int
    height: int
    mpp: float | None
    fault: str


def write_slides(
    folder: Path | str,
    count: int,
    *,
    broken: float = 0.0,
    seed: int = 0,
    shortest: int = 2000,
    longest: int = 5000,
    advance: Callable[[], None] = lambda: None,
) -> list[MadeSlide]:
    """Write a messy folder of small synthetic slides. None of it is real tissue.

    Slides lie in folders of several sites, as SVS, TIFF and OME-TIFF of several scales; some carry pen marks or a black
    border. From four slides on, two in different folders have the same name. Beside them lie what collects in such
    folders: notes, hidden files, a link that leads back to the top. `made.csv` lists the slides.

    Args:
        folder: The folder to make; it must not exist, or be empty.
        count: Number of slides, at least 1.
        broken: Share of the slides that have a fault, 0 to 1, rounded up; `FAULTS` take turns.
        seed: Seed of everything.
        shortest: Shortest side of a slide in px.
        longest: Longest side in px.
        advance: Called after each slide.

    Returns:
        What was made, in the order of the files' names.

    Raises:
        EosinError: If an argument is out of its range, or the folder holds something already.
    """
    check_whole("count", count, 1, 10**6)
    check_whole("shortest", shortest, 256, 10**6)
    check_whole("longest", longest, shortest, 10**6)
    if not (math.isfinite(broken) and 0 <= broken <= 1):
        raise EosinError(f"broken: {broken!r} is not a share from 0 to 1")
    rng = np.random.Generator(np.random.Philox(key=mix(0x51DE5, seed)))
    faults = [""] * count
    for turn, place in enumerate(rng.permutation(count)[: math.ceil(round(broken * count, 6))]):
        faults[place] = FAULTS[turn % len(FAULTS)]
    made = []
    folder = Path(folder)
    with atomic_directory(folder) as top:
        for number, fault in enumerate(faults):
            made.append(_write_one(top, number, fault, seed, (shortest, longest)))
            advance()
        made.sort(key=lambda slide: slide.file)
        _clutter(top)
        with (top / "made.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(MadeSlide)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(slide) for slide in made)
    return made


def _write_one(top: Path, number: int, fault: str, seed: int, lengths: tuple[int, int]) -> MadeSlide:
    rng = np.random.Generator(np.random.Philox(key=mix(0x51DE6, seed, number)))
    kinds: tuple[Kind, ...] = ("svs", "svs", "tiff", "ome-tiff")
    kind = kinds[int(rng.integers(len(kinds)))]
    width, height = (round(math.exp(rng.uniform(*np.log(lengths)))) for _ in range(2))
    scale = _SCALES[int(rng.integers(len(_SCALES)))]
    pen = [list(INKS)[int(rng.integers(len(INKS)))]] if rng.random() < 0.15 else []
    border = int(rng.integers(20, 200)) if rng.random() < 0.05 else 0
    share = float(rng.uniform(0.2, 0.6))
    if fault == "smaller than a tile":
        width, height, pen, border = 150, 110, [], 0
    if fault in ("zero bytes", "not an image"):
        kind = "svs"
    if number in (0, _TWIN):
        kind = "svs"
    # Two slides a patient; one bears the name of the first, in another site's folder.
    patient, block = (0, 1) if number == _TWIN else (number // 2, number % 2 + 1)
    name = f"P{patient:04d}-{block}{_SUFFIX[kind]}"
    path = top / _SITES[number // 2 % len(_SITES)] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    mpp = None if fault == "no mpp" else scale
    if fault == "zero bytes":
        path.touch()
    elif fault == "not an image":
        path.write_text(f"Slide moved to the archive. ({NOTICE})\n", encoding="utf-8")
    else:
        levels = (1,) if min(width, height) < 256 else (1, 4, 16)
        drawn = 0.0 if fault == "no tissue" else share
        write_slide(
            path,
            width=width,
            height=height,
            mpp=mpp,
            levels=levels,
            seed=mix(seed, number) >> 1,
            kind=kind,
            tissue=drawn,
            pen=pen,
            border=border,
            cell=192,
        )
        if fault == "truncated":
            with path.open("rb+") as file:
                file.truncate(path.stat().st_size * 55 // 100)
    return MadeSlide(path.relative_to(top).as_posix(), kind, width, height, mpp, fault)


def _clutter(top: Path) -> None:
    """What is in such folders beside slides."""
    (top / "README.txt").write_text(
        f"Synthetic slides: {NOTICE}.\n\nDrawn by eosin.synthetic from random numbers, for tests and demonstrations of "
        "software. made.csv lists the slides and what is wrong with some of them.\n",
        encoding="utf-8",
    )
    (top / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    first = top / _SITES[0]
    (first / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (first / "._P0000-1.svs").write_bytes(b"\0\5\x16\7")
    (first / "scanner notes.txt").write_text("Rescan P0003.\n", encoding="utf-8")
    (first / "all sites").symlink_to("..", target_is_directory=True)
