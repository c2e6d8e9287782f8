"""Label maps: which pixel belongs to which nucleus, 0 where to none.

A label map is an integer array [H, W]. Files bring other things under that name: masks, colored pictures, ids that did
not fit into 8 bits. Scored or trained on, they give numbers that look right, so `check_labels` and `refuse_mask` refuse
them by name.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError

__all__ = [
    "Labels",
    "Relabeled",
    "check_labels",
    "instance_types",
    "refuse_mask",
    "relabel",
    "relabel_with_ids",
    "scikit_image",
    "split_parts",
]

Labels = npt.NDArray[Any]
"""Integer [H, W]: ids of nuclei, 0 for the background."""

_TABLE = 1 << 24
"""Largest id for which a table over all ids is made (16 MiB); ids beyond are sorted."""
_PIECES = 3
"""Separate parts from which on a single id is a mask: a border or a fold cuts a nucleus into two."""
_SPECK = 0.1
"""Share of the largest part's area below which a part is a slip of the brush, not another nucleus."""


@dataclass(frozen=True)
class Relabeled:
    """A label map whose ids are 1 to n.

    Attributes:
        instances: int32 [H, W].
        ids: int64 [n], what id the map had for each, in increasing order.
    """

    instances: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int64]


def check_labels(
    labels: npt.ArrayLike, name: str, shape: tuple[int, int] | None = None, *, whole_floats: bool = False
) -> Labels:
    """Make sure that an array is a label map.

    Args:
        labels: What a file held.
        name: What to call it in an error, such as its path.
        shape: Height and width of the image that it belongs to; None where that is not known.
        whole_floats: Whether floats that are whole numbers are taken, for formats that store ids so (CoNSeP's
            `inst_map` is float64).

    Returns:
        Integer [H, W], no id below 0: the array itself, not copied, unless it held whole floats (then int64).

    Raises:
        EosinError: If it is a mask, a colored picture, of floats, has ids below 0 or ids that wrapped or were cut at 8
            bits, is empty, or is of another size than its image.
    """
    array = np.asarray(labels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2:
        raise EosinError(f"{name}: {_wrong_dimensions(array)}")
    if shape is not None and array.shape != tuple(shape):
        raise EosinError(
            f"{name}: the label map is {array.shape[1]}x{array.shape[0]} px and its image {shape[1]}x{shape[0]} px; "
            "bring both to the same size (labels by nearest neighbor)"
        )
    if not array.size:
        raise EosinError(f"{name}: the label map has no pixels")
    if array.dtype == bool:
        raise EosinError(f"{name}: a mask (true or false), not ids of nuclei; number its parts, or give the label map")
    if array.dtype.kind == "f" and whole_floats:
        array = _whole(array, name)
    if array.dtype.kind not in "iu":
        raise EosinError(f"{name}: ids are of type {array.dtype}; save them as whole numbers, uint16 or int32")
    if array.dtype.kind == "i" and array.min() < 0:
        raise EosinError(f"{name}: holds the id {array.min()}; ids are 0 (background) and above")
    if array.dtype.itemsize == 1 and array.max() == np.iinfo(array.dtype).max:
        _refuse_overflow(array, name)
    return array


def _wrong_dimensions(array: Labels) -> str:
    if array.ndim == 3 and array.shape[2] in (3, 4):
        kind = "RGB" if array.shape[2] == 3 else "RGBA"
        return f"an {kind} picture, not a label map; save the ids themselves, as one channel of uint16 or int32"
    return f"an array of shape {array.shape}, not a label map [height, width]"


def _whole(array: Labels, name: str) -> npt.NDArray[np.int64]:
    if not np.isfinite(array).all() or (array != np.floor(array)).any() or np.abs(array).max() > 2**53:
        raise EosinError(f"{name}: holds ids that are no whole numbers")
    return array.astype(np.int64)


def _refuse_overflow(array: Labels, name: str) -> None:
    """Refuse 8-bit maps in which an id stands for several nuclei: the largest id is in use and some id lies apart."""
    top = int(np.iinfo(array.dtype).max)
    values = np.unique(array)
    if len(values) <= 2:
        raise EosinError(f"{name}: a mask of 0 and {top}, not ids of nuclei; number its parts, or give the label map")
    counts = _parts(relabel(array), connectivity=2)
    if (counts > 1).any():
        apart = int(values[values > 0][np.argmax(counts)])
        raise EosinError(
            f"{name}: ids of 8 bits overflowed (id {apart} names {counts.max()} separate nuclei); save as uint16"
        )


def refuse_mask(labels: Labels, name: str) -> None:
    """Refuse a label map in which one id stands for all nuclei, as in a mask of 0 and 1.

    One nucleus may lie in two parts, and have specks around it; three parts of some size under the only id are nuclei.
    A mask of one or two nuclei cannot be told from a label map, and passes. Maps of types and predictions in memory are
    not for this: nuclei share a type.

    Args:
        labels: Integer [H, W], no id below 0.
        name: What to call it in an error.

    Raises:
        EosinError: If it is a mask.
    """
    top = labels.max()
    if not top or ((labels != 0) & (labels != top)).any():
        return
    from scipy import ndimage

    parts, _ = ndimage.label(labels, ndimage.generate_binary_structure(2, 2))
    areas = np.bincount(parts.ravel())[1:]
    pieces = int((areas >= _SPECK * areas.max()).sum())
    if pieces >= _PIECES:
        raise EosinError(
            f"{name}: a mask of 0 and {top} ({pieces:,} separate parts), not ids of nuclei; number its parts, or give "
            "the label map"
        )


def relabel(labels: Labels) -> npt.NDArray[np.int32]:
    """Give nuclei the ids 1 to n, in the order of the ids they had.

    Args:
        labels: Integer [H, W], no id below 0.

    Returns:
        int32 [H, W].
    """
    return relabel_with_ids(labels).instances


def relabel_with_ids(labels: Labels) -> Relabeled:
    """Give nuclei the ids 1 to n, and say which ids they had; see `relabel`."""
    top = int(labels.max()) if labels.size else 0
    if top > _TABLE:
        values, inverse = np.unique(labels, return_inverse=True)
        instances = inverse.reshape(labels.shape).astype(np.int32)
        if values[0] != 0:  # no background
            instances += 1
        return Relabeled(instances, values[values > 0].astype(np.int64))
    used = np.zeros(top + 1, dtype=bool)
    used[labels] = True
    used[0] = False
    ids = np.flatnonzero(used).astype(np.int64)
    if len(ids) == top:
        return Relabeled(labels.astype(np.int32), ids)
    new = np.cumsum(used, dtype=np.int32)
    new[~used] = 0
    return Relabeled(new.take(labels), ids)


def split_parts(labels: Labels) -> npt.NDArray[np.int32]:
    """Give each connected part of a nucleus an id of its own.

    Mirrored borders repeat nuclei, and cutting out a window can part them; one id would then have a center between its
    parts. Parts touch by edges, not by corners.

    Args:
        labels: Integer [H, W], no id below 0.

    Returns:
        int32 [H, W], ids 1 to n: a nucleus's first part keeps its place in the order, further parts come after all.
    """
    label = scikit_image("measure").label
    found = relabel(labels)
    parts = label(found, background=0, connectivity=1)
    count = int(parts.max())
    if count == int(found.max()):
        return found
    # Which nucleus a part is of, and where it begins: the first part of each nucleus keeps the nucleus's number.
    owner = np.zeros(count + 1, dtype=np.int64)
    owner[parts] = found
    first = np.unique(owner[1:], return_index=True)[1] + 1
    numbers = np.zeros(count + 1, dtype=np.int32)
    numbers[first] = owner[first]
    further = np.setdiff1d(np.arange(1, count + 1), first)
    numbers[further] = len(first) + 1 + np.arange(len(further))
    return np.asarray(numbers.take(parts))


def scikit_image(module: str) -> Any:
    """Import a module of scikit-image, which an extra brings.

    Raises:
        EosinError: If it is not installed.
    """
    try:
        return importlib.import_module(f"skimage.{module}")
    except ModuleNotFoundError:
        raise EosinError("nuclei need scikit-image, which is not installed: pip install 'eosin[nuclei]'") from None


def _parts(instances: npt.NDArray[np.int32], connectivity: int) -> npt.NDArray[np.int64]:
    """Count the connected parts of each nucleus: int64 [n]."""
    from scipy import ndimage

    near = ndimage.generate_binary_structure(2, connectivity)
    boxes = ndimage.find_objects(instances)
    counts = [ndimage.label(instances[box] == number, near)[1] for number, box in enumerate(boxes, start=1)]
    return np.array(counts, dtype=np.int64)


def instance_types(
    labels: Labels, type_map: npt.ArrayLike, name: str, *, majority: bool = False
) -> npt.NDArray[np.int64]:
    """Read the type of each nucleus off a map of types.

    Args:
        labels: Integer [H, W].
        type_map: Integer [H, W]: the type of each pixel, 0 for the background.
        name: What to call the type map in an error.
        majority: Whether a nucleus whose pixels disagree takes the type most of them have, rather than being refused;
            background counts as no type, and of equals the lower type is taken.

    Returns:
        int64 [n], in the order of the ids; 0 for nothing but, with `majority`, a nucleus without a typed pixel.

    Raises:
        EosinError: If the map is no map of whole numbers of the same size, or a nucleus has pixels of two types or of
            none, or (without `majority`) a pixel outside all nuclei has a type.
    """
    types = check_labels(type_map, name, labels.shape, whole_floats=True)
    relabeled = relabel_with_ids(labels)
    instances, count = relabeled.instances, len(relabeled.ids)
    width = int(types.max()) + 1
    if width * (count + 1) > _TABLE:
        raise EosinError(f"{name}: holds the type {width - 1}; types are numbered from 1 upwards, without large gaps")
    cells = np.bincount((instances.astype(np.int64) * width + types).ravel(), minlength=(count + 1) * width)
    shares = cells.reshape(count + 1, width)
    if not majority:
        _refuse_disagreement(shares, relabeled.ids, name)
    shares[:, 0] = 0
    return np.asarray(shares[1:].argmax(axis=1), dtype=np.int64)


def _refuse_disagreement(shares: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], name: str) -> None:
    if shares[0, 1:].any():
        pixels = shares[0, 1:].sum()
        raise EosinError(f"{name}: {pixels} px have a type but belong to no nucleus; types and instances disagree")
    several = np.flatnonzero((shares[1:] > 0).sum(axis=1) > 1)
    if len(several):
        held = ", ".join(str(kind) for kind in np.flatnonzero(shares[1 + several[0]]))
        raise EosinError(
            f"{name}: nucleus {ids[several[0]]} has pixels of the types {held} (and {len(several) - 1} more such); "
            "types and instances disagree"
        )
    without = np.flatnonzero(shares[1:, 0])
    if len(without):
        raise EosinError(f"{name}: nucleus {ids[without[0]]} has no type (and {len(without) - 1} more such)")
