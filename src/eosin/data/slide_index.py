"""Where the tissue of many slides is, found once: cells of tissue for the source `slides:`, and masks on disk.

Layout of ``$EOSIN_HOME/slides`` (by default ``~/.cache/eosin/slides``); all of it may be deleted at any time::

    index-KEY.parquet   one row a slide: its file's size and time, its geometry, the corners of its cells of tissue
    tissue/KEY.bits     a slide's mask: height and width (uint32, little-endian), then its bits, packed by row, deflated
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from eosin.core.console import progress_bar
from eosin.core.errors import EosinError, StorageError
from eosin.core.files import DirectoryLock, atomic_file, short_hash, writable_directory
from eosin.core.home import eosin_home
from eosin.data.workers import default_workers, read_ahead
from eosin.slides import Slide, UnusableSlide, open_slide, tissue_scale
from eosin.slides.discover import FoundSlide
from eosin.slides.grid import coverage, lay_grid
from eosin.slides.sampling import FINER
from eosin.slides.tissue import TissueConfig, find_tissue

__all__ = ["CellSettings", "IndexedSlide", "Mask", "index_slides", "slides_home", "tissue_mask"]

_VERSION = 2
_CACHE_BYTES = 32 << 20

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CellSettings:
    """What makes a cell."""

    mpp: float
    """µm/px."""
    size: int
    """Side in px."""
    minimum: float
    """Share of tissue that a cell has at least."""
    tissue: TissueConfig


@dataclass(frozen=True, eq=False)
class IndexedSlide:
    """A slide, and where its tissue is."""

    name: str
    path: str
    bytes: int
    modified_ns: int
    source_mpp: float | None
    """What the user says of it, in µm/px, whatever its file says."""
    fallback_mpp: float | None
    """What the user says of slides whose file does not say it; None once it is known that this one's does."""
    width: int = 0
    """In level-0 px."""
    height: int = 0
    mpp: tuple[float, float] = (math.nan, math.nan)
    """µm per level-0 px along x and y."""
    x: IntArray | None = None
    """Left edges of its cells of tissue in level-0 px; None for a slide that cannot be used."""
    y: IntArray | None = None
    reason: str = ""
    """Why it cannot be used, if it cannot."""

    def mask_key(self, tissue: TissueConfig) -> str:
        """Return what identifies its mask: the file, as it is now, its scale, and how tissue is sought."""
        given = (self.source_mpp, self.fallback_mpp)
        return short_hash(_VERSION, self.path, self.bytes, self.modified_ns, *given, tissue.plain())

    def still(self, now: IndexedSlide) -> bool:
        """Tell whether what was found still holds for the file and what is said of it now."""
        same = all(getattr(self, name) == getattr(now, name) for name in ("path", "bytes", "modified_ns", "source_mpp"))
        return same and self.fallback_mpp in (None, now.fallback_mpp)

    def open(self, cache_bytes: int) -> Slide:
        """Open it; raises as `open_slide`."""
        return open_slide(
            Path(self.path), source_mpp=self.source_mpp, fallback_mpp=self.fallback_mpp, cache_bytes=cache_bytes
        )


class Mask:
    """A slide's tissue, an eighth of a byte a pixel.

    Args:
        packed: uint8 [h, ceil(w / 8)], as `numpy.packbits` packs along rows.
        shape: (h, w).
        extent: Width and height of what the mask spans in level-0 px.
    """

    def __init__(self, packed: npt.NDArray[np.uint8], shape: tuple[int, int], extent: tuple[float, float]) -> None:
        self.packed = packed
        self.shape = shape
        self.extent = extent
        self.scale = (shape[1] / extent[0], shape[0] / extent[1])

    def share(self, x: float, y: float, width: float, height: float) -> float:
        """Return which share of a rectangle, in level-0 px, is tissue, 0 to 1: as `coverage`, for one tile anywhere."""
        columns, left = _weights(x * self.scale[0], (x + width) * self.scale[0], self.shape[1])
        rows, top = _weights(y * self.scale[1], (y + height) * self.scale[1], self.shape[0])
        if not len(columns) or not len(rows):
            return 0.0
        first = left // 8
        some = self.packed[top : top + len(rows), first : (left + len(columns) + 7) // 8]
        inside = np.unpackbits(some, axis=1)[:, left - 8 * first :][:, : len(columns)]
        covered = float(rows @ inside @ columns)
        return min(1.0, covered / (width * self.scale[0] * height * self.scale[1]) + 1e-9)


def _weights(low: float, high: float, length: int) -> tuple[npt.NDArray[np.float64], int]:
    """Return how much of each pixel from the first on lies between `low` and `high`, and which is the first."""
    low, high = min(max(low, 0.0), length), min(max(high, 0.0), length)
    first = int(low)
    edges = np.arange(first, math.ceil(high) + 1, dtype=np.float64)
    return np.diff(np.clip(edges, low, high)), first


def slides_home() -> Path:
    """Return the folder of what is found in slides: ``$EOSIN_HOME/slides``, by default ``~/.cache/eosin/slides``."""
    return eosin_home() / "slides"


def tissue_mask(slide: Slide, indexed: IndexedSlide, tissue: TissueConfig, home: Path) -> Mask:
    """Return a slide's tissue, from disk where it is there.

    Args:
        slide: Opened.
        indexed: The same slide.
        tissue: How tissue is sought.
        home: As `slides_home`.

    Raises:
        UnusableSlide: If it has to be sought and the slide cannot be read.
        EosinError: If it cannot be saved.
    """
    path = home / "tissue" / f"{indexed.mask_key(tissue)}.bits"
    try:
        data = path.read_bytes()
        height, width = struct.unpack("<II", data[:8])
        packed = np.frombuffer(zlib.decompress(data[8:]), np.uint8).reshape(height, -(-width // 8))
        return Mask(packed, (height, width), _extent(slide, (height, width), tissue))
    except (OSError, ValueError, struct.error, zlib.error):
        mask = _find(slide, tissue)
    packed = np.packbits(mask, axis=1)
    with atomic_file(path) as file:
        file.write(struct.pack("<II", *mask.shape) + zlib.compress(packed.tobytes(), 6))
    return Mask(packed, (mask.shape[0], mask.shape[1]), _extent(slide, mask.shape, tissue))


def _scale(slide: Slide, tissue: TissueConfig) -> float:
    return tissue_scale((slide.width, slide.height), slide.require_mpp(), tissue)


def _extent(slide: Slide, shape: tuple[int, ...], tissue: TissueConfig) -> tuple[float, float]:
    """Return what a mask spans in level-0 px: more than the slide where its last pixels lie partly outside."""
    scale, mpp = _scale(slide, tissue), slide.require_mpp()
    return shape[1] * scale / mpp[0], shape[0] * scale / mpp[1]


def _find(slide: Slide, tissue: TissueConfig) -> npt.NDArray[np.bool_]:
    scale = _scale(slide, tissue)
    return find_tissue(slide.thumbnail(scale), (scale, scale), tissue).mask


class _FindCells:
    """Finds the cells of one slide, or says why it cannot be used; runs in the workers."""

    def __init__(self, settings: CellSettings, home: Path) -> None:
        self.settings = settings
        self.home = home

    def __call__(self, indexed: IndexedSlide, /) -> IndexedSlide:
        if indexed.reason:
            return indexed
        try:
            with indexed.open(_CACHE_BYTES) as slide:
                own = slide.mpp_source != "given"
                return self._cells(slide, _with(indexed, fallback_mpp=None) if own else indexed)
        except UnusableSlide as error:
            reason = str(error)
        except StorageError:
            raise
        except (EosinError, OSError) as error:
            reason = str(error)
        return _with(indexed, reason=reason)

    def _cells(self, slide: Slide, indexed: IndexedSlide) -> IndexedSlide:
        settings, mpp = self.settings, slide.require_mpp()
        size = (slide.width, slide.height)
        if settings.mpp < max(mpp) * (1 - FINER):
            raise UnusableSlide(f"its pixels of {max(mpp):.4g} µm are coarser than {settings.mpp:g}; use a coarser mpp")
        grid = lay_grid(size, mpp, mpp=settings.mpp, size=settings.size, stride=settings.size)
        if not len(grid):
            width, height = (round(side * scale / settings.mpp) for side, scale in zip(size, mpp, strict=True))
            raise UnusableSlide(
                f"{width}×{height} px at {settings.mpp:g} µm/px: smaller than one tile of {settings.size} px; "
                "use a smaller size or mpp"
            )
        mask = tissue_mask(slide, indexed, settings.tissue, self.home)
        bits = np.unpackbits(mask.packed, axis=1, count=mask.shape[1]).astype(bool)
        kept = coverage(bits, grid, mask.extent) >= settings.minimum
        return _with(indexed, width=size[0], height=size[1], mpp=mpp, x=grid.x[kept], y=grid.y[kept])


def _with(indexed: IndexedSlide, **changes: Any) -> IndexedSlide:
    return IndexedSlide(**(vars(indexed) | changes))


def index_slides(
    found: Sequence[FoundSlide],
    source_mpp: Sequence[float | None],
    fallback_mpp: float | None,
    settings: CellSettings,
    home: Path,
    *,
    title: str,
) -> list[IndexedSlide]:
    """Find the cells of tissue of slides, but for those of files that have not changed since an earlier call.

    Processes that ask for the same wait for the first, and one that was killed leaves the masks it found to the next.
    Slides that cannot be used are tried again each time.

    Args:
        found: The slides.
        source_mpp: What the user says of each, in µm/px.
        fallback_mpp: What the user says of those whose file does not say it.
        settings: What makes a cell.
        home: As `slides_home`.
        title: What the slides are called, such as their folder.

    Returns:
        The slides in the same order, those that cannot be used with the reason.

    Raises:
        EosinError: If `home` cannot be written.
    """
    name = short_hash(_VERSION, title, settings.mpp, settings.size, settings.minimum, settings.tissue.plain())
    try:
        writable_directory(home / "tissue")
        with DirectoryLock(home, f".lock-{name}", wait=True):
            now = [_as_it_is(slide, mpp, fallback_mpp) for slide, mpp in zip(found, source_mpp, strict=True)]
            return _index(now, settings, home, home / f"index-{name}.parquet")
    except StorageError as error:
        raise StorageError(f"{error} (EOSIN_HOME names the place)") from None


def _index(now: Sequence[IndexedSlide], settings: CellSettings, home: Path, path: Path) -> list[IndexedSlide]:
    known = _read(path)
    done: dict[str, IndexedSlide] = {}
    for indexed in now:
        before = known.get(indexed.name)
        if before is not None and before.still(indexed):
            done[indexed.name] = before
    missing = [indexed for indexed in now if indexed.name not in done]
    if missing:
        with progress_bar() as progress:
            task = progress.add_task("finding tissue", total=len(now), completed=len(done))
            for indexed in read_ahead(_FindCells(settings, home), missing, min(default_workers(), len(missing))):
                done[indexed.name] = indexed
                progress.advance(task)
    usable = {name: indexed for name, indexed in done.items() if not indexed.reason}
    if usable.keys() != known.keys() or any(known[name] is not usable[name] for name in usable):
        _write(path, usable.values())
    return [done[indexed.name] for indexed in now]


def _as_it_is(slide: FoundSlide, source_mpp: float | None, fallback_mpp: float | None) -> IndexedSlide:
    given = (source_mpp, fallback_mpp)
    path = os.path.realpath(slide.path)
    try:
        status = slide.path.stat()
    except OSError as error:
        return IndexedSlide(slide.name, path, 0, 0, *given, reason=f"cannot be read ({error.strerror})")
    return IndexedSlide(slide.name, path, status.st_size, status.st_mtime_ns, *given)


_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("path", pa.string()),
        ("bytes", pa.int64()),
        ("modified_ns", pa.int64()),
        ("source_mpp", pa.float64()),
        ("fallback_mpp", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("mpp_x", pa.float64()),
        ("mpp_y", pa.float64()),
        ("x", pa.list_(pa.int32())),
        ("y", pa.list_(pa.int32())),
    ]
)
_PLAIN = ("name", "path", "bytes", "modified_ns", "source_mpp", "fallback_mpp", "width", "height", "x", "y")


def _write(path: Path, slides: Iterable[IndexedSlide]) -> None:
    """Save slides that can be used: what keeps others from it, such as a lack of permission, may end."""
    rows = [
        {name: getattr(slide, name) for name in _PLAIN} | {"mpp_x": slide.mpp[0], "mpp_y": slide.mpp[1]}
        for slide in sorted(slides, key=lambda slide: slide.name)
    ]
    with atomic_file(path) as file:
        pa.parquet.write_table(pa.Table.from_pylist(rows, _SCHEMA), file)


def _read(path: Path) -> dict[str, IndexedSlide]:
    """Return what is known; nothing where the file is absent or damaged, for it can be made again."""
    try:
        table = pa.parquet.read_table(path, schema=_SCHEMA)
    except (OSError, pa.ArrowInvalid):
        return {}
    return {slide.name: slide for slide in _rows(table)}


def _rows(table: Any) -> Iterator[IndexedSlide]:
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    corners = [columns[name] for name in ("x", "y")]
    values = [column.values.to_numpy().astype(np.int64) for column in corners]
    plain = table.drop_columns(["x", "y", "mpp_x", "mpp_y"]).to_pylist()
    mpp = np.stack([columns["mpp_x"].to_numpy(), columns["mpp_y"].to_numpy()], axis=1).tolist()
    ends = corners[0].offsets.to_numpy()
    for row, (start, end) in enumerate(pairwise(ends.tolist())):
        x, y = (value[start:end] for value in values)
        yield IndexedSlide(**plain[row], mpp=(mpp[row][0], mpp[row][1]), x=x, y=y)
