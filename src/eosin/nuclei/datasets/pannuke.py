"""PanNuke: 19 tissues, 189,744 nuclei of five types, in three folds (Gamper et al., 2019 and arXiv 2003.10778)."""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.datasets.reading import as_labels, npy_array
from eosin.nuclei.datasets.registry import (
    NUCLEI_SETS,
    About,
    Found,
    NucleiScheme,
    PublicOptions,
    assemble,
    folder_of,
)
from eosin.nuclei.datasets.sample import NucleiSample, NucleiSet, Split, make_sample
from eosin.nuclei.labels import Labels, relabel

__all__ = ["PANNUKE", "PannukeOptions"]

PANNUKE = About(
    name="pannuke",
    title="PanNuke",
    task="19 tissues, nuclei of five types",
    classes=("neoplastic", "inflammatory", "connective", "dead", "epithelial"),
    counts={"fold1": 2656, "fold2": 2523, "fold3": 2722},
    image_size=(256, 256),
    mpp=0.25,
    licence="CC BY-NC-SA 4.0",
    use="non-commercial",
    home="https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke",
    layout=("fold{1,2,3}/{images,masks,types}.npy (or as unpacked: Fold 1/{images,masks}/fold1/…)",),
    reference="Gamper et al., PanNuke Dataset Extension, arXiv 2003.10778",
    flaws=(
        "made semi-automatically: labels were checked, not drawn",
        "patients are not published, and folds may share them",
        "nuclei cut by a patch's border may have a few pixels",
    ),
)

_SPLITS: dict[str, tuple[int, int, int]] = {"1": (1, 2, 3), "2": (2, 1, 3), "3": (3, 2, 1)}
"""Folds to train on, validate on and test on, as the authors have it."""

_SAMPLE_BYTES = 1 << 20

Array = npt.NDArray[Any]


class PannukeOptions(PublicOptions):
    """What may follow the `?` of ``pannuke:DIR``."""

    split: Literal["1", "2", "3"] = "1"
    """Which of the three published splits; their scores are averaged."""
    classes: Literal["5", "none"] = "5"
    """none leaves types out."""


def _open(source: str, options: PannukeOptions, spec: str) -> NucleiSet:
    root = folder_of(PANNUKE, source, spec)
    found = [each for fold in (1, 2, 3) for each in _fold(root, fold, options.classes == "5")]
    folds = _SPLITS[options.split]
    names: tuple[Split, ...] = ("train", "val", "test")
    return assemble(
        PANNUKE,
        spec,
        found,
        {f"fold{fold}": side for fold, side in zip(folds, names, strict=True)},
        options,
        root=root,
        classes=PANNUKE.classes if options.classes == "5" else (),
        split_source="published split {}: train fold {}, val fold {}, test fold {}".format(options.split, *folds),
        name=f"pannuke:{options.split}",
    )


def _fold(root: Path, fold: int, typed: bool) -> list[Found]:
    paths = {kind: _file(root, fold, kind) for kind in ("images", "masks", "types")}
    images, masks = (npy_array(paths[kind], mapped=True) for kind in ("images", "masks"))
    tissues = npy_array(paths["types"])
    for path, array, wanted in ((paths["images"], images, 3), (paths["masks"], masks, 6)):
        if array.ndim != 4 or array.shape[3] != wanted:
            raise EosinError(
                f"{path}: an array of shape {array.shape}, not [N, 256, 256, {wanted}]; get the file again"
            )
    if not (images.shape[:3] == masks.shape[:3] and len(tissues) == len(images)):
        raise EosinError(
            f"{paths['masks']}: masks of shape {masks.shape[:3]} and {len(tissues)} types for images of shape "
            f"{images.shape[:3]}; the three files must be of one fold"
        )
    stamp = b"".join(_stamp(path) for path in paths.values())
    return [
        Found(
            f"fold{fold}_{row:05d}",
            f"fold{fold}",
            partial(_load, paths["images"], paths["masks"], row, typed),
            (images.shape[1], images.shape[2]),
            b"",
            stamp,
            mpp=PANNUKE.mpp,
            tissue=str(tissues[row]),
            # No `labels`: the masks are most of the set's gigabytes.
        )
        for row in range(len(images))
    ]


def _file(root: Path, fold: int, kind: str) -> Path:
    inner = f"{'masks' if kind == 'masks' else 'images'}/fold{fold}/{kind}.npy"
    places = (
        f"fold{fold}/{kind}.npy",
        f"Fold {fold}/{inner}",
        f"fold_{fold}/Fold {fold}/{inner}",
        f"fold{fold}/{inner}",
    )
    for place in places:
        if (root / place).is_file():
            return root / place
    raise EosinError(f"{root / places[0]}: no such file; PanNuke has {PANNUKE.layout[0]}")


def _stamp(path: Path) -> bytes:
    """Identify a file of gigabytes by its size, its beginning and its end."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        digest = hashlib.sha256(str(size).encode() + file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(file.read())
    return digest.digest()


@lru_cache(maxsize=8)
def _mapped(path: Path) -> Array:
    return npy_array(path, mapped=True)


def _load(images: Path, masks: Path, row: int, typed: bool) -> NucleiSample:
    pixels = np.asarray(_mapped(images)[row])
    if not (pixels.min() >= 0 and pixels.max() <= 255):  # a NaN is neither
        raise EosinError(f"{images}: image {row} has values outside 0 to 255; get the file again")
    if pixels.dtype.kind == "f" and (pixels != np.floor(pixels)).any():
        raise EosinError(
            f"{images}: image {row} has values that are no whole numbers from 0 to 255; get the file again"
        )
    labels, owner = _joined(np.asarray(_mapped(masks)[row]), f"{masks} (image {row})")

    def types(instances: Labels, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return owner[ids]

    return make_sample(pixels.astype(np.uint8).transpose(2, 0, 1), labels, types if typed else None)


def _joined(masks: Array, name: str) -> tuple[Labels, npt.NDArray[np.int64]]:
    """Join the maps of the five types.

    Ids are counted within a channel: the same number in two of them is two nuclei. Where channels overlap, the later
    one wins. The sixth channel is the background, which follows from the others.

    Returns:
        int32 [H, W], and the type of each of its ids, `owner[id]`.
    """
    labels = np.zeros(masks.shape[:2], dtype=np.int32)
    owner = [np.zeros(1, dtype=np.int64)]
    count = 0
    for channel in range(5):
        plane = masks[:, :, channel]
        if not plane.any():
            continue
        found = relabel(as_labels(plane, f"{name}, channel {channel}", None, whole_floats=True))
        np.copyto(labels, found + np.int32(count), where=found > 0)
        owner.append(np.full(int(found.max()), channel + 1, dtype=np.int64))
        count += int(found.max())
    return labels, np.concatenate(owner)


NUCLEI_SETS.register("pannuke")(NucleiScheme(PANNUKE, PannukeOptions, _open, {}))
