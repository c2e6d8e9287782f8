"""One image with its nuclei, and a set of them: what every source of labelled nuclei gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.nuclei.labels import Labels, relabel_with_ids

__all__ = ["SPLITS", "NucleiImage", "NucleiSample", "NucleiSet", "Split", "TypesOf", "fraction", "make_sample"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

TypesOf = Callable[[Labels, npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""From a label map with the ids 1 to N, and the ids that the file has for them, int64 [N], to types, int64 [N]."""


@dataclass(frozen=True, eq=False)
class NucleiSample:
    """The pixels of an image and its nuclei.

    Attributes:
        image: uint8 [3, H, W], RGB, contiguous.
        instances: int32 [H, W], 0 outside nuclei, else 1 to N.
        types: int64 [N + 1], the type of each id, 1 to n; `types[0]` is 0. None in a set without types.
    """

    image: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int32]
    types: npt.NDArray[np.int64] | None

    @property
    def count(self) -> int:
        """Number of nuclei."""
        return int(self.instances.max())


@dataclass(frozen=True)
class NucleiImage:
    """An image of a set, not read yet. It can be sent to other processes.

    Attributes:
        name: Unique in the set.
        split: On which side it is.
        group: Patient or slide; the image's name where neither is known.
        mpp: µm/px; None where not known.
        shape: Height and width in px.
        load: Reads it.
        tissue: Organ or tissue; empty where not known.
        labels: Reads the labels alone, and what gives their types; None where that is not cheap, or nothing can be
            wrong with them.
    """

    name: str
    split: Split
    group: str
    mpp: float | None
    shape: tuple[int, int]
    load: Callable[[], NucleiSample]
    tissue: str = ""
    labels: Callable[[], tuple[Labels, TypesOf | None]] | None = None

    def read(self) -> NucleiSample:
        """Read pixels and nuclei.

        Raises:
            EosinError: If a file cannot be read or is no label map of this image.
        """
        return self.load()

    def look(self) -> bool | None:
        """Check the labels without the pixels; tell whether there are nuclei, None where only `read` would tell.

        Raises:
            EosinError: As `read`, of what is wrong with the labels.
        """
        if self.labels is None:
            return None
        labels, types = self.labels()
        if types is not None:
            _numbered(labels, types)
        return bool(labels.any())


@dataclass(frozen=True)
class NucleiSet:
    """Images with nuclei.

    Attributes:
        name: Shown in results.
        classes: Names of the types 1 to n; empty in a set without types.
        images: All images, sorted by side and name.
        split_source: How the split was made.
        mpp: µm/px of all images; None where it is not known or not the same for all.
        licence: Of the images; empty for a user's own.
        source: The spec that it was opened by.
        notes: What a reader of scores must know.
        fingerprint: Identity of files, classes and split: 16 hexadecimal digits.
        reference: Where the labels come from.
        learning: Identity of what a training sees, of the training and validation sides: what is mended on the test
            side does not change it. That of all where it is empty.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[NucleiImage, ...]
    split_source: str
    mpp: float | None
    licence: str
    source: str
    notes: tuple[str, ...]
    fingerprint: str
    reference: str = ""
    learning: str = ""

    @property
    def learned_from(self) -> str:
        """Identity of what a training sees."""
        return self.learning or self.fingerprint

    def of(self, split: Split) -> tuple[NucleiImage, ...]:
        """Return the images of one side."""
        return tuple(image for image in self.images if image.split == split)


def make_sample(
    image: npt.NDArray[np.uint8],
    labels: Labels,
    types: TypesOf | None = None,
) -> NucleiSample:
    """Bring ids to 1 to N.

    Args:
        image: uint8 [3, H, W].
        labels: Integer [H, W], no id below 0.
        types: Gives the types; None in a set without.
    """
    return NucleiSample(np.ascontiguousarray(image), *_numbered(labels, types))


def _numbered(labels: Labels, types: TypesOf | None) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64] | None]:
    found = relabel_with_ids(labels)
    if types is None:
        return found.instances, None
    return found.instances, np.concatenate([[0], types(found.instances, found.ids)]).astype(np.int64)


def fraction(images: Sequence[NucleiImage], share: float, seed: int) -> tuple[NucleiImage, ...]:
    """Choose a share of images, such that smaller shares lie inside larger ones.

    Args:
        images: Images to train on.
        share: In (0, 1]; at least one image is chosen, and the nearest whole number.
        seed: Which of the possible choices.

    Returns:
        The chosen images, in the order given.

    Raises:
        EosinError: If the share is none, or there are no images.
    """
    if not 0.0 < share <= 1.0:
        raise EosinError(f"fraction {share:g}: give a share above 0 and up to 1")
    if not images:
        raise EosinError("fraction: there are no training images to choose from")
    order = sorted(images, key=lambda image: (stream_seed(seed, "fraction", image.name), image.name))
    count = max(1, int(np.floor(share * len(images) + 0.5)))
    chosen = {image.name for image in order[:count]}
    return tuple(image for image in images if image.name in chosen)


def hold_out(units: Sequence[str], contents: Sequence[bytes], share: float, scope: str) -> npt.NDArray[np.bool_]:
    """Choose whole units to hold out by the content of their images alone: no name, order or seed matters.

    Units are ordered by a hash of their images' digests and taken as long as they do not exceed the share.

    Args:
        units: What may not be divided, of each image: a patient, or a digest of the image itself.
        contents: Digest of each image.
        share: Share of the images to hold out.
        scope: "test" or "val", so that both are chosen independently.

    Returns:
        bool [n]; all False where there is but one unit.
    """
    members: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        members.setdefault(unit, []).append(row)
    held = np.zeros(len(units), dtype=bool)
    if len(members) < 2:
        return held

    def place(rows: list[int]) -> bytes:
        return hashlib.sha256(scope.encode() + b"".join(sorted(contents[row] for row in rows))).digest()

    wanted = max(1, int(np.floor(share * len(units) + 0.5)))
    taken = 0
    for rows in sorted(members.values(), key=place)[: len(members) - 1]:
        if taken and taken + len(rows) > wanted:
            continue
        held[rows] = True
        taken += len(rows)
        if taken >= wanted:
            break
    return held
