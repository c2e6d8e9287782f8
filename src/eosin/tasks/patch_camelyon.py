"""PatchCamelyon: is there tumour in the middle of a patch of a lymph node? (Veeling et al., 2018), from HDF5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from eosin.core.errors import EosinError
from eosin.data.hdf5 import HDF5File, HDF5Images, open_hdf5, read_hdf5
from eosin.data.tiles import Names, Tiles
from eosin.tasks.data_sets import DataSet, RemoteFile
from eosin.tasks.public import Assigned, Found, PublicOptions, Texts, register

__all__ = ["PCAM", "PcamOptions", "pcam_file"]

_CLASSES = ("normal", "tumor")
_SIDES = {"train": "train", "valid": "val", "test": "test"}
_META = ("coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi")
_URL = "https://zenodo.org/records/2546921/files/{}?download=1"

# MD5 of x.h5.gz, y.h5.gz and meta.csv as Zenodo lists them and torchvision checks them (the table on the authors' page
# has valid and test the wrong way round); of x.h5 and y.h5 as eva lists them.
_MD5 = {
    "train": (
        *("1571f514728f59376b705fc836ff4b63", "35c2d7259d906cfc8143347bb8e05be7", "5a3dd671e465cfd74b5b822125e65b0a"),
        *("01844da899645b4d6f84946d417ba453", "0781386bf6c2fb62d58ff18891466aca"),
    ),
    "valid": (
        *("d5b63470df7cfa627aeec8b9dc0c066e", "2b85f58b927af9964a4c15b8f7e8f179", "67589e00a4a37ec317f2d1932c7502ca"),
        *("81cf9680f1724c40673f10dc88e909b1", "94d8aacc249253159ce2a2e78a86e658"),
    ),
    "test": (
        *("d8c2d60d490dbd479f8199bdfa0cf6ec", "60a7035772fbdb7f34eb86d4420cf66a", "3455fd69135b66734e1008f3af684566"),
        *("2614b2e6717d6356be141d9d6dbfcb7e", "11ed647efe9fe457a4eb45df1dba19ba"),
    ),
}

_TOTALS = {"train": 262_144, "valid": 32_768, "test": 32_768}


def pcam_file(part: str, kind: str) -> str:
    """Return the official name of a file: part train, valid or test; kind ``x.h5``, ``y.h5`` or ``meta.csv``."""
    return f"camelyonpatch_level_2_split_{part}_{kind}"


def _remote() -> tuple[RemoteFile, ...]:
    files = []
    for part, (x_gz, y_gz, meta, x, y) in _MD5.items():
        count = _TOTALS[part]
        for kind, packed, plain, size in (("x", x_gz, x, count * 96 * 96 * 3), ("y", y_gz, y, count)):
            name = pcam_file(part, f"{kind}.h5")
            files.append(
                RemoteFile(
                    name=f"{name}.gz",
                    url=_URL.format(f"{name}.gz"),
                    md5=packed,
                    becomes=name,
                    becomes_md5=plain,
                    becomes_bytes=size + 4096,
                )
            )
        name = pcam_file(part, "meta.csv")
        files.append(RemoteFile(name=name, url=_URL.format(name), md5=meta))
    return tuple(files)


PCAM = DataSet(
    name="pcam",
    title="PatchCamelyon",
    task="lymph node: is there tumour in the central 32×32 px",
    classes={"normal": "no tumour in the middle", "tumor": "tumour in the middle"},
    totals=_TOTALS,
    splits={"official": (262_144, 32_768, 32_768)},
    pins={"official": "0bf7b736f538d914"},
    image_size=(96, 96),
    mpp=1.0,
    gigabytes=7.7,
    licence="CC0 1.0",
    licence_url="https://creativecommons.org/publicdomain/zero/1.0/",
    use="any use",
    home="https://zenodo.org/records/2546921",
    how="eosin data get pcam --root DIR",
    layout=(
        "camelyonpatch_level_2_split_train_x.h5   x: uint8 [262144, 96, 96, 3]",
        "camelyonpatch_level_2_split_train_y.h5   y: uint8 [262144, 1, 1, 1]",
        "camelyonpatch_level_2_split_train_meta.csv   (optional) wsi of each patch; so for valid and test",
    ),
    files=_remote(),
    reference="Veeling et al., Rotation Equivariant CNNs for Digital Pathology, MICCAI 2018; CAMELYON16",
    flaws=(
        "tumour outside the central 32×32 px does not count, and encoders see the whole patch",
        "patches of a slide resemble each other: without meta.csv intervals are by image and too narrow",
        "the checksums on the authors' page have valid and test the wrong way round",
    ),
)


class PcamOptions(PublicOptions):
    """Options of ``pcam:DIR``."""


def _read(about: DataSet, root: Path, options: PcamOptions) -> Found:
    files: list[HDF5File] = []
    labels: list[Texts] = []
    slides: list[list[str] | None] = []
    names: list[str] = []
    parts: list[str] = []
    problems: list[str] = []
    for part, count in about.parts.items():
        file = open_hdf5(root / pcam_file(part, "x.h5"), "x", about.image_size)
        label = _labels(root / pcam_file(part, "y.h5"), file)
        if file.count != count:
            problems.append(f"{file.path}: {file.count:,} images, not the published {count:,}; get the file again")
        files.append(file)
        labels.append(label)
        slides.append(_slides(root / pcam_file(part, "meta.csv"), label))
        names += [f"{part}/{number:06d}" for number in range(file.count)]
        parts += [part] * file.count
    known = [column for column in slides if column is not None]
    slide = None
    notes = ["no meta.csv of every part: slides are unknown, and intervals are by image"]
    if len(known) == len(slides):
        slide = np.array([name for column in known for name in column], dtype=object)
        notes = []
    tiles = Tiles(
        spec=f"{about.name}:{root}",
        names=Names(names),
        source=HDF5Images(files),
        label=np.concatenate(labels),
        slide=slide,
    )
    return Found(tiles, np.array(parts, dtype=object), tuple(problems), tuple(notes))


def _labels(path: Path, images: HDF5File) -> Texts:
    """Read the class of each image.

    Raises:
        EosinError: If there is not one label of 0 or 1 an image.
    """
    values = read_hdf5(path, "y")
    if values.shape != (images.count, 1, 1, 1):
        raise EosinError(
            f"{path}: 'y' is {list(values.shape)}, not [{images.count}, 1, 1, 1], one label an image of "
            f"{images.path.name}; get both again"
        )
    codes = values.reshape(-1)
    wrong = np.flatnonzero((codes != 0) & (codes != 1))
    if len(wrong):
        raise EosinError(f"{path}: label {codes[wrong[0]]} of image {wrong[0]} is neither 0 nor 1; get the file again")
    return np.array(_CLASSES, dtype=object)[codes.astype(np.int64)]


def _slides(path: Path, labels: Texts) -> list[str] | None:
    """Read the slide of each image; None without the file.

    Raises:
        EosinError: If it is damaged, or is not of these images: its own labels are others.
    """
    if not path.is_file():
        return None
    try:
        options = csv.ConvertOptions(column_types=dict.fromkeys(_META, pa.string()), strings_can_be_null=False)
        rows = csv.read_csv(path, convert_options=options)
    except (OSError, pa.ArrowInvalid) as error:
        raise EosinError(f"{path}: cannot be read ({str(error).splitlines()[0]}); get it again or remove it") from None
    missing = [column for column in _META if column not in rows.column_names]
    if missing or len(rows) != len(labels):
        what = f"no column '{missing[0]}'" if missing else f"{len(rows):,} rows for {len(labels):,} images"
        raise EosinError(f"{path}: {what}; get it again or remove it")
    tumour = pc.equal(rows["center_tumor_patch"], "True").to_numpy()
    differ = np.flatnonzero(tumour != (labels == "tumor"))
    if len(differ):
        raise EosinError(
            f"{path}: center_tumor_patch of row {differ[0]} is not the label in y.h5 ({len(differ):,} such rows), so "
            "the file is of other images; get it again or remove it"
        )
    wsi: list[str] = rows["wsi"].to_pylist()
    if "" in wsi:
        raise EosinError(f"{path}: row {wsi.index('')} has no wsi; get it again or remove it")
    return wsi


def _assign(about: DataSet, found: Found, options: PcamOptions) -> Assigned:
    split = np.array([_SIDES[part] for part in found.part], dtype=object)
    return Assigned(split, "official", "published train, valid and test")


register(PCAM, PcamOptions, _read, _assign)
