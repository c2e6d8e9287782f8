"""MoNuSeg: seven organs of TCGA, nuclei outlined in Aperio's XML (Kumar et al., TMI 2017 and 2020)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.datasets.reading import contents, image_shape, listed, picture
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
from eosin.nuclei.datasets.sample import NucleiSample, NucleiSet, make_sample
from eosin.nuclei.labels import Labels

__all__ = ["MONUSEG", "MonusegOptions", "fill_polygons"]

MONUSEG = About(
    name="monuseg",
    title="MoNuSeg",
    task="nuclei of several organs, outlines only",
    counts={"train": 37, "test": 14},
    image_size=(1000, 1000),
    mpp=0.25,
    licence="CC BY-NC-SA 4.0",
    use="non-commercial",
    home="https://monuseg.grand-challenge.org/Data/",
    layout=(
        "MoNuSeg 2018 Training Data/{Tissue Images/*.tif,Annotations/*.xml}",
        "MoNuSegTestData/{*.tif,*.xml}",
    ),
    reference="Kumar et al., IEEE TMI 36(7) 2017 and 39(5) 2020",
    flaws=(
        "the download has 37 training images, the challenge of 2018 had 30 of them; papers differ in which they use",
        "one patient, one image: val is cut from train by patient",
    ),
)

_TRAIN = ("MoNuSeg 2018 Training Data", "MoNuSegTrainingData", "train", "Train", "Training")
_TEST = ("MoNuSegTestData", "MoNuSeg 2018 Test Data", "test", "Test", "Testing")
_IMAGES = frozenset({".tif", ".tiff", ".png"})
_PATIENT = 12  # letters of TCGA-XX-XXXX

# The training images of the challenge, by organ; the download has seven more.
_CHALLENGE: dict[str, tuple[str, ...]] = {
    "breast": ("A7-A13E", "A7-A13F", "AR-A1AK", "AR-A1AS", "E2-A1B5", "E2-A14V"),
    "kidney": ("B0-5711", "HE-7128", "HE-7129", "HE-7130", "B0-5710", "B0-5698"),
    "liver": ("18-5592", "38-6178", "49-4488", "50-5931", "21-5784", "21-5786"),
    "prostate": ("G9-6336", "G9-6348", "G9-6356", "G9-6363", "CH-5767", "G9-6362"),
    "bladder": ("DK-A2I6", "G2-A2EK"),
    "colon": ("AY-A8YK", "NH-A8F7"),
    "stomach": ("KB-A93J", "RD-A8N9"),
}
_ORGANS = {f"TCGA-{patient}": organ for organ, patients in _CHALLENGE.items() for patient in patients}


class MonusegOptions(PublicOptions):
    """What may follow the `?` of ``monuseg:DIR``."""

    train: Literal["37", "30"] = "37"
    """All training images of the download, or those of the challenge."""
    val: Share = 0.2
    """Share of the training images for validation."""


def _open(source: str, options: MonusegOptions, spec: str) -> NucleiSet:
    root = folder_of(MONUSEG, source, spec)
    pairs = [(part, *pair) for part, names in (("train", _TRAIN), ("test", _TEST)) for pair in _pairs(root, names)]
    if options.train == "30":
        pairs = [pair for pair in pairs if pair[0] == "test" or pair[1].name[:_PATIENT] in _ORGANS]
    digests = contents([path for _, image, label in pairs for path in (image, label)])
    shapes = [image_shape(image) for _, image, _ in pairs]
    found = [
        Found(
            image.stem,
            part,
            partial(_load, image, label),
            shapes[row],
            digests[2 * row],
            digests[2 * row + 1],
            group=image.stem[:_PATIENT] if image.stem.startswith("TCGA-") else "",
            mpp=MONUSEG.mpp,
            tissue=_ORGANS.get(image.stem[:_PATIENT], ""),
            labels=partial(_labels, label, shapes[row]),
        )
        for row, (part, image, label) in enumerate(pairs)
    ]
    about = MONUSEG.model_copy(update={"counts": {"train": int(options.train), "test": MONUSEG.counts["test"]}})
    return assemble(
        about,
        spec,
        found,
        {"train": "train", "test": "test"},
        options,
        root=root,
        split_source=f"published train ({options.train}) and test; {100 * options.val:g} % of train is val, by patient",
        val=options.val,
    )


def _pairs(root: Path, names: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    """Find the folder of a part, whether unpacked once or into a folder of its own, and pair its files."""
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise EosinError(f"{root}: has no '{names[0]}'; MoNuSeg has {' and '.join(MONUSEG.layout)}")
    if (folder / folder.name).is_dir():
        folder = folder / folder.name
    images, labels = (
        folder / name if (folder / name).is_dir() else folder for name in ("Tissue Images", "Annotations")
    )
    pictures, outlines = listed(images, _IMAGES), listed(labels, frozenset({".xml"}))
    for name in sorted(pictures.keys() ^ outlines.keys()):
        here, what = (pictures[name], "XML file") if name in pictures else (outlines[name], "image")
        raise EosinError(f"{here}: has no {what} of the same name; get the set again")
    yield from ((path, outlines[name]) for name, path in pictures.items())


def _load(image: Path, label: Path) -> NucleiSample:
    pixels = picture(image)
    return make_sample(pixels, *_labels(label, (pixels.shape[1], pixels.shape[2])))


def _labels(label: Path, shape: tuple[int, int]) -> tuple[Labels, None]:
    return fill_polygons(_polygons(label), shape), None


def _polygons(path: Path) -> list[npt.NDArray[np.float64]]:
    """Read the regions of an Aperio XML file in their order: float64 [k, 2] each, (x, y)."""
    try:
        tree = ElementTree.parse(path)  # noqa: S314 (expat limits what entities expand to)
        regions = [
            [(float(vertex.attrib["X"]), float(vertex.attrib["Y"])) for vertex in region.iter("Vertex")]
            for region in tree.iter("Region")
        ]
    except (OSError, ElementTree.ParseError) as error:
        raise EosinError(f"{path}: cannot be read ({error}); get the file again") from None
    except (KeyError, ValueError) as error:
        raise EosinError(f"{path}: has a vertex without whole coordinates ({error}); get the file again") from None
    if not regions:
        raise EosinError(f"{path}: has no <Region>; is it an annotation of ImageScope?")
    polygons = [np.array(points, dtype=np.float64).reshape(-1, 2) for points in regions]
    for number, points in enumerate(polygons, start=1):
        if not np.isfinite(points).all():
            raise EosinError(f"{path}: region {number} has a vertex that is no finite number; get the file again")
    return polygons


def fill_polygons(polygons: list[npt.NDArray[np.float64]], shape: tuple[int, int]) -> npt.NDArray[np.int32]:
    """Number the pixels whose center lies inside a polygon (even-odd rule); where polygons overlap, the later one wins.

    Pixel (x, y) covers x to x + 1 and y to y + 1, so its center lies at (x + 0.5, y + 0.5). A center on an edge belongs
    to the side on the right of it, so of two polygons that share an edge each center is in one. The challenge's own
    MATLAB script counts centers from 1, which moves its masks half a pixel to the left and up.

    Args:
        polygons: float [k, 2] each, (x, y).
        shape: Height and width.

    Returns:
        int32 [H, W], the number of the polygon, counted from 1. One that holds no pixel's center is not there.
    """
    labels = np.zeros(shape, dtype=np.int32)
    for number, points in enumerate(polygons, start=1):
        if len(points) >= 3:
            _fill(labels, points, number)
    return labels


def _fill(labels: npt.NDArray[np.int32], points: npt.NDArray[np.float64], number: int) -> None:
    """Give the pixels inside a polygon its number: those with an odd number of edges on their right."""
    low = np.clip(np.floor(points.min(axis=0)), 0, labels.shape[::-1]).astype(np.int64)
    high = np.clip(np.ceil(points.max(axis=0)), 0, labels.shape[::-1]).astype(np.int64)
    width, height = high - low
    if width <= 0 or height <= 0:
        return
    center = np.arange(low[1], high[1])[:, None] + 0.5
    start, end = points, np.roll(points, -1, axis=0)
    rows, edges = np.nonzero((start[:, 1] <= center) != (end[:, 1] <= center))
    (x, y), (to_x, to_y) = start[edges].T, end[edges].T
    crossing = x + (center[rows, 0] - y) * (to_x - x) / (to_y - y)
    # An edge is on the right of this many pixels of its row.
    left = np.clip(np.ceil(crossing - 0.5) - low[0], 0, width).astype(np.int64)
    ends = np.bincount(rows * (width + 1) + left, minlength=height * (width + 1)).reshape(height, width + 1)
    odd = (ends[:, :0:-1].cumsum(axis=1)[:, ::-1] & 1).astype(bool)
    labels[low[1] : high[1], low[0] : high[0]][odd] = number


NUCLEI_SETS.register("monuseg")(NucleiScheme(MONUSEG, MonusegOptions, _open, {}))
