"""A labelled folder of synthetic tiles, with slides that stay on one side of the train, val, test split."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eosin.core.errors import EosinError
from eosin.core.files import atomic_directory
from eosin.synthetic.frame import mix
from eosin.synthetic.tiles import TISSUES, check_mpp, check_whole, render_tile

NOTICE = "synthetic, not real tissue"

_README = f"""Synthetic H&E tiles: {NOTICE}.

Drawn by eosin.synthetic from random numbers. No patient, no slide, no scanner was involved; "patient" and "slide" are
the numbers of made-up stains. For tests and demonstrations of software; a score on these tiles says nothing about
real pathology.

index.csv: file, label, patient, slide, split, mpp (µm per pixel). Slides do not cross splits.
"""


def _split_slides(slides: int, splits: Mapping[str, float], seed: int) -> list[str]:
    """The split of each slide: shares rounded so that all slides are used and no wanted split is empty."""
    names = list(splits)
    shares = np.array([splits[name] for name in names], float)
    if not names or not np.isfinite(shares).all() or (shares <= 0).any() or not math.isclose(shares.sum(), 1.0):
        raise EosinError(f"splits: {dict(splits)!r} must be shares above 0 that sum to 1")
    if slides < len(names):
        raise EosinError(f"slides: {slides} slides cannot fill {len(names)} splits; give at least {len(names)}")
    counts = np.maximum(1, np.floor(shares * slides).astype(int))
    while counts.sum() != slides:
        step = 1 if counts.sum() < slides else -1
        owed = np.where((counts > 1) | (step > 0), step * (shares * slides - counts), -np.inf)
        counts[int(np.argmax(owed))] += step
    ordered = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    order = np.random.Generator(np.random.Philox(key=mix(seed, slides))).permutation(slides)
    return [ordered[place] for place in order]


def write_tiles(
    out: Path,
    *,
    tiles: int,
    slides: int,
    size: int = 128,
    mpp: float = 0.5,
    seed: int = 0,
    splits: Mapping[str, float] | None = None,
) -> Path:
    """Write synthetic tiles as PNG files with an index; the folder appears whole or not at all.

    Tissues take turns on every slide, so their counts differ by one at most, on a slide and overall.

    Args:
        out: Folder to make; it must not exist, or be empty.
        tiles: How many tiles in all.
        slides: Over how many slides (one made-up patient each) they are spread.
        size: Side in pixels.
        mpp: µm per pixel.
        seed: Seed of the collection.
        splits: Share of the slides each split gets, summing to 1; 0.6 train, 0.2 val, 0.2 test by default.

    Returns:
        The path of `index.csv`, with the columns file, label, patient, slide, split, mpp.

    Raises:
        EosinError: An argument is out of its range, or `out` holds something already.
    """
    check_whole("tiles", tiles, 1, 10**8)
    check_whole("slides", slides, 1, 10**6)
    check_whole("size", size, 16, 4096)
    check_whole("seed", seed, 0, 2**63 - 1)
    check_mpp(mpp)
    split_of = _split_slides(slides, {"train": 0.6, "val": 0.2, "test": 0.2} if splits is None else splits, seed)
    information = PngInfo()
    information.add_text("Description", f"eosin.synthetic: {NOTICE}")
    out = Path(out)
    with atomic_directory(out) as folder:
        for tissue in TISSUES:
            (folder / "images" / tissue).mkdir(parents=True)
        (folder / "README.txt").write_text(_README, encoding="utf-8")
        with open(folder / "index.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "label", "patient", "slide", "split", "mpp"])
            for number in range(tiles):
                index, slide = divmod(number // len(TISSUES), slides)
                tissue = TISSUES[number % len(TISSUES)]
                name = f"images/{tissue}/{tissue}-s{slide:03d}-{index:05d}.png"
                tile = render_tile(tissue, size=size, mpp=mpp, seed=seed, slide=slide, index=index)
                picture = Image.fromarray(np.ascontiguousarray(tile.image.transpose(1, 2, 0)))
                picture.save(folder / name, pnginfo=information, compress_level=4)
                case = f"synthetic-{slide:03d}"
                writer.writerow([name, tissue, case, case, split_of[slide], f"{mpp:g}"])
    return out / "index.csv"
