"""NCT-CRC-HE-100K and CRC-VAL-HE-7K: colorectal tissue in nine classes (Kather et al., 2019)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from eosin.tasks.data_sets import DataSet, RemoteFile
from eosin.tasks.public import (
    Assigned,
    Found,
    PublicOptions,
    count_problems,
    file_tiles,
    hold_out,
    image_names,
    register,
)

__all__ = ["CRC", "CrcOptions"]

_CLASSES = {
    "ADI": "adipose",
    "BACK": "background",
    "DEB": "debris",
    "LYM": "lymphocytes",
    "MUC": "mucus",
    "MUS": "smooth muscle",
    "NORM": "normal colon mucosa",
    "STR": "cancer-associated stroma",
    "TUM": "adenocarcinoma epithelium",
}
_TRAIN = (10407, 10566, 11512, 11557, 8896, 13536, 8763, 10446, 14317)
_TEST = (1338, 847, 339, 634, 1035, 592, 741, 421, 1233)
_SHARE = 0.2

CRC = DataSet(
    name="crc",
    title="NCT-CRC-HE",
    task="colorectum: nine kinds of tissue",
    classes=_CLASSES,
    counts={
        "NCT-CRC-HE-100K": dict(zip(_CLASSES, _TRAIN, strict=True)),
        "CRC-VAL-HE-7K": dict(zip(_CLASSES, _TEST, strict=True)),
    },
    splits={"three-way": (80_002, 19_998, 7_180)},
    pinned_by="counts",
    image_size=(224, 224),
    mpp=0.5,
    gigabytes=12.5,
    licence="CC BY 4.0",
    licence_url="https://creativecommons.org/licenses/by/4.0/",
    use="any use that names the authors",
    home="https://zenodo.org/records/1214456",
    how="eosin data get crc --root DIR",
    layout=("NCT-CRC-HE-100K/<CLASS>/<CLASS>-XXXXXXXX.tif", "CRC-VAL-HE-7K/<CLASS>/<CLASS>-XXXXXXXX.tif"),
    files=(
        RemoteFile(
            name="NCT-CRC-HE-100K.zip",
            url="https://zenodo.org/records/1214456/files/NCT-CRC-HE-100K.zip?download=1",
            md5="6fd702d11df6292bc054397ae038a464",
            bytes=11_690_284_003,
            becomes="NCT-CRC-HE-100K",
            becomes_bytes=15_200_000_000,
        ),
        RemoteFile(
            name="CRC-VAL-HE-7K.zip",
            url="https://zenodo.org/records/1214456/files/CRC-VAL-HE-7K.zip?download=1",
            md5="2fd1651b4f94ebd818ebf90ad2b6ce06",
            bytes=800_276_929,
            becomes="CRC-VAL-HE-7K",
            becomes_bytes=1_100_000_000,
        ),
    ),
    reference="Kather et al., Predicting survival from colorectal cancer histology slides using deep learning, "
    "PLOS Medicine 16(1), 2019",
    flaws=(
        "the training images were Macenko-normalised with artefacts, and JPEG artefacts differ by class: mean RGB "
        "alone gives over 50 % accuracy, color histograms over 82 % (Ignatov & Malivenko 2024, arXiv:2409.11546)",
        "no patients are published, so val is cut from train by image and shares patients with it; the test has others",
    ),
)


class CrcOptions(PublicOptions):
    """Options of ``crc:DIR``."""

    train: Literal["normalised", "unnormalised"] = "normalised"
    """Which 100K to train on: NCT-CRC-HE-100K, or NCT-CRC-HE-100K-NONORM as it was scanned."""
    val: float = _SHARE
    """Share of the 100K held out by image to choose settings on."""


def _read(about: DataSet, root: Path, options: CrcOptions) -> Found:
    suffix = "-NONORM" if options.train == "unnormalised" else ""
    names: list[str] = []
    parts: list[str] = []
    problems: list[str] = []
    for part, counts in about.counts.items():
        folder = part + suffix if part.endswith("100K") else part
        if not (root / folder).is_dir():
            problems.append(f"{root / folder}: missing folder; unpack {folder}.zip there")
            continue
        before = len(names)
        problems += _read_part(root, folder, counts, names)
        parts += [part] * (len(names) - before)
    tiles = file_tiles(about, root, names, [name.split("/")[1] for name in names])
    notes = ("patients are not published: intervals are by image, and val shares patients with train",)
    return Found(tiles, np.array([*parts, None], dtype=object)[:-1], tuple(problems), notes)


def _read_part(root: Path, folder: str, counts: dict[str, int], names: list[str]) -> list[str]:
    """Add a part's images to `names` and return what is wrong with it."""
    problems: list[str] = []
    got: Counter[str] = Counter()
    base = root / folder
    for label in counts:
        if not (base / label).is_dir():
            problems.append(f"{base / label}: missing class folder; unpack {folder}.zip again")
            continue
        there = image_names(base / label)
        own = [name for name in there if name.startswith(f"{label}-") and name.endswith(".tif")]
        if len(own) < len(there):
            wrong = next(name for name in there if not (name.startswith(f"{label}-") and name.endswith(".tif")))
            problems.append(
                f"{base / label / wrong}: not an image of class {label}, whose names are {label}-XXXXXXXX.tif; "
                "move it away"
            )
        got[label] = len(own)
        names += [f"{folder}/{label}/{name}" for name in own]
    where = {label: base / label for label in counts if (base / label).is_dir()}
    present = {label: count for label, count in counts.items() if label in where}
    return problems + count_problems(where, present, got, f"unpack {folder}.zip again")


def _assign(about: DataSet, found: Found, options: CrcOptions) -> Assigned:
    train = np.flatnonzero(found.part == "NCT-CRC-HE-100K")
    split = np.full(len(found.part), "test", dtype=object)
    split[train] = "train"
    if len(train):
        names = np.asarray(found.tiles.names)[train]
        labels = np.asarray(found.tiles.label)[train]
        split[train[hold_out(labels, names, options.val, found.tiles.spec)]] = "val"
    pinned = options.val == _SHARE and options.train == "normalised"
    source = f"100K is train, {100 * options.val:g} % of it val by image, stratified; 7K is test"
    return Assigned(split, "three-way" if pinned else None, source)


register(CRC, CrcOptions, _read, _assign)
