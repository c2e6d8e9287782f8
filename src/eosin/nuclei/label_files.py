"""Label maps from files: PNG, TIFF, NPY, NPZ and MAT, with the types of nuclei where the file holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.datasets.reading import (
    as_labels,
    label_map,
    mat_values,
    npz_values,
    types_from_map,
    whole_ids,
    whole_types,
)
from eosin.nuclei.labels import Labels, instance_types, relabel_with_ids

__all__ = ["LabelFile", "read_label_file"]


@dataclass(frozen=True, eq=False)
class LabelFile:
    """What a file of labels holds.

    Attributes:
        labels: Integer [H, W].
        types: int64 [n], the type of each nucleus in the order of ids; None where the file has none.
    """

    labels: Labels
    types: npt.NDArray[np.int64] | None


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
