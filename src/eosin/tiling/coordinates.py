"""Tiles' positions in the H5 files of CLAM and TRIDENT: read, and written so that those tools read them.

Both hold a data set `coords`, integers [N, 2], the left upper corners (x, y) in level-0 px, and say the rest in its
attributes:

* CLAM (``patches/SLIDE.h5``; github.com/mahmoodlab/CLAM, wsi_core): `patch_size`, the side in px of the level
  `patch_level`, `downsample` and `level_dim` of that level, `downsampled_level_dim`, `name`, `save_path`. A tile spans
  patch_size × downsample level-0 px.
* TRIDENT (``patches/SLIDE_patches.h5``; github.com/mahmoodlab/TRIDENT, trident/IO.py): `patch_size`, the side in px at
  `target_magnification`, `patch_size_level0`, `level0_magnification`, `overlap` in px of the tile, `level0_width` and
  `level0_height` of the whole slide, `name`, `savetodir`. A tile spans
  patch_size × level0_magnification / target_magnification level-0 px.

Both tools read squares of whole level-0 px, so a tile's extent is rounded to these when it is written.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from eosin.core.errors import EosinError, nearest
from eosin.core.files import atomic_directory, atomic_file, storage_errors

if TYPE_CHECKING:
    from eosin.data import Tiles

__all__ = [
    "CoordinateKind",
    "Coordinates",
    "CoordinatesSummary",
    "export_coordinates",
    "read_coordinates",
    "write_coordinates",
]

CoordinateKind = Literal["clam", "trident"]
_KINDS = ("clam", "trident")

# A square in level-0 px may stand for a tile whose sides differ by this share: scanners' pixels are that square.
_SQUARE = 0.01


@dataclass(frozen=True)
class Coordinates:
    """Where the tiles of a slide lie. The µm/px of the tiles is the slide's × level0_width / size."""

    x: npt.NDArray[np.int64]
    """Left edges in level-0 px, [N], in the file's order."""
    y: npt.NDArray[np.int64]
    """Upper edges in level-0 px, [N]."""
    level0_width: float
    """Width of a tile in level-0 px."""
    level0_height: float
    """Height of a tile in level-0 px."""
    size: int
    """Side of a tile in px."""
    kind: CoordinateKind
    """Whose file it was."""
    name: str | None = None
    """The slide's name, where the file says it."""
    slide_size: tuple[int, int] | None = None
    """Width and height of the slide in level-0 px, where the file says them."""

    def __len__(self) -> int:
        return len(self.x)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise EosinError("H5 coordinates need h5py, which is not installed: pip install 'eosin[h5]'") from None
    return h5py


def read_coordinates(path: Path) -> Coordinates:
    """Read a coordinates file of CLAM or TRIDENT.

    Raises:
        EosinError: If it cannot be read, is no such file, or contradicts itself, or h5py is missing.
    """
    h5py = _h5py()
    path = Path(path)
    if not path.is_file():
        raise EosinError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            data = file.get("coords")
            if not isinstance(data, h5py.Dataset):
                content = ", ".join(sorted(file)) or "nothing"
                raise EosinError(f"{path}: no data set 'coords' (it holds {content}); give CLAM's or TRIDENT's patches")
            coords, attributes = data[()], dict(data.attrs)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EosinError(f"{path}: not a readable H5 file ({reason}); make it again") from None
    x, y = _corners(path, coords)
    says = _Attributes(path, attributes)
    if "target_magnification" in attributes or "patch_size_level0" in attributes:
        return _trident(says, x, y)
    if "patch_level" in attributes:
        return _clam(says, x, y)
    raise EosinError(
        f"{path}: 'coords' has neither CLAM's attribute patch_level nor TRIDENT's target_magnification, so the extent "
        "of a tile is unknown; give the file that holds the patches, not the features"
    )


def _corners(path: Path, coords: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    values = np.asarray(coords)
    if values.size == 0:
        values = np.zeros((0, 2), np.int64)
    if values.ndim != 2 or values.shape[1] != 2:
        shape = "×".join(map(str, values.shape)) or "one number"
        raise EosinError(f"{path}: 'coords' is {shape}; expected N×2, the left upper corners in level-0 px")
    if values.dtype.kind not in "iuf" or not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise EosinError(f"{path}: 'coords' are no whole numbers; expected level-0 px")
    whole = values.astype(np.int64)
    return np.ascontiguousarray(whole[:, 0]), np.ascontiguousarray(whole[:, 1])


class _Attributes:
    """What a file says of its tiles, checked as it is asked for."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Return one number, or one a side; one for both stands for two."""
        try:
            values = np.asarray(self.values[name], dtype=np.float64).ravel()
        except KeyError:
            raise EosinError(f"{self.path}: 'coords' has no attribute {name}; make the file again") from None
        except (TypeError, ValueError):
            values = np.zeros(0)
        if count == 2 and len(values) == 1:
            values = np.repeat(values, 2)
        if len(values) != count or not (np.isfinite(values) & (values > 0)).all():
            raise EosinError(f"{self.path}: attribute {name} is {self.values[name]!r}; expected a number above 0")
        return tuple(map(float, values))

    def number(self, name: str) -> float:
        return self.numbers(name, 1)[0]

    def side(self) -> int:
        size = self.number("patch_size")
        if not size.is_integer():
            raise EosinError(f"{self.path}: attribute patch_size is {size:g}; expected whole px")
        return int(size)

    def name(self) -> str | None:
        value = self.values.get("name")
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        return value if isinstance(value, str) and value not in ("", "None") else None

    def size(self, *names: str) -> tuple[int, int] | None:
        """Return a width and height that only inform; None where they are not known."""
        try:
            width, height = np.concatenate([np.ravel(self.values[name]) for name in names])
            return int(width), int(height)
        except (KeyError, TypeError, ValueError):
            return None


def _clam(says: _Attributes, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> Coordinates:
    size = says.side()
    if says.values.get("custom_downsample", 1) != 1:
        raise EosinError(
            f"{says.path}: custom_downsample {says.values['custom_downsample']}, by which CLAM's early versions shrank "
            "patches after reading, is not understood; make the patches again without it"
        )
    level = np.ravel(says.values["patch_level"])
    if len(level) != 1 or level[0] not in range(64):
        raise EosinError(f"{says.path}: attribute patch_level is {says.values['patch_level']!r}; expected 0, 1, 2 …")
    at_level_0 = level[0] == 0 and "downsample" not in says
    along = (1.0, 1.0) if at_level_0 else says.numbers("downsample", 2)
    slide_size = says.size("level_dim") if along == (1.0, 1.0) else None
    return Coordinates(x, y, size * along[0], size * along[1], size, "clam", says.name(), slide_size)


def _trident(says: _Attributes, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> Coordinates:
    size = says.side()
    exact = None
    if "level0_magnification" in says and "target_magnification" in says:
        exact = size * says.number("level0_magnification") / says.number("target_magnification")
    extent = says.number("patch_size_level0") if "patch_size_level0" in says else None
    if extent is None:
        # What TRIDENT's patcher reads.
        extent = float(round(size * says.number("level0_magnification") / says.number("target_magnification")))
    elif exact is not None and abs(extent - exact) > 1:
        raise EosinError(
            f"{says.path}: patch_size_level0 is {extent:g} px, but patch_size and the magnifications make {exact:g}; "
            "make the file again"
        )
    return Coordinates(x, y, extent, extent, size, "trident", says.name(), says.size("level0_width", "level0_height"))


def write_coordinates(
    path: Path,
    coordinates: Coordinates,
    *,
    kind: CoordinateKind,
    name: str,
    mpp: float | None = None,
    slide_size: tuple[int, int] | None = None,
) -> None:
    """Write a coordinates file that CLAM or TRIDENT reads.

    For CLAM the tiles are squares of level 0, which it reads as they are and leaves to the encoder's transform to
    shrink. For TRIDENT they have their size in px, and magnifications of 10 / (µm/px), whose ratio is what it uses.

    Args:
        path: The file; its folder must exist.
        coordinates: What to write.
        kind: Whose form.
        name: The slide's file name without its suffix, by which the tools find it.
        mpp: µm/px of the tiles; needed for TRIDENT.
        slide_size: Width and height of the slide in level-0 px; what is not known is left out of the file.

    Raises:
        EosinError: If tiles are not square, `mpp` is missing, the place cannot be written or h5py is missing.
    """
    h5py = _h5py()
    if kind not in _KINDS:
        raise EosinError(f"coordinates of kind '{kind}': {nearest(kind, _KINDS)}")
    width, height = coordinates.level0_width, coordinates.level0_height
    if abs(width - height) > max(1.0, _SQUARE * width):
        raise EosinError(f"{path}: tiles of {width:g}×{height:g} level-0 px are not square, as {kind} has them")
    side = max(1, round((width + height) / 2))
    size = coordinates.slide_size if slide_size is None else slide_size
    attributes: dict[str, Any]
    if kind == "clam":
        attributes = {"patch_size": side, "patch_level": 0, "downsample": (1.0, 1.0)}
        if size is not None:
            attributes |= {"downsampled_level_dim": size, "level_dim": size}
        attributes |= {"name": name, "save_path": str(path.parent)}
    else:
        if mpp is None or not (math.isfinite(mpp) and mpp > 0):
            raise EosinError(f"{path}: TRIDENT's coordinates need the µm/px of the tiles (got {mpp})")
        attributes = {
            "patch_size": coordinates.size,
            "patch_size_level0": side,
            "level0_magnification": _whole(10 / mpp * side / coordinates.size),
            "target_magnification": _whole(10 / mpp),
            "overlap": _overlap(coordinates),
            "name": name,
            "savetodir": str(path.parent),
        }
        if size is not None:
            attributes |= {"level0_width": size[0], "level0_height": size[1]}
    memory = io.BytesIO()
    corners = np.stack([coordinates.x, coordinates.y], axis=1).astype(np.int64)
    with h5py.File(memory, "w") as file:
        chunk = (min(max(1, len(corners)), 4096), 2)
        data = file.create_dataset("coords", data=corners, maxshape=(None, 2), chunks=chunk)
        for key, value in attributes.items():
            data.attrs[key] = value
    with atomic_file(path) as target:
        target.write(memory.getvalue())


def _whole(value: float) -> int | float:
    """Return a magnification as TRIDENT has it, an integer, where it is one."""
    return round(value) if abs(value - round(value)) < 1e-6 else value


def _overlap(coordinates: Coordinates) -> int:
    """Return by how many px of a tile neighbors overlap: as the closest columns, or rows, lie to each other."""
    steps = [
        (int(np.diff(np.unique(along)).min()), extent)
        for along, extent in ((coordinates.x, coordinates.level0_width), (coordinates.y, coordinates.level0_height))
        if len(np.unique(along)) > 1
    ]
    shares = [1 - step / extent for step, extent in steps]
    # Rounding the corners to whole px moves neighbors by up to one.
    return max([0, *(round(share * coordinates.size) for share in shares if share * coordinates.level0_width > 1)])


@dataclass(frozen=True)
class CoordinatesSummary:
    """What `export_coordinates` wrote."""

    out: Path
    kind: CoordinateKind
    tiles: int
    files: tuple[Path, ...]
    """In the order of the slides."""

    def __str__(self) -> str:
        """Return the closing line."""
        plural = "" if len(self.files) == 1 else "s"
        return f"{self.out}: coordinates of {self.tiles:,} tiles in {len(self.files):,} file{plural} for {self.kind}"


@dataclass(frozen=True)
class _Group:
    """The tiles of one slide and µm/px, by their rows among the tiles."""

    slide: str
    mpp: float
    rows: npt.NDArray[np.int64]


def export_coordinates(tiles: Tiles, out: Path, kind: CoordinateKind) -> CoordinatesSummary:
    """Write the coordinates of a store's tiles, one H5 file a slide.

    Files are called as the tools expect them: ``OUT/patches/SLIDE.h5`` for CLAM, ``OUT/patches/SLIDE_patches.h5`` for
    TRIDENT, where SLIDE is the slide's file name without the suffix, or, where two share it, its whole name with
    ``__`` between the folders. From a store of several µm/px each has a folder of its own: ``OUT/mpp-0.5/patches/``.

    Args:
        tiles: Tiles, or some of them, of a store cut from slides by `eosin tile`.
        out: A directory that does not exist yet, or is empty.
        kind: Whose form.

    Raises:
        EosinError: If they are not from a store, or lack positions; if the place cannot be written, or h5py is missing.
    """
    # Processes that cut slides only read coordinates: they need no torch, which tiles do.
    from eosin.data.store import StoreBytes

    _h5py()
    if kind not in _KINDS:
        raise EosinError(f"coordinates of kind '{kind}': {nearest(kind, _KINDS)}")
    if not isinstance(tiles.source, StoreBytes):
        raise EosinError(f"{tiles.spec}: only a store cut from slides has coordinates; cut one with `eosin tile`")
    if not len(tiles):
        raise EosinError(f"{tiles.spec}: no tile to export")
    store = tiles.source.path
    groups, table = _grouped(tiles, store)
    sizes = _slide_sizes(store)
    names = _file_names(sorted({group.slide for group in groups}))
    several = len({group.mpp for group in groups}) > 1
    files = []
    with atomic_directory(Path(out)) as directory, storage_errors(Path(out)):
        for group in groups:
            name = names[group.slide]
            leaf = Path("patches") / (f"{name}.h5" if kind == "clam" else f"{name}_patches.h5")
            relative = Path(f"mpp-{group.mpp:.6g}") / leaf if several else leaf
            (directory / relative).parent.mkdir(parents=True, exist_ok=True)
            coordinates = _coordinates(tiles, group, table, kind)
            size = sizes.get(group.slide)
            write_coordinates(directory / relative, coordinates, kind=kind, name=name, mpp=group.mpp, slide_size=size)
            files.append(Path(out) / relative)
    return CoordinatesSummary(Path(out), kind, len(tiles), tuple(files))


def _coordinates(
    tiles: Tiles, group: _Group, table: dict[str, npt.NDArray[np.float64]], kind: CoordinateKind
) -> Coordinates:
    from eosin.data.images import UnreadableImage, open_image

    try:
        pixels = open_image(tiles.read(int(group.rows[0]))).size[0]
    except UnreadableImage as error:
        raise EosinError(f"{tiles.names[group.rows[0]]}: {error}; cut the store again") from None
    width, height = (table[name][group.rows] for name in ("level0_width", "level0_height"))
    if max(np.ptp(width), np.ptp(height)) > 0.5:
        raise EosinError(f"{tiles.spec}: the tiles of slide '{group.slide}' at {group.mpp:g} µm/px differ in extent")
    x, y = (table[name][group.rows].astype(np.int64) for name in ("x", "y"))
    return Coordinates(x, y, float(width[0]), float(height[0]), pixels, kind)


def _grouped(tiles: Tiles, store: Path) -> tuple[list[_Group], dict[str, npt.NDArray[np.float64]]]:
    """Return the tiles by slide and µm/px, both in order, and the columns they are described by."""
    path = store / "manifest.parquet"
    numbers = ("x", "y", "level0_width", "level0_height", "mpp")
    present = pyarrow.parquet.read_schema(path).names
    missing = [name for name in ("slide", *numbers) if name not in present]
    if missing:
        raise EosinError(f"{path}: no column '{missing[0]}'; cut the store from slides with `eosin tile`")
    table = pyarrow.parquet.read_table(path, columns=["name", "slide", *numbers]).combine_chunks()
    listed = pc.index_in(tiles.names.array, value_set=table["name"].cast(pa.large_string()).combine_chunks())
    table = table.take(listed)
    columns = {name: table[name].to_numpy().astype(np.float64) for name in numbers}
    slides = table["slide"].to_pylist()
    known = np.array([slide is not None for slide in slides])
    known &= np.logical_and.reduce([np.isfinite(column) for column in columns.values()])
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise EosinError(
            f"{path}: tile '{tiles.names[row]}' has no slide, position or extent; cut the slides with `eosin tile`"
        )
    rows: dict[tuple[str, float], list[int]] = {}
    for row, key in enumerate(zip(slides, columns["mpp"].tolist(), strict=True)):
        rows.setdefault(key, []).append(row)
    return [_Group(*key, np.array(rows[key])) for key in sorted(rows)], columns


def _slide_sizes(store: Path) -> dict[str, tuple[int, int]]:
    """Return the slides' width and height in level-0 px as far as the table of slides tells."""
    path = store / "slides.csv"
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["slide"]: (int(row["width"]), int(row["height"]))
        for row in rows
        if row.get("slide") and row.get("width", "").isdigit() and row.get("height", "").isdigit()
    }


def _file_names(slides: list[str]) -> dict[str, str]:
    from eosin.data.safe_names import safe_part

    stems = {slide: safe_part(slide.rpartition("/")[2]) for slide in slides}
    counts = Counter(stems.values())
    return {slide: stem if counts[stem] == 1 else safe_part(slide.replace("/", "__")) for slide, stem in stems.items()}
