"""Files of label maps and images: read with one clear line for whatever is wrong with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.data.images import UnreadableImage, decode_image, open_image
from eosin.nuclei.labels import Labels, check_labels, refuse_mask

__all__ = [
    "LABEL_SUFFIXES",
    "TypeRule",
    "as_labels",
    "content",
    "contents",
    "image_shape",
    "label_map",
    "listed",
    "mat_values",
    "npy_array",
    "npz_values",
    "picture",
    "types_from_map",
    "whole_ids",
    "whole_types",
]

LABEL_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".npy", ".npz", ".mat"})

TypeRule = Literal["checked", "majority"]

_OUTSIDE = 0.05
"""Share of the nuclei's area that may have a type outside all nuclei."""

_THREADS = 8

_MOST_TYPES = 255
_MOST_ID = 2**53


def content(path: Path) -> bytes:
    """Return the SHA-256 of a file.

    Raises:
        EosinError: If it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, error) from None


def contents(paths: Sequence[Path]) -> list[bytes]:
    """Return the SHA-256 of each file, several at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(content, paths))


def listed(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    """List the files right in a folder by name without suffix, sorted; hidden ones are passed over.

    Raises:
        EosinError: If it cannot be read, or two files differ in their suffix alone.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from None
    found: dict[str, Path] = {}
    for path in map(folder.joinpath, names):
        if path.suffix.lower() not in suffixes:
            continue
        if path.stem in found:
            raise EosinError(f"{path}: and {found[path.stem].name} have one name; keep one of them")
        found[path.stem] = path
    return found


def picture(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image: uint8 [3, H, W], RGB.

    Raises:
        EosinError: If it cannot be read.
    """
    try:
        return np.ascontiguousarray(decode_image(path.read_bytes()))
    except (OSError, UnreadableImage) as error:
        raise _unreadable(path, error) from None


def image_shape(path: Path) -> tuple[int, int]:
    """Read height and width off an image's header.

    Raises:
        EosinError: If it is no image.
    """
    try:
        # Headers lie in front, but for TIFF, which may have its directory at the end.
        data = path.read_bytes() if path.suffix.lower() in (".tif", ".tiff") else _beginning(path)
        width, height = open_image(data).size
    except (OSError, UnreadableImage) as error:
        raise _unreadable(path, error) from None
    return height, width


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 18)


def label_map(path: Path, shape: tuple[int, int] | None) -> Labels:
    """Read a label map: PNG, TIFF, NPY, the `inst_map` of an NPZ or MAT, or the only array of an NPZ.

    Args:
        path: The file.
        shape: Height and width of its image.

    Raises:
        EosinError: If it cannot be read, or is no label map of that size.
    """
    labels = as_labels(_array(path, "inst_map"), str(path), shape, whole_floats=path.suffix.lower() == ".mat")
    refuse_mask(labels, str(path))
    return labels


def type_map(path: Path) -> npt.NDArray[Any]:
    """Read the types beside a label map: a file of any of the kinds, or the `type_map` of an NPZ or MAT."""
    return _array(path, "type_map")


def as_labels(array: npt.ArrayLike, name: str, shape: tuple[int, int] | None, *, whole_floats: bool = False) -> Labels:
    """Check a label map (`labels.check_labels`) and bring it to the machine's byte order."""
    labels = check_labels(array, name, shape, whole_floats=whole_floats)
    return labels if labels.dtype.isnative else labels.astype(labels.dtype.newbyteorder("="))


def _array(path: Path, key: str) -> npt.NDArray[Any]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return npy_array(path)
    if suffix == ".npz":
        values = npz_values(path, ())
        if key not in values and len(values) == 1:
            return next(iter(values.values()))
        return _wanted(path, values, (key,))[key]
    if suffix == ".mat":
        return mat_values(path, (key,))[key]
    return _drawn(path)


def _drawn(path: Path) -> npt.NDArray[Any]:
    """Read the pixels of a PNG or TIFF as they are stored."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            return np.asarray(tifffile.imread(path))
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image)
    # Readers of images raise OSError, ValueError, SyntaxError, struct.error, zlib.error and more on damaged files.
    except Exception as error:
        raise _unreadable(path, error) from None


def npy_array(path: Path, *, mapped: bool = False) -> npt.NDArray[Any]:
    """Read an NPY file; nothing in it is run.

    Args:
        path: The file.
        mapped: Leave the values on the disk until they are asked for.

    Raises:
        EosinError: If it cannot be read, is cut short, or holds objects.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(array, np.ndarray):
        raise EosinError(f"{path}: an archive of arrays under the name of one array; call it .npz")
    return array


def npz_values(path: Path, keys: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read an NPZ file; nothing in it is run.

    Args:
        path: The file.
        keys: What to read; all of it if empty.

    Raises:
        EosinError: If it cannot be read or lacks a key.
    """
    import zipfile

    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise EosinError(f"{path}: one array under the name of an archive; call it .npy")
            values = {key: archive[key] for key in (keys or archive.files) if key in archive.files}
            names = list(archive.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    return _wanted(path, values, keys, names)


def mat_values(path: Path, keys: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read variables of a MATLAB file.

    Raises:
        EosinError: If it cannot be read, is of version 7.3, or lacks a variable.
    """
    from scipy.io import loadmat

    try:
        values = loadmat(path)
    except NotImplementedError:
        raise EosinError(f"{path}: is of MATLAB version 7.3; save it again with -v7") from None
    # The reader raises TypeError, ValueError, zlib.error and more on damaged files.
    except Exception as error:
        raise _unreadable(path, error) from None
    plain = {key: value for key, value in values.items() if not key.startswith("__")}
    return _wanted(path, plain, keys)


def _wanted(
    path: Path, values: dict[str, npt.NDArray[Any]], keys: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    for key in keys:
        if key not in values:
            held = ", ".join(names if names is not None else values) or "nothing"
            raise EosinError(f"{path}: has no '{key}' (it holds {held}); get the file again, or name it so")
    return values


def _unreadable(path: Path, error: Exception) -> EosinError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = reason.splitlines()[0].strip() if reason else type(error).__name__
    advice = "change its permissions" if isinstance(error, PermissionError) else "get the file again"
    return EosinError(f"{path}: cannot be read ({text}); {advice}")


def types_from_map(
    array: npt.ArrayLike, name: str, classes: Sequence[str], rule: TypeRule
) -> Callable[[Labels, npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """Read the type of each nucleus off a map of types, for `make_sample`.

    A nucleus is of the type that most of its typed pixels have; of equals the lower is taken. With "checked", more than
    half of its pixels must have that type, and what has a type outside all nuclei may be 5 % of the nuclei's area.

    Args:
        array: Integer [H, W], or whole floats: the type of each pixel, 0 for none.
        name: What to call it in an error.
        classes: Names of the types.
        rule: "checked", or "majority" for no more than the first sentence.

    Returns:
        A function that raises `EosinError`, naming the nucleus by the id that it has in the file, where the rule is
        broken, a type has no name or a nucleus has no typed pixel.
    """

    def read(instances: Labels, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        types = as_labels(array, name, (instances.shape[0], instances.shape[1]), whole_floats=True)
        top = int(types.max())
        if top > len(classes):
            known = ", ".join(f"{number} {text}" for number, text in enumerate(classes, start=1))
            raise EosinError(f"{name}: holds the type {top}, which is none of the set's ({known}); correct the map")
        width = len(classes) + 1
        cells = np.bincount((instances.astype(np.int64) * width + types).ravel(), minlength=(len(ids) + 1) * width)
        shares = cells.reshape(len(ids) + 1, width)
        areas, best = shares[1:].sum(axis=1), shares[1:, 1:].argmax(axis=1) + 1
        most = shares[np.arange(1, len(ids) + 1), best]
        _refuse(name, ids, most == 0, lambda row: "has no pixel with a type; give it one")
        if rule == "checked":
            _refuse(
                name,
                ids,
                2 * most <= areas,
                lambda row: (
                    f"has {most[row]} of its {areas[row]} px of one type, not more than half; correct the map, "
                    "or take the type of most typed pixels with ?types=majority"
                ),
            )
            outside = int(shares[0, 1:].sum())
            if outside > _OUTSIDE * areas.sum():
                raise EosinError(
                    f"{name}: {outside:,} px outside all nuclei have a type; is it of another image? If not, write "
                    "?types=majority"
                )
        return np.asarray(best, dtype=np.int64)

    return read


def _refuse(name: str, ids: npt.NDArray[np.int64], wrong: npt.NDArray[np.bool_], say: Callable[[int], str]) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        more = f" ({len(rows) - 1} more like it)" if len(rows) > 1 else ""
        raise EosinError(f"{name}: nucleus {ids[rows[0]]}{more} {say(int(rows[0]))}")


def whole_types(values: npt.NDArray[Any], key: str, path: Path) -> npt.NDArray[np.int64]:
    """Make sure that values are types of nuclei.

    Args:
        values: Of any shape, as a file held them.
        key: What the file calls them.
        path: The file.

    Returns:
        int64, of the same shape.

    Raises:
        EosinError: If one is no whole number from 0 to 255: a number beyond would make as many types.
    """
    return _whole_numbers(values, key, path, "types", _MOST_TYPES)


def whole_ids(values: npt.NDArray[Any], key: str, path: Path) -> npt.NDArray[np.int64]:
    """Make sure that values are ids of nuclei: see `whole_types`.

    Raises:
        EosinError: If one is no whole number from 0 to 2^53, beyond which floats are not told apart.
    """
    return _whole_numbers(values, key, path, "ids", _MOST_ID)


def _whole_numbers(values: npt.NDArray[Any], key: str, path: Path, what: str, high: int) -> npt.NDArray[np.int64]:
    rule = f"{what} are whole numbers from 0 to {high}"
    if values.dtype.kind not in "biuf":
        kind = "text" if values.dtype.kind in "US" else "a cell array" if values.dtype == object else values.dtype
        raise EosinError(f"{path}: '{key}' is {kind}; {rule}")
    # A NaN is neither.
    right = (values >= 0) & (values <= high) & (values == np.floor(values))
    if not right.all():
        raise EosinError(f"{path}: '{key}' holds {values[~right].flat[0]:g}; {rule}")
    return values.astype(np.int64)
