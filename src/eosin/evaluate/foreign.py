"""Embeddings that were made elsewhere: eva's folders of `.pt` files, and the Parquet files of `eosin embed`."""

from __future__ import annotations

import csv
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.evaluate.evaluation import ProbeData
from eosin.tasks.splits import divide

__all__ = ["read_embeddings"]

_SPLITS = ("train", "val", "test")
_COLUMNS = ("embeddings", "target", "split")


@dataclass(frozen=True, eq=False)
class _Columns:
    """What a file says of its images, in their order; `groups` are empty where it names none."""

    features: npt.NDArray[np.float32]
    names: list[str]
    labels: list[str]
    splits: list[str]
    groups: list[str]
    grouping: str


def read_embeddings(path: Path) -> ProbeData:
    """Read embeddings, labels and splits that any protocol for features can be run on.

    * A folder that eva wrote (`ClassificationEmbeddingsWriter`): `manifest.csv` with the columns origin, embeddings,
      target, split, and a `.pt` file an image. A column `wsi_id` groups the images of a slide; an image is still a row.
      Files are read without unpickling anything but tensors.
    * A Parquet file of `eosin embed`, from a source with labels and splits.

    eva's own tasks often have train and val only and report val. Where there is no test, val is the test; where val is
    missing then, a fifth of train is drawn for it, whole groups at a time, so that nothing is chosen on what is
    reported.

    Args:
        path: The folder, or the Parquet file.

    Returns:
        The data, without tiles. Of eva's numbered classes the names are the numbers, in numeric order; others are
        sorted as text.

    Raises:
        EosinError: If a file, column, split or shape is missing or wrong.
    """
    columns = _from_eva(path) if path.is_dir() else _from_parquet(path)
    return _joined(path, columns)


def _joined(path: Path, columns: _Columns) -> ProbeData:
    unknown = sorted(set(columns.splits) - set(_SPLITS))
    if unknown:
        raise EosinError(f"{path}: split '{unknown[0]}'; splits are train, val and test")
    if not np.isfinite(columns.features).all():
        place = int(np.flatnonzero(~np.isfinite(columns.features).all(axis=1))[0])
        raise EosinError(f"{path}: the embedding of '{columns.names[place]}' is not finite; embed it again")
    splits = np.array(columns.splits, dtype="U5")
    if "test" not in splits:
        splits[splits == "val"] = "test"
    if "val" not in splits:
        _draw_val(splits, columns)
    rows = {name: np.flatnonzero(splits == name) for name in _SPLITS}
    for name in ("train", "test"):
        if not len(rows[name]):
            raise EosinError(f"{path}: no image in the {name} split; write one in the column 'split'")
    classes = sorted(set(columns.labels), key=_in_order)
    place_of = {name: place for place, name in enumerate(classes)}
    labels = np.array([place_of[label] for label in columns.labels], dtype=np.int64)
    if len(np.unique(labels[rows["train"]])) < 2:
        raise EosinError(f"{path}: the training images are of one class; give images of a second class")
    return ProbeData(
        features=columns.features,
        labels=labels,
        classes=tuple(classes),
        train=rows["train"],
        val=rows["val"],
        test=rows["test"],
        names=np.array(columns.names),
        groups=np.array(columns.groups) if columns.groups else None,
        grouping=columns.grouping,
        dropped=0,
    )


def _draw_val(splits: npt.NDArray[np.str_], columns: _Columns) -> None:
    train = np.flatnonzero(splits == "train")
    if len(train):
        groups = columns.groups or columns.names
        held = divide([columns.labels[row] for row in train], [groups[row] for row in train], 0.2, 0, "val")
        splits[train[held]] = "val"


def _in_order(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.isdecimal() else (1, 0, label)


# eva ------------------------------------------------------------------------------------------------------------------


def _from_eva(folder: Path) -> _Columns:
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        raise EosinError(f"{folder}: no manifest.csv; give the folder that eva's embeddings writer filled")
    try:
        with manifest.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            names = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EosinError(f"{manifest}: cannot be read ({error})") from error
    for column in _COLUMNS:
        if column not in names:
            raise EosinError(f"{manifest}: no column '{column}'; eva writes origin, embeddings, target, split")
    if not rows:
        raise EosinError(f"{manifest}: holds no images; run eva predict again")
    groups = [row["wsi_id"] for row in rows] if "wsi_id" in names else []
    return _Columns(
        _stacked(manifest, [(row["embeddings"], _tensor(folder, row["embeddings"] or "")) for row in rows]),
        [row.get("origin") or row["embeddings"] for row in rows],
        [str(row["target"]) for row in rows],
        [str(row["split"]) for row in rows],
        groups,
        "slide" if groups else "image",
    )


def _tensor(folder: Path, name: str) -> npt.NDArray[np.float32]:
    """Read one `.pt`: a tensor [D] or [1, D], or a list of one of them."""
    import torch

    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise EosinError(f"{folder / 'manifest.csv'}: '{name}' lies outside the folder; embeddings lie beside it")
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise EosinError(f"{path}: cannot be read ({error.strerror}); is the folder whole?") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise EosinError(f"{path}: is no file of tensors; write it again with eva") from error
    if isinstance(value, list):
        if len(value) != 1:
            raise EosinError(f"{path}: holds {len(value)} embeddings; eosin reads one an image, pool those of a slide")
        value = value[0]
    if not isinstance(value, torch.Tensor) or value.numel() != value.shape[-1:].numel() or not value.numel():
        raise EosinError(f"{path}: is no tensor [D] or [1, D]; pool the embeddings of an image to one vector")
    vector: npt.NDArray[np.float32] = value.detach().reshape(-1).float().numpy()
    return vector


def _stacked(manifest: Path, named: list[tuple[str, npt.NDArray[np.float32]]]) -> npt.NDArray[np.float32]:
    width = len(named[0][1])
    for name, vector in named:
        if len(vector) != width:
            raise EosinError(f"{manifest}: '{name}' has {len(vector)} features, the first {width}; embed them alike")
    return np.stack([vector for _, vector in named])


# Parquet --------------------------------------------------------------------------------------------------------------


def _from_parquet(path: Path) -> _Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        problem = str(error).splitlines()[0]
        raise EosinError(f"{path}: is no Parquet file of embeddings ({problem}); write it with eosin embed") from error
    for column in ("name", "label", "split", "feature"):
        if column not in table.column_names:
            raise EosinError(f"{path}: no column '{column}'; embed a source that has it, such as csv:FILE with splits")
        if table.column(column).null_count:
            raise EosinError(f"{path}: column '{column}' has gaps; give every image a value or leave it out")
    if not pa.types.is_fixed_size_list(table.schema.field("feature").type) or not len(table):
        raise EosinError(f"{path}: 'feature' holds no lists of one length; write it with eosin embed")
    values = table.column("feature").combine_chunks()
    width = table.schema.field("feature").type.list_size
    texts = {name: list(map(str, table.column(name).to_pylist())) for name in table.column_names if name != "feature"}
    grouping = next((name for name in ("patient", "slide") if name in texts), "image")
    features = np.asarray(values.flatten(), dtype=np.float32).reshape(len(table), width)
    return _Columns(features, texts["name"], texts["label"], texts["split"], texts.get(grouping, []), grouping)
