"""Any source of tiles from one string."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from eosin.core.errors import EosinError, nearest
from eosin.data.folder import IMAGE_SUFFIXES, open_folder
from eosin.data.manifest import open_manifest
from eosin.data.slides import open_slides
from eosin.data.store import is_store, open_store
from eosin.data.tiles import Tiles
from eosin.slides import SLIDE_SUFFIXES

__all__ = ["open_tiles"]


def _folder(path: Path, label_column: str) -> Tiles:
    if label_column != "label":
        raise EosinError(f"{path}: a folder has no column '{label_column}'; its labels are the class folders")
    return open_folder(path)


def _slides(path: Path, label_column: str) -> Tiles:
    if label_column != "label":
        raise EosinError(f"{path}: slides have no column '{label_column}' and no labels")
    return open_slides(str(path))


SCHEMES: dict[str, Callable[[Path, str], Tiles]] = {
    "folder": _folder,
    "csv": open_manifest,
    "store": open_store,
    "slides": _slides,
}


def open_tiles(spec: str | Path, *, label_column: str = "label", splits: Sequence[str] | None = None) -> Tiles:
    """Open a source of tiles.

    Args:
        spec: `folder:DIR`, `csv:FILE` (a CSV or Parquet manifest), `store:DIR`, `slides:DIR?mpp=0.5&size=256` (see
            `slide_options.SlideOptions`), or a bare path whose kind is seen, but for slides.
        label_column: Column that holds the label, for a manifest or a store.
        splits: Keep only the tiles of these splits.

    Returns:
        The tiles, in an order that depends on the source alone.

    Raises:
        EosinError: If the source is absent, empty or faulty; the message names the file, the row or the column.
    """
    scheme, path = _parse(str(spec))
    tiles = SCHEMES[scheme](path, label_column)
    return tiles if splits is None else _in_splits(tiles, splits)


def _parse(spec: str) -> tuple[str, Path]:
    if not spec.strip():
        raise EosinError("the source of tiles is empty; give folder:DIR, csv:FILE, store:DIR, slides:DIR or a path")
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in SCHEMES:
        if not rest:
            raise EosinError(f"'{spec}': give a path after the colon")
        return scheme, Path(rest).expanduser()
    path = Path(spec).expanduser()
    if path.is_dir():
        if not is_store(path) and (path / "tiling.json").is_file():
            # Its only images are previews.
            raise EosinError(f"{path}: no tile was cut yet, or the run was stopped; run the same `eosin tile` again")
        return "store" if is_store(path) else "folder", path
    if path.suffix.lower() in (".csv", ".parquet"):
        return "csv", path
    if path.is_file():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise EosinError(f"{path}: a single image; give the folder it is in")
        if path.suffix.lower() in SLIDE_SUFFIXES:
            raise EosinError(f"{path}: a slide; write slides:{path}?mpp=0.5&size=256, or cut it with `eosin tile`")
        raise EosinError(f"{path}: neither a folder nor a .csv or .parquet manifest")
    if colon and "/" not in scheme:
        raise EosinError(f"'{spec}': unknown kind of source '{scheme}'; {nearest(scheme, SCHEMES)}")
    raise EosinError(f"{path}: no such file or folder")


def _in_splits(tiles: Tiles, splits: Sequence[str]) -> Tiles:
    if tiles.split is None:
        raise EosinError(f"{tiles.spec}: no tile has a split; add a `split` column or leave out the choice of splits")
    known = sorted({name for name in tiles.split if name is not None})
    for name in splits:
        if name not in known:
            raise EosinError(f"{tiles.spec}: no split '{name}'; it has {', '.join(known)}")
    chosen = np.array([name in splits for name in tiles.split])
    remark = f"{len(tiles) - int(chosen.sum()):,} outside {' and '.join(splits)}"
    selected = tiles.select(chosen)
    return dataclasses.replace(selected, remarks=(*tiles.remarks, remark))
