"""Label maps in files, in and out.

Written: PNG of 16 bits, TIFF or NPY, of 32 bits where there are more than 65,535 nuclei (PNG then gives way to TIFF).
Read: those, NPZ and MAT, with the types of nuclei where the file holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.nuclei.datasets.reading import (
    as_labels,
    label_map,
    mat_values,
    npz_values,
    types_from_map,
    whole_ids,
    whole_types,
)
from eosin.nuclei.found import Nuclei, loaded
from eosin.nuclei.labels import Labels, instance_types, relabel_with_ids

__all__ = ["LabelFile", "LabelFormat", "read_label_file", "write_labels", "write_tiled_labels"]

LabelFormat = Literal["png", "tiff", "npy"]

_TILE = 512
_UINT16 = 65_535


@dataclass(frozen=True, eq=False)
class LabelFile:
    """What a file of labels holds.

    Attributes:
        labels: Integer [H, W].
        types: int64 [n], the type of each nucleus in the order of ids; None where the file has none.
    """

    labels: Labels
    types: npt.NDArray[np.int64] | None


class _Unnamed:
    """A file whose name is not looked at: that of one opened by its number is a number, which tifffile cannot take."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        if name == "name":
            raise AttributeError(name)
        return getattr(self._file, name)


def write_labels(labels: Labels, path: Path, form: LabelFormat) -> Path:
    """Write a label map, whole or not at all, its ids as they are.

    Args:
        labels: Integer [H, W], ids up to 4,294,967,295.
        path: The file, without a suffix.
        form: Of the file; `png` becomes `tiff` where ids are above 65,535.

    Returns:
        The file.

    Raises:
        EosinError: If it cannot be written.
    """
    top = int(labels.max()) if labels.size else 0
    narrow = labels.astype(np.uint16 if top <= _UINT16 else np.uint32)
    if form == "png" and top > _UINT16:
        form = "tiff"
    file = path.with_name(f"{path.name}.{form}")
    with atomic_file(file) as opened:
        if form == "npy":
            np.save(opened, narrow)
        elif form == "png":
            from PIL import Image

            Image.fromarray(narrow).save(opened, "PNG")
        else:
            import tifffile

            tifffile.imwrite(_Unnamed(opened), narrow, compression="zlib", photometric="minisblack")
    return file


def write_tiled_labels(
    parts: Sequence[Nuclei | Path],
    width: int,
    height: int,
    path: Path,
    mpp: float | None = None,
    go_on: Callable[[], object] = lambda: None,
) -> Path:
    """Write the label map of a slide tile by tile, in a TIFF of 32 bits, whole or not at all.

    Args:
        parts: The nuclei, or the files that hold them, which are read where they are shown; ids are 1 to n in their
            order.
        width: Of the map in px.
        height: Of the map in px.
        path: The file, without a suffix.
        mpp: µm/px of the map.
        go_on: Called for each tile; what it raises ends the work, and no file is left.
    """
    import tifffile

    sizes, reach = [0], []
    for each in parts:
        go_on()
        part = loaded(each)
        sizes.append(len(part))
        reach.append((part.boxes[:, 1].min(initial=height), part.boxes[:, 3].max(initial=0)))
    firsts = 1 + np.cumsum(sizes)

    def tiles() -> Iterator[npt.NDArray[np.uint32]]:
        held: dict[int, Nuclei] = {}
        for y in range(0, height, _TILE):
            near = [at for at, (top, bottom) in enumerate(reach) if top < y + _TILE and bottom > y]
            held = {at: held[at] if at in held else loaded(parts[at]) for at in near}
            for x in range(0, width, _TILE):
                go_on()
                tile = np.zeros((_TILE, _TILE), dtype=np.uint32)
                for at, part in held.items():
                    part.paint(tile, (x, y), int(firsts[at]))
                yield tile

    file = path.with_name(f"{path.name}.tiff")
    scale: dict[str, Any] = (
        {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    )
    with atomic_file(file) as opened:
        tifffile.imwrite(
            _Unnamed(opened),
            tiles(),
            shape=(height, width),
            dtype=np.uint32,
            tile=(_TILE, _TILE),
            compression="zlib",
            photometric="minisblack",
            bigtiff=True,
            **scale,
        )
    return file


def read_label_file(path: Path, *, truth: bool = False) -> LabelFile:
    """Read a label map, and types where the file has them.

    NPZ and MAT hold `inst_map`, and perhaps `type_map` [H, W] (as NuCLS and CoNSeP), or, MAT, `inst_type` or `class`
    [n] (as CoNSeP and Lizard); an NPZ of one array holds the labels.

    Args:
        path: The file.
        truth: Whether a map of types must agree with the nuclei: more than half of the pixels of each of one type, no
            more than 5 % of the nuclei's area outside of them. Of a prediction each nucleus has the type of most of its
            typed pixels, and 0 without.

    Raises:
        EosinError: If it cannot be read, holds no label map, or types that disagree with the nuclei.
    """
    labels = label_map(path, None)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        arrays = npz_values(path, ())
    elif suffix == ".mat":
        arrays = mat_values(path, ("inst_map",))
    else:
        return LabelFile(labels, None)
    if "type_map" in arrays:
        name = f"{path} (type_map)"
        drawn = whole_types(arrays["type_map"], "type_map", path)
        if not truth:
            return LabelFile(labels, instance_types(labels, drawn, name, majority=True))
        kinds = as_labels(drawn, name, (labels.shape[0], labels.shape[1]), whole_floats=True)
        classes = [str(number) for number in range(1, max(1, int(kinds.max(initial=0))) + 1)]
        relabeled = relabel_with_ids(labels)
        types = types_from_map(kinds, name, classes, "checked")(relabeled.instances, relabeled.ids)
        return LabelFile(labels, types)
    for key, ids_key in (("inst_type", ""), ("class", "id")):
        if key in arrays:
            return LabelFile(labels, _listed_types(path, labels, arrays, key, ids_key))
    return LabelFile(labels, None)


def _listed_types(
    path: Path, labels: Labels, arrays: dict[str, npt.NDArray[Any]], key: str, ids_key: str
) -> npt.NDArray[np.int64]:
    """Types by id: entry i is of id i + 1, or of the id that a second list names."""
    types = whole_types(arrays[key].ravel(), key, path)
    ids = np.arange(1, len(types) + 1)
    if ids_key in arrays:
        ids = whole_ids(arrays[ids_key].ravel(), ids_key, path)
    if len(ids) != len(types):
        raise EosinError(f"{path}: {len(ids)} entries in '{ids_key}' but {len(types)} in '{key}'; give one type an id")
    table = dict(zip(ids.tolist(), types.tolist(), strict=False))
    present = relabel_with_ids(labels).ids.tolist()
    missing = [number for number in present if number not in table]
    if missing:
        raise EosinError(f"{path}: nucleus {missing[0]} has no entry in '{key}' (and {len(missing) - 1} more such)")
    return np.array([table[number] for number in present], dtype=np.int64)
