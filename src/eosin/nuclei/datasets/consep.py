"""CoNSeP: colorectal adenocarcinoma, 24,319 nuclei of seven types (Graham et al., HoVer-Net, MedIA 2019)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.datasets.reading import (
    TypeRule,
    as_labels,
    contents,
    image_shape,
    listed,
    mat_values,
    picture,
    types_from_map,
    whole_types,
)
from eosin.nuclei.datasets.registry import (
    NUCLEI_SETS,
    About,
    Found,
    NucleiScheme,
    PublicOptions,
    Share,
    assemble,
    folder_of,
)
from eosin.nuclei.datasets.sample import NucleiSample, NucleiSet, TypesOf, make_sample
from eosin.nuclei.labels import Labels

__all__ = ["CONSEP", "ConsepOptions"]

CONSEP = About(
    name="consep",
    title="CoNSeP",
    task="colorectal adenocarcinoma, nuclei of seven types",
    classes=(
        "other",
        "inflammatory",
        "healthy epithelial",
        "malignant epithelial",
        "fibroblast",
        "muscle",
        "endothelial",
    ),
    counts={"train": 27, "test": 14},
    image_size=(1000, 1000),
    mpp=0.25,
    licence="Apache-2.0, as eva's documentation states; no other source was found",
    use="see the licence",
    home="https://warwick.ac.uk/fac/cross_fac/tia/data/hovernet (behind a password)",
    layout=("{Train,Test}/Images/*.png", "{Train,Test}/Labels/*.mat"),
    reference="Graham et al., Hover-Net, Medical Image Analysis 2019",
    flaws=(
        "16 slides, and which image is of which is not published: val is cut from train by image",
        "14 test images: intervals are wide",
    ),
)

_MERGED = ("other", "inflammatory", "epithelial", "spindle-shaped")
_TO_MERGED = np.array([0, 1, 2, 3, 3, 4, 4, 4])
"""Of the seven types, which of the four: 3 and 4 are epithelial, 5 to 7 spindle-shaped."""


class ConsepOptions(PublicOptions):
    """What may follow the `?` of ``consep:DIR``."""

    classes: Literal["4", "7", "none"] | None = None
    """7 types as published, the 4 that papers report, or none; it must be said."""
    types: TypeRule = "checked"
    """majority takes the type map where `inst_type` disagrees with it."""
    val: Share = 0.2
    """Share of the training images for validation."""


def _open(source: str, options: ConsepOptions, spec: str) -> NucleiSet:
    root = folder_of(CONSEP, source, spec)
    if options.classes is None:
        raise EosinError(
            f"{spec}: say which types: ?classes=4 (the papers': other, inflammatory, epithelial = 3 and 4, "
            "spindle-shaped = 5 to 7), ?classes=7 (as published) or ?classes=none (outlines only)"
        )
    paths = [(part, *pair) for part in ("train", "test") for pair in _pairs(root / part.capitalize())]
    digests = contents([path for _, image, label in paths for path in (image, label)])
    shapes = [image_shape(image) for _, image, _ in paths]
    found = [
        Found(
            image.stem,
            part,
            partial(_load, image, label, options.classes, options.types),
            shapes[row],
            digests[2 * row],
            digests[2 * row + 1],
            mpp=CONSEP.mpp,
            labels=partial(_labels, label, options.classes, options.types, shapes[row]),
        )
        for row, (part, image, label) in enumerate(paths)
    ]
    classes = {"none": (), "7": CONSEP.classes, "4": _MERGED}[options.classes]
    return assemble(
        CONSEP,
        spec,
        found,
        {"train": "train", "test": "test"},
        options,
        root=root,
        classes=classes,
        split_source=f"published train and test; {100 * options.val:g} % of train is val, by content of the images",
        val=options.val,
    )


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Return images with their labels.

    Raises:
        EosinError: If the folders are absent, or an image has no labels or the other way round.
    """
    for name in ("Images", "Labels"):
        if not (folder / name).is_dir():
            raise EosinError(f"{folder / name}: no such folder; CoNSeP has {' and '.join(CONSEP.layout)}")
    images, labels = listed(folder / "Images", frozenset({".png"})), listed(folder / "Labels", frozenset({".mat"}))
    if not labels and listed(folder / "Labels", frozenset({".npy"})):
        raise EosinError(
            f"{folder / 'Labels'}: .npy files are of a copy older than 2020-03; get the one with .mat files"
        )
    for name in images.keys() ^ labels.keys():
        here, there = (images[name], "Labels") if name in images else (labels[name], "Images")
        raise EosinError(f"{here}: has no partner in {there}; get the set again")
    return [(path, labels[name]) for name, path in images.items()]


def _load(image: Path, label: Path, classes: str, rule: TypeRule) -> NucleiSample:
    pixels = picture(image)
    return make_sample(pixels, *_labels(label, classes, rule, (pixels.shape[1], pixels.shape[2])))


def _labels(label: Path, classes: str, rule: TypeRule, shape: tuple[int, int]) -> tuple[Labels, TypesOf | None]:
    keys = ("inst_map",) if classes == "none" else ("inst_map", "type_map", "inst_type")
    values = mat_values(label, keys)
    labels = as_labels(values["inst_map"], str(label), shape, whole_floats=True)
    if classes == "none":
        return labels, None

    def types(instances: Labels, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        seven = types_from_map(values["type_map"], f"{label} (type_map)", CONSEP.classes, rule)(instances, ids)
        said = _said(values["inst_type"], ids, label)
        if rule == "checked" and (wrong := np.flatnonzero(said != seven)).size:
            row = wrong[0]
            raise EosinError(
                f"{label}: nucleus {ids[row]} is of type {said[row]} in inst_type and of {seven[row]} in type_map; "
                "to go by type_map, write ?types=majority"
            )
        return _TO_MERGED[seven] if classes == "4" else seven

    return labels, types


def _said(inst_type: npt.NDArray[np.generic], ids: npt.NDArray[np.int64], label: Path) -> npt.NDArray[np.int64]:
    """Return what `inst_type` says of each id; it has one row an id, in increasing order of the ids."""
    said = np.asarray(inst_type).ravel()
    if len(said) != len(ids):
        raise EosinError(f"{label}: inst_type has {len(said)} rows for {len(ids)} nuclei; get the file again")
    return whole_types(said, "inst_type", label)


NUCLEI_SETS.register("consep")(NucleiScheme(CONSEP, ConsepOptions, _open, {"classes": "7"}))
