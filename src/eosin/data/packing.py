"""Pack sources of images into one tile store, cutting large images into tiles."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.core.console import progress_bar
from eosin.core.errors import EosinError
from eosin.core.files import append_json_line
from eosin.data.images import MINIMUM_SIDE, UnreadableImage, decode_image, open_image
from eosin.data.quarantine import Quarantine
from eosin.data.sources import open_tiles
from eosin.data.store import StoreWriter
from eosin.data.tiles import FloatColumn, TextColumn, Tiles
from eosin.data.workers import read_ahead

__all__ = ["PackSummary", "pack"]

JPEG_QUALITY = 95


@dataclass(frozen=True)
class PackSummary:
    """What `pack` did."""

    out: Path
    images: int
    """Readable images read."""
    tiles: int
    """Tiles written."""
    cut: int
    """Images that were cut."""
    margin: float
    """Share of the cut images' area lying in margins narrower than a tile, which are left out."""
    unreadable: tuple[tuple[str, str], ...]
    """(name, reason) of each image left out."""
    remarks: tuple[str, ...]
    """What opening the sources left out."""

    def __str__(self) -> str:
        """Return the closing line."""
        parts = [f"{self.out}: {self.tiles:,} tiles from {self.images:,} images"]
        if self.cut:
            parts.append(f"{self.cut:,} images cut, {self.margin:.1%} of their area in margins left out")
        if self.unreadable:
            name, reason = self.unreadable[0]
            listed = self.out / "quarantine.jsonl"
            parts.append(f"{len(self.unreadable):,} unreadable, listed in {listed} (first '{name}': {reason})")
        else:
            parts.append("no unreadable images")
        return "; ".join([*parts, *self.remarks])


@dataclass(frozen=True)
class _Piece:
    """A tile of an image: its encoded bytes and, where it was cut, its left upper corner in px of the image."""

    data: bytes
    corner: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Pieces:
    pieces: tuple[_Piece, ...]
    pixels: int


def pack(
    sources: Sequence[str],
    out: Path,
    *,
    cut: int | None = None,
    splits: Sequence[str] | None = None,
    label_column: str = "label",
    quarantine_limit: float = 0.01,
    workers: int = 0,
) -> PackSummary:
    """Write a tile store from one or more sources.

    Without `cut` every readable image is stored byte for byte under its own name; from several sources, under the last
    part of the source's path and its own name.

    With `cut`, an image of which one side is longer than `cut` and neither is shorter is cut from its left upper
    corner into tiles that do not overlap; margins narrower than a tile are left out and counted. Tiles of a JPEG are
    encoded as JPEG (quality 95, 4:4:4), of any other image as PNG, which loses nothing of its 8-bit RGB pixels. A tile
    is named IMAGE/xX_yY, has x and y in px of the image, and its slide is the image's unless known: its name without
    the suffix. Other images are kept byte for byte.

    Args:
        sources: As `open_tiles`.
        out: The store's directory; must not exist yet, or be empty.
        cut: Side of the tiles in px.
        splits: Keep only these splits.
        label_column: Column that holds the label.
        quarantine_limit: Share of the images that may be unreadable.
        workers: Processes that read, check and cut; 0 does it in this one.

    Returns:
        Counts, and the unreadable images, which are also listed in OUT/quarantine.jsonl.

    Raises:
        EosinError: If a source is faulty, too many images are unreadable, or the store cannot be written; nothing is
            left behind.
    """
    if cut is not None and cut < MINIMUM_SIDE:
        raise EosinError(f"cut {cut}: tiles must be at least {MINIMUM_SIDE} px wide")
    opened = [open_tiles(source, label_column=label_column, splits=splits) for source in sources]
    if not opened:
        raise EosinError("no source given; name a folder, a manifest or a store")
    quarantine = Quarantine(None, quarantine_limit)
    counts = _Counts()
    with StoreWriter(out) as writer, progress_bar() as progress:
        total = sum(map(len, opened))
        task = progress.add_task("packing", total=total)
        for tiles, prefix in zip(opened, _prefixes(opened), strict=True):
            for index, result in enumerate(read_ahead(_Cutter(tiles, cut), range(len(tiles)), workers)):
                progress.advance(task)
                name = prefix + tiles.names[index]
                if isinstance(result, str):
                    quarantine.add(name, result)
                    quarantine.check(total)
                    continue
                counts.add(result, cut)
                for piece in result.pieces:
                    _add(writer, tiles, index, name, piece)
        unreadable = tuple((name, quarantine.reason(name)) for name in quarantine.names)
        for name, reason in unreadable:
            append_json_line(writer.directory / "quarantine.jsonl", {"name": name, "reason": reason})
    remarks = tuple(f"{tiles.spec}: {remark}" for tiles in opened for remark in tiles.remarks)
    return PackSummary(Path(out), counts.images, counts.tiles, counts.cut, counts.margin, unreadable, remarks)


@dataclass
class _Counts:
    images: int = 0
    tiles: int = 0
    cut: int = 0
    area: int = 0
    kept: int = 0

    def add(self, result: _Pieces, cut: int | None) -> None:
        self.images += 1
        self.tiles += len(result.pieces)
        if cut is not None and result.pieces[0].corner is not None:
            self.cut += 1
            self.area += result.pixels
            self.kept += len(result.pieces) * cut * cut

    @property
    def margin(self) -> float:
        return 1 - self.kept / self.area if self.area else 0.0


class _Cutter:
    """Reads an image, makes sure that it can be decoded, and cuts it; runs in the workers."""

    def __init__(self, tiles: Tiles, cut: int | None) -> None:
        self.tiles = tiles.without_columns()
        self.cut = cut

    def __call__(self, index: int, /) -> _Pieces | str:
        try:
            data = self.tiles.read(index)
            pixels = decode_image(data)
        except UnreadableImage as error:
            return str(error)
        height, width = pixels.shape[1:]
        cut = self.cut
        if cut is None or min(height, width) < cut or max(height, width) == cut:
            return _Pieces((_Piece(data),), height * width)
        jpeg = open_image(data).format == "JPEG"
        pieces = [
            _Piece(_encoded(pixels[:, y : y + cut, x : x + cut], jpeg), (x, y)) for x, y in _corners(width, height, cut)
        ]
        return _Pieces(tuple(pieces), height * width)


def _corners(width: int, height: int, cut: int) -> Iterator[tuple[int, int]]:
    for y in range(0, height - cut + 1, cut):
        for x in range(0, width - cut + 1, cut):
            yield x, y


def _encoded(pixels: npt.NDArray[np.uint8], jpeg: bool) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if jpeg:
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(file, "PNG")
    return file.getvalue()


def _add(writer: StoreWriter, tiles: Tiles, index: int, name: str, piece: _Piece) -> None:
    slide, x, y = _text(tiles.slide, index), _number(tiles.x, index), _number(tiles.y, index)
    if piece.corner is not None:
        slide = slide or str(PurePosixPath(name).with_suffix(""))
        x, y = piece.corner
        name = f"{name}/x{x}_y{y}"
    writer.add(
        piece.data,
        name=name,
        label=_text(tiles.label, index),
        patient=_text(tiles.patient, index),
        slide=slide,
        split=_text(tiles.split, index),
        mpp=None if tiles.mpp is None or np.isnan(tiles.mpp[index]) else float(tiles.mpp[index]),
        x=x,
        y=y,
    )


def _text(column: TextColumn | None, index: int) -> str | None:
    return None if column is None or column[index] is None else str(column[index])


def _number(column: FloatColumn | None, index: int) -> int | None:
    return None if column is None or np.isnan(column[index]) else round(float(column[index]))


def _prefixes(opened: Sequence[Tiles]) -> list[str]:
    """Return what to put before the names of each source's tiles, so that names stay unique."""
    if len(opened) == 1:
        return [""]
    stems = [PurePosixPath(tiles.spec.partition(":")[2].partition("?")[0]).stem for tiles in opened]
    twice = {stem for stem in stems if stems.count(stem) > 1}
    return [f"{stem}-{place}/" if stem in twice else f"{stem}/" for place, stem in enumerate(stems, start=1)]
