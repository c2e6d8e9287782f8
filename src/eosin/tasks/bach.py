"""BACH: 400 photographs of breast tissue in four classes (Aresta et al., 2019), by patient where patients are known."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from eosin.tasks.data_sets import DataSet, RemoteFile
from eosin.tasks.public import Assigned, Found, PublicOptions, file_tiles, image_names, register

__all__ = ["BACH", "BachOptions", "bach_names", "bach_patient"]

_PREFIX = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
_EACH = 100

# Rows of the list of all images sorted by class and name, from the first to before the second, as eva publishes them
# (kaiko-ai/eva, bach.py). eva trains on the rest; thunder (MICS-Lab/thunder, bach.py) tests on the same and cuts a
# validation part from the training images.
_TEST = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))
_VAL = ((15, 25), (110, 120), (200, 210), (305, 315), (380, 390))

# Class prefix, first and last number, patient: the challenge's table of patients, as far as it goes.
_PATIENTS = (
    *(("b", 32, 35, 11), ("b", 36, 38, 12), ("b", 39, 40, 13), ("b", 41, 41, 15), ("b", 42, 44, 16), ("b", 45, 58, 17)),
    *(("b", 59, 59, 18), ("b", 60, 60, 19), ("b", 61, 63, 20), ("b", 64, 69, 21), ("b", 70, 90, 14)),
    *(("is", 40, 53, 23), ("is", 54, 54, 25), ("is", 55, 55, 26), ("is", 56, 56, 22), ("is", 57, 57, 24)),
    *(("is", 58, 69, 14), ("iv", 41, 42, 27), ("iv", 43, 44, 28), ("iv", 45, 45, 29), ("iv", 46, 46, 25)),
    *(("iv", 47, 47, 26), ("iv", 48, 49, 30), ("iv", 50, 53, 31), ("iv", 54, 55, 32), ("iv", 56, 57, 33)),
    *(("iv", 58, 58, 22), ("iv", 59, 60, 19), ("iv", 61, 62, 34), ("iv", 63, 63, 35), ("iv", 64, 64, 36)),
    *(("iv", 65, 66, 37), ("iv", 67, 68, 38), ("iv", 69, 70, 39), ("iv", 71, 73, 14)),
    *(("n", 46, 51, 16), ("n", 52, 55, 17), ("n", 56, 60, 18), ("n", 61, 62, 22), ("n", 63, 63, 20), ("n", 64, 68, 21)),
)

BACH = DataSet(
    name="bach",
    title="BACH",
    task="breast: benign, in situ, invasive, normal",
    classes={
        "Benign": "benign lesion",
        "InSitu": "carcinoma in situ",
        "Invasive": "invasive carcinoma",
        "Normal": "normal tissue",
    },
    counts={"Photos": dict.fromkeys(_PREFIX, _EACH)},
    splits={"three-way": (218, 50, 132), "eva": (268, 132, 132)},
    pins={"three-way": "4f605f5e083580e1", "eva": "f30054f27ce4b28e"},
    image_size=(2048, 1536),
    mpp=0.42,
    gigabytes=10.4,
    licence="CC BY-NC-ND 4.0",
    licence_url="https://creativecommons.org/licenses/by-nc-nd/4.0/",
    use="non-commercial use; no changed copies may be passed on",
    consent=True,
    home="https://zenodo.org/records/3632035",
    how="eosin data get bach --root DIR --accept-licence",
    layout=(
        "ICIAR2018_BACH_Challenge/Photos/Benign/b001.tif … b100.tif",
        "ICIAR2018_BACH_Challenge/Photos/InSitu/is001.tif … is100.tif",
        "ICIAR2018_BACH_Challenge/Photos/Invasive/iv001.tif … iv100.tif",
        "ICIAR2018_BACH_Challenge/Photos/Normal/n001.tif … n100.tif",
    ),
    files=(
        RemoteFile(
            name="ICIAR2018_BACH_Challenge.zip",
            url="https://zenodo.org/records/3632035/files/ICIAR2018_BACH_Challenge.zip?download=1",
            md5="8ae1801334aa943c44627c1eef3631b2",
            becomes="ICIAR2018_BACH_Challenge",
            becomes_bytes=7_600_000_000,
            members="ICIAR2018_BACH_Challenge/Photos/",
        ),
    ),
    reference="Aresta et al., BACH: Grand challenge on breast cancer histology images, Medical Image Analysis 56, 2019",
    flaws=(
        "patients are known for 145 of 400 images; the others may share patients across the split",
        "patient 14 gives 36 of those 145 images",
        "132 test images: an interval of about ±7 points",
    ),
)


class BachOptions(PublicOptions):
    """Options of ``bach:DIR``."""

    split: Literal["three-way", "eva"] = "three-way"
    """three-way: 218/50/132, thunder's; eva: 268/132, where settings are chosen on the images that are reported."""


def bach_names() -> list[str]:
    """Return the official names in their order: class folders sorted, then files."""
    return [f"{label}/{prefix}{number:03d}.tif" for label, prefix in _PREFIX.items() for number in range(1, _EACH + 1)]


def bach_patient(name: str) -> str | None:
    """Return the patient of an image such as ``Benign/b032.tif``, None where the table does not say."""
    stem = name.rpartition("/")[2].removesuffix(".tif")
    letters = stem.rstrip("0123456789")
    for prefix, first, last, patient in _PATIENTS:
        if letters == prefix and first <= int(stem[len(letters) :]) <= last:
            return str(patient)
    return None


def _read(about: DataSet, root: Path, options: BachOptions) -> Found:
    places = [root / "ICIAR2018_BACH_Challenge" / "Photos", root / "Photos", root]
    base = next((place for place in places if any((place / label).is_dir() for label in about.classes)), places[0])
    names: list[str] = []
    problems: list[str] = []
    official = [name for name in bach_names() if int(name[-7:-4]) <= about.counts["Photos"][name.split("/")[0]]]
    for label in about.classes:
        folder = base / label
        wanted = [name.split("/")[1] for name in official if name.startswith(f"{label}/")]
        if not folder.is_dir():
            problems.append(f"{folder}: missing class folder; unpack the archive again")
            continue
        there = set(image_names(folder))
        missing = [name for name in wanted if name not in there]
        if missing:
            problems.append(
                f"{folder}: {len(missing)} of {len(wanted)} images are missing, first {missing[0]}; "
                "unpack the archive again"
            )
        extra = sorted(there - set(wanted))
        if extra:
            problems.append(f"{folder / extra[0]}: not an image of the set; move it away ({len(extra)} such)")
        names += [f"{label}/{name}" for name in wanted if name in there]
    labels = [name.split("/")[0] for name in names]
    patients = [bach_patient(name) or f"image {name}" for name in names]
    known = sum(bach_patient(name) is not None for name in names)
    tiles = file_tiles(about, base, names, labels, patients)
    note = f"patient where known ({known} of {len(names)} images); each other image stands for itself"
    return Found(tiles, np.array(["Photos"] * len(names), dtype=object), tuple(problems), (note,))


def _assign(about: DataSet, found: Found, options: BachOptions) -> Assigned:
    place = {name: row for row, name in enumerate(bach_names())}
    rows = [place[name] for name in found.tiles.names]
    split = np.array([_side(row, options.split) for row in rows], dtype=object)
    if options.split == "eva":
        return Assigned(
            split,
            "eva",
            "published: eva's 268/132 by index, patient-aware",
            validate_on_test=True,
            notes=("settings are chosen on the images that are reported, as eva does: scores are optimistic",),
        )
    return Assigned(split, "three-way", "published: thunder's 218/50/132 by index; the test is eva's val")


def _side(row: int, split: str) -> str:
    if any(first <= row < end for first, end in _TEST):
        return "test"
    return "val" if split == "three-way" and any(first <= row < end for first, end in _VAL) else "train"


def known_patients() -> Counter[str]:
    """Return how many images each known patient has."""
    return Counter(patient for name in bach_names() if (patient := bach_patient(name)) is not None)


register(BACH, BachOptions, _read, _assign)
