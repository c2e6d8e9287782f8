"""Lizard: colon, 238 images of five sources, nuclei of six types (Graham et al., arXiv 2108.11195)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.datasets.reading import (
    as_labels,
    contents,
    image_shape,
    listed,
    mat_values,
    picture,
    whole_ids,
    whole_types,
)
from eosin.nuclei.datasets.registry import (
    NUCLEI_SETS,
    About,
    Found,
    NucleiScheme,
    PublicOptions,
    assemble,
    folder_of,
)
from eosin.nuclei.datasets.sample import NucleiSample, NucleiSet, Split, TypesOf, make_sample
from eosin.nuclei.labels import Labels

__all__ = ["LIZARD", "LizardOptions"]

LIZARD = About(
    name="lizard",
    title="Lizard",
    task="colon, nuclei of six types",
    classes=("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective"),
    images=238,
    mpp=0.5,
    licence="CC BY-NC-SA 4.0",
    use="non-commercial",
    home="https://warwick.ac.uk/fac/cross_fac/tia/data/lizard",
    layout=("Lizard_Images1/*.png", "Lizard_Images2/*.png", "Lizard_Labels/{info.csv,Labels/*.mat}"),
    reference="Graham et al., Lizard, ICCV Workshops 2021",
    flaws=(
        "made semi-automatically: most labels were refined, not drawn",
        "the part from TCGA is not published",
        "patients are not published",
        "16 images are of CoNSeP and 28 of PanNuke: do not train on one and test on the other",
    ),
)

_SPLITS: dict[str, tuple[int, int, int]] = {"1": (1, 2, 3), "2": (2, 3, 1), "3": (3, 1, 2)}
_COLUMNS = ("Filename", "Source", "Split")


class LizardOptions(PublicOptions):
    """What may follow the `?` of ``lizard:DIR``."""

    split: Literal["1", "2", "3"] = "1"
    """1: train on fold 1, validate on 2, test on 3; 2 and 3 move on by one, so that each fold is tested once."""
    classes: Literal["6", "none"] = "6"
    """none leaves types out."""


def _open(source: str, options: LizardOptions, spec: str) -> NucleiSet:
    root = folder_of(LIZARD, source, spec)
    labels = _folder(root, "Lizard_Labels")
    rows = _table(labels / "info.csv")
    images: dict[str, Path] = {}
    for number in (1, 2):
        images |= listed(_folder(root, f"Lizard_Images{number}"), frozenset({".png"}))
    maps = listed(labels / "Labels", frozenset({".mat"}))
    for name in rows:
        if name not in images or name not in maps:
            lacking = "image" if name not in images else "label"
            raise EosinError(f"{labels / 'info.csv'}: '{name}' has no {lacking} file; get the set again")
    digests = contents([path for name in rows for path in (images[name], maps[name])])
    shapes = [image_shape(images[name]) for name in rows]
    typed = options.classes == "6"
    found = [
        Found(
            name,
            f"fold{fold}",
            partial(_load, images[name], maps[name], typed),
            shapes[row],
            digests[2 * row],
            digests[2 * row + 1],
            mpp=LIZARD.mpp,
            tissue=origin,
            labels=partial(_labels, maps[name], typed, shapes[row]),
        )
        for row, (name, (origin, fold)) in enumerate(rows.items())
    ]
    if len(found) != LIZARD.images and options.check == "strict":
        raise EosinError(f"{root}: {len(found)} of {LIZARD.images} images; to use what is there, write ?check=loose")
    folds = _SPLITS[options.split]
    names: tuple[Split, ...] = ("train", "val", "test")
    return assemble(
        LIZARD,
        spec,
        found,
        {f"fold{fold}": side for fold, side in zip(folds, names, strict=True)},
        options,
        classes=LIZARD.classes if typed else (),
        split_source="published folds: train {}, val {}, test {}".format(*folds),
        notes=()
        if len(found) == LIZARD.images
        else (f"not the published set: {len(found)} of {LIZARD.images} images",),
        name=f"lizard:{options.split}" + ("" if len(found) == LIZARD.images else " (subset)"),
    )


def _folder(root: Path, name: str) -> Path:
    """Find a folder of the set, also where its archive was unpacked into a folder of its own."""
    for place in (root / name, root / name.lower() / name, root / name / name):
        if place.is_dir() and not (place / name).is_dir():
            return place
    raise EosinError(f"{root / name}: no such folder; Lizard has {', '.join(LIZARD.layout)}")


def _table(path: Path) -> dict[str, tuple[str, str]]:
    """Read info.csv: name of the image -> (where it is from, number of the fold)."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            lacking = [column for column in _COLUMNS if column not in (lines.fieldnames or ())]
            if lacking:
                raise EosinError(f"{path}: has no column '{lacking[0]}'; get the file again")
            return dict(_rows(path, lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EosinError(f"{path}: cannot be read ({error}); get the file again") from None


def _rows(path: Path, lines: csv.DictReader[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    for line in lines:
        name, source, fold = (str(line[column] or "").strip() for column in _COLUMNS)
        if fold not in ("1", "2", "3"):
            raise EosinError(
                f"{path}: line {lines.line_num}: split '{fold}' of '{name}' is none of 1, 2, 3; correct it"
            )
        yield name.removesuffix(".png"), (source, fold)


def _load(image: Path, label: Path, typed: bool) -> NucleiSample:
    pixels = picture(image)
    return make_sample(pixels, *_labels(label, typed, (pixels.shape[1], pixels.shape[2])))


def _labels(label: Path, typed: bool, shape: tuple[int, int]) -> tuple[Labels, TypesOf | None]:
    values = mat_values(label, ("inst_map", "id", "class") if typed else ("inst_map",))
    labels = as_labels(values["inst_map"], str(label), shape, whole_floats=True)

    def types(instances: Labels, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        listed_ids = whole_ids(np.asarray(values["id"]).ravel(), "id", label)
        kinds = whole_types(np.asarray(values["class"]).ravel(), "class", label)
        if len(listed_ids) != len(kinds):
            raise EosinError(f"{label}: {len(listed_ids)} ids but {len(kinds)} classes; get the file again")
        lacking = np.setdiff1d(ids, listed_ids)
        if len(lacking):
            raise EosinError(f"{label}: nucleus {lacking[0]} has no class ({len(lacking)} such); get the file again")
        order = np.argsort(listed_ids)
        found = kinds[order[np.searchsorted(listed_ids, ids, sorter=order)]]
        wrong = np.flatnonzero((found < 1) | (found > len(LIZARD.classes)))
        if len(wrong):
            raise EosinError(
                f"{label}: nucleus {ids[wrong[0]]} is of class {found[wrong[0]]}, not of 1 to 6; correct it"
            )
        return found

    return labels, types if typed else None


NUCLEI_SETS.register("lizard")(NucleiScheme(LIZARD, LizardOptions, _open, {}))
