"""What one process does with one slide: find its tissue, choose its tiles, cut and encode a part of them.

Everything here is a function of the job alone, so that a slide gives the same bytes whichever process cuts it, and
however often a run was stopped before.
"""

from __future__ import annotations

import dataclasses
import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, storage_errors
from eosin.data.shards import ShardWriter, shard_entry
from eosin.slides import (
    Grid,
    InterruptedSlide,
    Slide,
    Tissue,
    UnusableSlide,
    coverage,
    find_tissue,
    lay_grid,
    open_slide,
    read_mask,
    read_regions,
    region_mask,
    tissue_scale,
)
from eosin.tiling.coordinates import read_coordinates
from eosin.tiling.jobs import SlideJob
from eosin.tiling.preview import preview

__all__ = ["Chosen", "CutPart", "Plan", "cut_part", "open_for", "plan_slide", "shard_name", "too_damaged"]

# Share of a slide's tiles that may be unreadable, as where a scanner's file has a few damaged spots.
_DAMAGED_SHARE = 0.01
# How far the sides of a listed tile may be from each other in µm, as a ratio.
_SQUARE = 0.01

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """Tiles of a slide, in the order in which they are cut.

    Attributes:
        grid: int64 [N], which of `shapes` each tile has.
        x: int64 [N], left edge in level-0 px.
        y: int64 [N], upper edge in level-0 px.
        tissue: float64 [N], share of tissue; NaN where it was not measured.
        shapes: µm/px, side in px, and extent in level-0 px along x and y, of each field of view.
    """

    grid: IntArray
    x: IntArray
    y: IntArray
    tissue: FloatArray
    shapes: tuple[tuple[float, int, float, float], ...]

    def __len__(self) -> int:
        return len(self.x)

    def part(self, start: int, end: int) -> Chosen:
        """Return the tiles from one to another."""
        rows = slice(start, end)
        return Chosen(self.grid[rows], self.x[rows], self.y[rows], self.tissue[rows], self.shapes)


@dataclass(frozen=True)
class Plan:
    """What is known of a slide before its tiles are cut."""

    chosen: Chosen
    about: dict[str, Any]
    """What the slide's record says of it."""
    reason: str = ""
    """Why no tile is cut, if none is."""
    seen: dict[str, Any] = field(default_factory=dict)
    """The slide's file, and what was given for it, before anything of them was read."""


@dataclass(frozen=True)
class CutPart:
    """A shard that was written."""

    entry: dict[str, Any]
    """file, tiles and bytes."""
    manifest: Any
    """The shard's rows of the manifest, a pyarrow table."""
    damaged: tuple[str, ...]
    """Tiles that could not be read, with the reason."""


def open_for(job: SlideJob) -> Slide:
    """Open a job's slide.

    Raises:
        UnusableSlide: If it cannot be opened, or its µm/px is not known.
    """
    slide = open_slide(job.path, source_mpp=job.source_mpp, fallback_mpp=job.fallback_mpp)
    try:
        slide.require_mpp()
    except BaseException:
        slide.close()
        raise
    return slide


def plan_slide(slide: Slide, job: SlideJob, previews: Path) -> Plan:
    """Find a slide's tissue, choose its tiles, and save a picture of both.

    Args:
        slide: Opened, with a known µm/px.
        job: What to cut.
        previews: Folder in which the picture is saved.

    Raises:
        UnusableSlide: If it cannot be read, or a mask, region or list of coordinates does not fit it.
        EosinError: If the picture cannot be saved.
    """
    mpp = slide.require_mpp()
    size = (slide.width, slide.height)
    grids, reason = _grids(job, size, mpp)
    tissue, thumbnail, extent = _tissue(slide, job, mpp)
    pixel = mpp[0] * extent[0] / tissue.mask.shape[1] * mpp[1] * extent[1] / tissue.mask.shape[0]
    about = {
        "format": slide.format,
        "width": slide.width,
        "height": slide.height,
        "mpp_x": mpp[0],
        "mpp_y": mpp[1],
        "mpp_source": slide.mpp_source,
        "objective": slide.objective,
        "tissue_mm2": round(float(tissue.mask.sum()) * pixel / 1e6, 4),
        "pen_mm2": round(float(tissue.pen.sum()) * pixel / 1e6, 4),
        "notes": [*slide.notes, *tissue.notes],
    }
    shares = [coverage(tissue.mask, grid, extent) for grid in grids]
    # A tile of which a listed coordinate says that it counts is kept whatever the mask.
    least = 0.0 if job.coordinates is not None else job.config.minimum_tissue
    kept = [share >= least for share in shares]
    chosen = _in_order(grids, shares, kept)
    shown = list(zip(grids, kept, strict=True))
    picture = preview(thumbnail, tissue, shown, size, title=_title(job.name, about, chosen))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    with storage_errors(previews), atomic_file(previews / f"{job.key}.png") as file:
        file.write(encoded.getvalue())
    if not reason and not len(chosen):
        found = f"{about['tissue_mm2']:g} mm² of tissue in {pixel * tissue.mask.size / 1e6:.4g} mm²"
        reason = f"no tile has {least:.0%} of tissue ({found}); lower --minimum-tissue, or give a mask with --masks"
        if not tissue.mask.any():
            reason = "no tissue found; look at its preview, and give a mask with --masks if there is some"
            if job.regions is not None:
                reason = f"no tissue inside the regions of {job.regions}; look at its preview, and draw them around it"
            elif job.mask is not None:
                reason = f"no tissue in its mask {job.mask}; give one with pixels that are not 0 where tissue is"
    return Plan(chosen, about, reason)


def _grids(job: SlideJob, size: tuple[int, int], mpp: tuple[float, float]) -> tuple[list[Grid], str]:
    """Return the grids and, if all are empty, why."""
    config = job.config
    if job.coordinates is not None:
        grid = _listed(job.coordinates, mpp)
        outside = (grid.x < 0) | (grid.x + grid.level0_width > size[0] + 1)
        outside |= (grid.y < 0) | (grid.y + grid.level0_height > size[1] + 1)
        if outside.any():
            raise UnusableSlide(
                f"{int(outside.sum()):,} of {len(grid):,} coordinates in {job.coordinates} lie outside its "
                f"{size[0]:,}×{size[1]:,} px; give those of this slide"
            )
        return [grid], "" if len(grid) else f"no coordinates in {job.coordinates}"
    grids = [
        lay_grid(size, mpp, mpp=wanted, size=config.size, stride=config.stride or config.size) for wanted in config.mpp
    ]
    if any(len(grid) for grid in grids):
        return grids, ""
    finest = min(config.mpp)
    width, height = size[0] * mpp[0] / finest, size[1] * mpp[1] / finest
    return grids, (
        f"{width:.0f}×{height:.0f} px at {finest:g} µm/px: smaller than one tile of {config.size} px; "
        "use a smaller --size or --mpp"
    )


def _listed(path: Path, mpp: tuple[float, float]) -> Grid:
    """Return the grid that a file lists."""
    try:
        listed = read_coordinates(path)
    except EosinError as error:
        # A damaged file concerns its slide alone.
        raise UnusableSlide(str(error)) from None
    height = listed.level0_width * mpp[0] / mpp[1]
    if abs(listed.level0_height / height - 1) > _SQUARE:
        raise UnusableSlide(
            f"its pixels are {mpp[0]:.4g} × {mpp[1]:.4g} µm, so the tiles in {path} are no squares of tissue; cut it "
            "without --coordinates"
        )
    grid = Grid(
        listed.x, listed.y, listed.level0_width, height, listed.level0_width * mpp[0] / listed.size, listed.size
    )
    if len(np.unique(np.stack([grid.x, grid.y]), axis=1).T) < len(grid):
        raise UnusableSlide(f"{path} lists a tile twice; make it again")
    return grid


def _tissue(
    slide: Slide, job: SlideJob, mpp: tuple[float, float]
) -> tuple[Tissue, npt.NDArray[np.uint8], tuple[float, float]]:
    """Return the tissue to cut, within the user's mask and regions, the thumbnail it was found in, and its extent.

    The extent, width and height in level-0 px, is a little more than the slide's where the last pixels of the thumbnail
    lie partly outside; a mask of the user's ends with the slide.
    """
    scale = tissue_scale((slide.width, slide.height), mpp, job.config.tissue)
    thumbnail = slide.thumbnail(scale)
    shape = thumbnail.shape[:2]
    extent = (shape[1] * scale / mpp[0], shape[0] * scale / mpp[1])
    if job.mask is not None:
        tissue = Tissue(read_mask(job.mask, shape), np.zeros(shape, bool), math.nan, ("tissue from a given mask",))
        extent = (float(slide.width), float(slide.height))
    else:
        tissue = find_tissue(thumbnail, (scale, scale), job.config.tissue)
    if job.regions is not None:
        try:
            regions = read_regions(job.regions)
        except EosinError as error:
            # A damaged file concerns its slide alone.
            raise UnusableSlide(str(error)) from None
        inside = region_mask(regions, shape, extent)
        tissue = dataclasses.replace(tissue, mask=tissue.mask & inside)
    return tissue, thumbnail, extent


def _in_order(grids: list[Grid], shares: list[FloatArray], kept: list[npt.NDArray[np.bool_]]) -> Chosen:
    """Put the kept tiles of all grids in an order in which neighbors follow each other, whatever their µm/px.

    The slide is walked in blocks of the largest tile; within one, field of view by field of view and row by row. So
    the pixels under a block are decoded once.
    """
    block_x = max(grid.level0_width for grid in grids)
    block_y = max(grid.level0_height for grid in grids)
    number = np.concatenate([np.full(int(keep.sum()), place) for place, keep in enumerate(kept)]).astype(np.int64)
    x = np.concatenate([grid.x[keep] for grid, keep in zip(grids, kept, strict=True)])
    y = np.concatenate([grid.y[keep] for grid, keep in zip(grids, kept, strict=True)])
    tissue = np.concatenate([share[keep] for share, keep in zip(shares, kept, strict=True)])
    order = np.lexsort((x, y, number, np.floor(x / block_x), np.floor(y / block_y)))
    shapes = tuple((grid.mpp, grid.size, grid.level0_width, grid.level0_height) for grid in grids)
    return Chosen(number[order], x[order], y[order], tissue[order], shapes)


def _title(name: str, about: dict[str, Any], chosen: Chosen) -> str:
    counts = ", ".join(
        f"{int((chosen.grid == place).sum()):,} of {shape[1]} px at {shape[0]:.4g} µm/px"
        for place, shape in enumerate(chosen.shapes)
    )
    return f"{name}: {about['tissue_mm2']:.3g} mm² of tissue, {counts}"


def shard_name(job: SlideJob, part: int) -> str:
    """Return the file name of a part's shard."""
    return f"{job.key}-{part:03d}.arrow"


def too_damaged(damaged: int, tiles: int) -> bool:
    """Whether a slide of so many tiles, of which so many cannot be read, is not to be used."""
    return damaged > _DAMAGED_SHARE * tiles


def cut_part(slide: Slide, job: SlideJob, chosen: Chosen, part: int, shards: Path, total: int) -> CutPart:
    """Cut, encode and write one part of a slide's tiles; its shard appears whole.

    Args:
        slide: Opened.
        job: What to cut.
        chosen: The part's tiles.
        part: Number of the part.
        shards: Folder of the shards.
        total: Tiles of all parts.

    Raises:
        UnusableSlide: If more than 1 % of the slide's tiles cannot be read, or the disk does not give them.
        EosinError: If the disk is full or not writable.
    """
    path = shards / shard_name(job, part)
    damaged: list[str] = []
    with atomic_file(path) as file:
        writer = ShardWriter(file)
        for row in range(len(chosen)):
            mpp, size, level0_width, level0_height = chosen.shapes[chosen.grid[row]]
            x, y, tissue = int(chosen.x[row]), int(chosen.y[row]), float(chosen.tissue[row])
            name = f"{job.name}/{mpp:.6g}/x{x}_y{y}"
            try:
                pixels = slide.read(x, y, mpp, size, size)
            except InterruptedSlide:
                # What a disk or network loses for a while would be missing for good.
                raise
            except OSError as error:
                raise InterruptedSlide(f"cannot be read any further ({error.strerror or error})") from None
            except UnusableSlide as error:
                damaged.append(f"{name}: {error}")
                if too_damaged(len(damaged), total):
                    raise UnusableSlide(
                        f"more than {_DAMAGED_SHARE:.0%} of its tiles are unreadable ({error})"
                    ) from None
                continue
            writer.add(
                encode(pixels, job),
                name=name,
                patient=job.patient,
                slide=job.name,
                mpp=mpp,
                x=x,
                y=y,
                level0_width=level0_width,
                level0_height=level0_height,
                tissue=tissue,
            )
        manifest = writer.close()
    return CutPart(shard_entry(path, len(manifest)), manifest, tuple(damaged))


def encode(pixels: npt.NDArray[np.uint8], job: SlideJob) -> bytes:
    """Encode a tile, uint8 [h, w, 3]."""
    import imagecodecs

    if job.config.encoding == "jpeg":
        return bytes(imagecodecs.jpeg8_encode(pixels, level=job.config.quality, subsampling="444"))
    return bytes(imagecodecs.png_encode(pixels, level=4))
