"""Small copies of public sets in their official layout: the names, keys and tables are exact, the pixels are drawn.

Counts are scaled by `each` where that is allowed, or whole: then most images are links to a few files.
"""

from __future__ import annotations

import csv
import itertools
import os
import string
from pathlib import Path

import numpy as np
from PIL import Image

from eosin.tasks.bach import bach_names
from eosin.tasks.breakhis import _FOLDERS, BREAKHIS_PATIENTS
from eosin.tasks.crc import CRC
from eosin.tasks.mhist import _HEADER
from eosin.tasks.patch_camelyon import _TOTALS, pcam_file


def pixels(code: int, number: int, size: tuple[int, int]) -> np.ndarray:
    """An image whose color tells its class, uint8 [H, W, 3]."""
    rng = np.random.default_rng([code, number])
    color = 60 + 25 * np.array([code % 3, code // 3 % 3, code // 9 % 3]) * 2
    return np.clip(color + rng.normal(0, 12, (size[1], size[0], 3)), 0, 255).astype(np.uint8)


def picture(path: Path, code: int, number: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(code, number, size)).save(path)


class Pictures:
    """Writes images; after the first few of a class, links to them."""

    def __init__(self, size: tuple[int, int], drawn: int = 4) -> None:
        self.size, self.drawn, self.made = size, drawn, {}

    def write(self, path: Path, code: int) -> None:
        made = self.made.setdefault(code, [])
        if len(made) < self.drawn:
            picture(path, code, len(made), self.size)
            made.append((path, 0))
            self.made[code] = made
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        first = made[0][0]
        os.link(first, path)


def bach(root: Path, *, size=(16, 12), each: int = 100) -> Path:
    pictures = Pictures(size)
    for name in bach_names():
        if int(name[-7:-4]) <= each:
            code = ("Benign", "InSitu", "Invasive", "Normal").index(name.split("/")[0])
            pictures.write(root / "ICIAR2018_BACH_Challenge" / "Photos" / name, code)
    return root


def crc(root: Path, *, size=(16, 16), each: dict[str, int] | None = None, nonorm: bool = False) -> Path:
    """`each`: images of a class by part; the published counts if not given."""
    pictures = Pictures(size)
    letters = itertools.product(string.ascii_uppercase, repeat=8)
    for part, counts in CRC.counts.items():
        folder = f"{part}-NONORM" if nonorm and part.endswith("100K") else part
        for code, (label, count) in enumerate(counts.items()):
            for _ in range(count if each is None else each[part]):
                pictures.write(root / folder / label / f"{label}-{''.join(next(letters))}.tif", code)
    return root


def mhist(root: Path, *, size=(16, 16), counts: dict[str, dict[str, int]] | None = None) -> Path:
    """`counts`: part -> label -> images; the published ones if not given."""
    from eosin.tasks.mhist import MHIST

    pictures = Pictures(size)
    names = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3))
    rows = []
    for part, of_label in (counts or MHIST.counts).items():
        for code, (label, count) in enumerate(of_label.items()):
            for number in range(count):
                name = f"MHIST_{next(names)}.png"
                rows.append((name, label, (4 + number % 4) if label == "SSA" else number % 4, part))
                pictures.write(root / "images" / name, code)
    with open(root / "annotations.csv", "w", newline="") as file:
        csv.writer(file).writerows([_HEADER, *rows])
    return root


def breakhis(root: Path, *, size=(28, 18), most: int = 100) -> Path:
    """`most`: images of a patient at most."""
    pictures = Pictures(size)
    base = root / "BreaKHis_v1" / "histology_slides" / "breast"
    for code, (label, patients) in enumerate(BREAKHIS_PATIENTS.items()):
        group, short = _FOLDERS[label]
        letter = group[0].upper()
        for patient, count in patients.items():
            folder = base / group / "SOB" / label / f"SOB_{letter}_{short}_14-{patient}" / "40X"
            for number in range(1, min(count, most) + 1):
                pictures.write(folder / f"SOB_{letter}_{short}-14-{patient}-40-{number:03d}.png", code)
            # Other magnifications and types lie beside them.
    pictures.write(base / "benign/SOB/adenosis/SOB_B_A_14-22549AB/40X/SOB_B_A-14-22549AB-40-001.png", 5)
    pictures.write(base / "benign/SOB/fibroadenoma/SOB_B_F_14-9133/100X/SOB_B_F-14-9133-100-001.png", 1)
    return root


def pcam(root: Path, *, totals: dict[str, int] | None = None, meta: bool = True, whole: bool = False) -> Path:
    """HDF5 files with the official keys, shapes and types.

    With `whole` the counts are the published ones and the images' chunks are not stored, so the files stay small.
    """
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    start = 0
    for part, count in (_TOTALS if whole else totals or {"train": 48, "valid": 16, "test": 24}).items():
        labels = (np.arange(count) % 2).astype(np.uint8)
        with h5py.File(root / pcam_file(part, "x.h5"), "w") as file:
            images = file.create_dataset("x", (count, 96, 96, 3), "uint8", chunks=(min(32, count), 96, 96, 3))
            if not whole:
                for row in range(count):
                    images[row] = pixels(int(labels[row]) * 13, start + row, (96, 96))
        with h5py.File(root / pcam_file(part, "y.h5"), "w") as file:
            file["y"] = labels.reshape(-1, 1, 1, 1)
        if meta:
            with open(root / pcam_file(part, "meta.csv"), "w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"])
                for row in range(count):
                    tumour = str(bool(labels[row]))
                    rows.writerow([row, 96 * row, 96, tumour, tumour, f"camelyon16_{part}_{row // 8:03d}"])
        start += count
    return root
