"""BreakHis: breast tumours of four types at 40X, by patient (Spanhol et al., 2016), as eva and thunder use it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np

from eosin.tasks.data_sets import DataSet, RemoteFile
from eosin.tasks.public import Assigned, Found, PublicOptions, count_problems, file_tiles, image_names, register

__all__ = ["BREAKHIS", "BREAKHIS_PATIENTS", "BreakhisOptions"]

_FOLDERS = {
    "ductal_carcinoma": ("malignant", "DC"),
    "fibroadenoma": ("benign", "F"),
    "mucinous_carcinoma": ("malignant", "MC"),
    "tubular_adenoma": ("benign", "TA"),
}

BREAKHIS_PATIENTS: dict[str, dict[str, int]] = {
    "ductal_carcinoma": {
        **{"10926": 11, "11031": 14, "11520": 25, "11951": 27, "12312": 32, "13412": 32, "13993": 37, "14015": 18},
        **{"14926": 20, "14946": 31, "15572": 23, "15696": 23, "15792": 14, "16188": 24, "16336": 13, "16448": 11},
        **{"16601": 12, "16716": 38, "16875": 14, "17614": 39, "17901": 26, "17915": 26, "18650": 29, "20629": 36},
        **{"20636": 25, "2523": 10, "2773": 30, "2980": 20, "2985": 20, "3909": 26, "4364": 1, "4372": 21},
        **{"5287": 23, "5694": 22, "5695": 23, "6241": 32, "8168": 10, "9461": 26},
    },
    "fibroadenoma": {
        **{"14134": 36, "14134E": 29, "21998CD": 37, "21998EF": 31, "23060AB": 23, "23060CD": 14, "23222AB": 17},
        **{"25197": 22, "29960AB": 18, "9133": 26},
    },
    "mucinous_carcinoma": {
        **{"10147": 15, "12773": 26, "13413": 29, "13418DE": 15, "16456": 46, "18842": 15, "18842D": 16, "19979": 26},
        **{"19979C": 17},
    },
    "tubular_adenoma": {
        **{"13200": 15, "15275": 12, "16184": 39, "16184CD": 35, "19854C": 16, "21978AB": 16, "3411F": 16},
    },
}
"""Class -> patient -> images at 40X."""

# Patients on which eva validates (kaiko-ai/eva, breakhis.py) and thunder tests, and those on which thunder validates
# (MICS-Lab/thunder, break_his.py).
_TEST = frozenset(
    "18842D 19979 15275 15792 16875 3909 5287 16716 2773 5695 16184CD 23060CD 21998CD 21998EF".split()  # noqa: SIM905
)
_VAL = frozenset("23222AB 13418DE 11520 19854C 10926 12312 18842 13412 13200 29960AB".split())  # noqa: SIM905

_NAME = re.compile(r"SOB_[BM]_([A-Z]+)-(\d\d)-([0-9A-Z]+)-(\d+)-(\d+)\.png")

BREAKHIS = DataSet(
    name="breakhis",
    title="BreakHis (40X, 4 types)",
    task="breast tumours: four types of at least seven patients",
    classes={
        "ductal_carcinoma": "ductal carcinoma",
        "fibroadenoma": "fibroadenoma",
        "mucinous_carcinoma": "mucinous carcinoma",
        "tubular_adenoma": "tubular adenoma",
    },
    counts={"40X": {label: sum(patients.values()) for label, patients in BREAKHIS_PATIENTS.items()}},
    splits={"three-way": (936, 196, 339), "eva": (1132, 339, 339)},
    pins={"three-way": "5568df631e2a721d", "eva": "ee0d0ecc3e111230"},
    pinned_by="patient",
    image_size=(700, 460),
    mpp=0.25,
    gigabytes=4.3,
    licence="CC BY 4.0",
    licence_url="https://creativecommons.org/licenses/by/4.0/",
    use="any use that names the authors (licence as eva states it)",
    home="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
    how="eosin data get breakhis --root DIR",
    layout=(
        "BreaKHis_v1/histology_slides/breast/benign/SOB/fibroadenoma/SOB_B_F_14-9133/40X/SOB_B_F-14-9133-40-001.png",
        "BreaKHis_v1/histology_slides/breast/{benign,malignant}/SOB/<type>/<patient>/40X/*.png",
    ),
    files=(
        RemoteFile(
            name="BreaKHis_v1.tar.gz",
            url="http://www.inf.ufpr.br/vri/databases/BreaKHis_v1.tar.gz",
            becomes="BreaKHis_v1",
            becomes_bytes=4_400_000_000,
        ),
    ),
    reference="Spanhol et al., A Dataset for Breast Cancer Histopathological Image Classification, "
    "IEEE Transactions on Biomedical Engineering 63(7), 2016",
    flaws=(
        "ids such as 16184 and 16184CD share a case number and may be one patient; both published splits have 16184, "
        "18842, 19979 and 23060 on two sides",
        "0.25 µm/px is what eva states; 40X is the magnification of the whole microscope, so the true scale is coarser",
        "no checksum of the archive is published, and it is served without TLS",
    ),
)


class BreakhisOptions(PublicOptions):
    """Options of ``breakhis:DIR``."""

    split: Literal["three-way", "eva"] = "three-way"
    """three-way: thunder's 936/196/339; eva: 1132/339, where settings are chosen on the images that are reported."""


def _read(about: DataSet, root: Path, options: BreakhisOptions) -> Found:
    places = [
        root / "BreaKHis_v1" / "histology_slides" / "breast",
        root / "histology_slides" / "breast",
        root / "breast",
    ]
    base = next((place for place in [*places, root] if (place / "benign").is_dir()), places[0])
    names: list[str] = []
    problems: list[str] = []
    got: Counter[str] = Counter()
    for label, (group, code) in _FOLDERS.items():
        folder = base / group / "SOB" / label
        if not folder.is_dir():
            problems.append(f"{folder}: missing class folder; unpack the archive again")
            continue
        # Some copies have a patient's folder inside another's.
        for place in sorted(folder.glob("**/40X")):
            for name in image_names(place):
                match = _NAME.fullmatch(name)
                if match is None or match[1] != code or match[4] != "40":
                    problems.append(f"{place / name}: not a 40X image of type {code} by its name; move it away")
                    continue
                names.append(f"{place.relative_to(base).as_posix()}/{name}")
                got[label] += 1
    problems += _doubles(base, names)
    where = {label: base / group / "SOB" / label for label, (group, _) in _FOLDERS.items()}
    present = {label: count for label, count in about.counts["40X"].items() if where[label].is_dir()}
    problems += count_problems(where, present, got, "unpack the archive again")
    problems += _patient_problems(about, base, names)
    labels = [name.split("/")[2] for name in names]
    tiles = file_tiles(about, base, names, labels, [_patient(name) for name in names])
    return Found(tiles, np.array(["40X"] * len(names), dtype=object), tuple(problems))


def _patient(name: str) -> str:
    match = _NAME.fullmatch(name.rpartition("/")[2])
    assert match is not None
    return match[3]


def _doubles(base: Path, names: list[str]) -> list[str]:
    """Find images that lie there twice."""
    count = Counter(name.rpartition("/")[2] for name in names)
    return [
        f"{base / name}: lies there {count[file]} times; keep one"
        for name in names
        if count[file := name.rpartition("/")[2]] > 1 and name == next(n for n in names if n.endswith(f"/{file}"))
    ]


def _patient_problems(about: DataSet, base: Path, names: list[str]) -> list[str]:
    """Compare the images of each patient with the published counts, where the whole set is asked for."""
    if about.counts["40X"] != BREAKHIS.counts["40X"]:
        return []
    got = Counter((name.split("/")[2], _patient(name)) for name in names)
    wanted = {(label, patient): n for label, of in BREAKHIS_PATIENTS.items() for patient, n in of.items()}
    wrong = [key for key in sorted(wanted.keys() | got.keys()) if got[key] != wanted.get(key, 0)]
    return [
        f"{base}: {got[label, patient]} images of patient {patient} ({label}), not the published "
        f"{wanted.get((label, patient), 0)}; unpack the archive again"
        for label, patient in wrong
    ]


def _assign(about: DataSet, found: Found, options: BreakhisOptions) -> Assigned:
    assert found.tiles.patient is not None
    sides = {patient: _side(patient, options.split) for patient in set(found.tiles.patient.tolist())}
    split = np.array([sides[patient] for patient in found.tiles.patient], dtype=object)
    shared = (
        "case numbers 16184, 18842, 19979 and 23060 are on two sides of this split under different suffixes, and may "
        "be one patient each"
    )
    if options.split == "eva":
        return Assigned(
            split,
            "eva",
            "published: eva's 1132/339 by patient",
            validate_on_test=True,
            notes=("settings are chosen on the images that are reported, as eva does: scores are optimistic", shared),
            unit=found.tiles.patient,
        )
    source = "published: thunder's 936/196/339 by patient; the test is eva's val"
    return Assigned(split, "three-way", source, notes=(shared,), unit=found.tiles.patient)


def _side(patient: str, split: str) -> str:
    if patient in _TEST:
        return "test"
    return "val" if split == "three-way" and patient in _VAL else "train"


register(BREAKHIS, BreakhisOptions, _read, _assign)
