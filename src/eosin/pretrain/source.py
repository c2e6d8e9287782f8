"""The unlabelled tiles of a run."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from eosin.augment.stain_statistics import load_statistics
from eosin.core.collective import processes
from eosin.core.errors import EosinError
from eosin.core.files import short_hash
from eosin.data import Tiles, open_tiles
from eosin.data.images import MINIMUM_SIDE
from eosin.pretrain.config import LARGEST_MPP, SMALLEST_MPP, PretrainConfig

__all__ = ["open_source", "resolutions", "tiles_hash", "views_hash"]


def open_source(config: PretrainConfig) -> Tiles:
    """Open the unlabelled tiles.

    Raises:
        EosinError: If they are not given, cannot be opened, or do not fit the batch and the processes.
    """
    if config.data.source is None:
        raise EosinError("field 'data.source' is missing; give the tiles with --data SOURCE")
    tiles = open_tiles(config.data.source, splits=config.data.splits)
    if len(tiles) < 2:
        raise EosinError(f"{config.data.source}: one tile has no other to be told apart from; give 2 or more")
    if config.batch_size > len(tiles):
        raise EosinError(
            f"batch_size {config.batch_size} is larger than the {len(tiles)} tiles of {config.data.source}; "
            f"use --batch_size {2 ** (len(tiles).bit_length() - 1)} or less"
        )
    pieces = processes() * config.accumulate
    if config.batch_size % pieces:
        raise EosinError(
            f"batch_size {config.batch_size} cannot be shared by {processes()} processes x accumulate "
            f"{config.accumulate}; use a multiple of {pieces}"
        )
    if config.batch_size == pieces:
        raise EosinError(
            f"batch_size {config.batch_size} over {processes()} processes x accumulate {config.accumulate} leaves one "
            f"tile a forward pass; use --batch_size {2 * pieces} or more"
        )
    return tiles


def resolutions(tiles: Tiles, config: PretrainConfig) -> npt.NDArray[np.float64] | None:
    """Return the µm/px of every tile where a view has a field of view.

    Raises:
        EosinError: If a tile's is not known or no resolution of a microscope, or a field is too small for it.
    """
    views = [name for name, view in config.augment.views.items() if view.count and view.field_of_view]
    if not views:
        return None
    mpp = np.full(len(tiles), np.nan) if tiles.mpp is None else tiles.mpp.astype(np.float64)
    wrong = np.flatnonzero((mpp < SMALLEST_MPP) | (mpp > LARGEST_MPP))
    if len(wrong):
        raise EosinError(
            f"{tiles.spec}: mpp {mpp[wrong[0]]:g} of tile '{tiles.names[wrong[0]]}' is no resolution in µm/px "
            f"({SMALLEST_MPP:g} to {LARGEST_MPP:g}); correct it, or leave it empty where it is unknown"
        )
    if config.data.mpp is not None:
        mpp = np.where(np.isnan(mpp), config.data.mpp, mpp)
    unknown = np.flatnonzero(np.isnan(mpp))
    if len(unknown):
        raise EosinError(
            f"field 'augment.views.{views[0]}.field_of_view': {len(unknown):,} of {len(tiles):,} tiles of {tiles.spec} "
            f"have no µm/px (first '{tiles.names[unknown[0]]}'); give it with --data.mpp, or in a manifest's column mpp"
        )
    coarsest = int(mpp.argmax())
    least = MINIMUM_SIDE * mpp[coarsest]
    for name in views:
        smallest = config.augment.views[name].field_of_view[0]  # type: ignore[index]
        if smallest < least:
            raise EosinError(
                f"field 'augment.views.{name}.field_of_view': {smallest:g} µm are {smallest / mpp[coarsest]:.2g} px of "
                f"tile '{tiles.names[coarsest]}' at {mpp[coarsest]:g} µm/px; give {least:g} or more"
            )
    return mpp


def views_hash(config: PretrainConfig, mpp: npt.NDArray[np.float64] | None) -> str:
    """Identify what views depend on and the configuration only names: stain statistics in files, and tiles' µm/px."""
    drawn = []
    for name, view in config.augment.views.items():
        if view.count and view.randstainna.probability:
            statistics = load_statistics(view.randstainna.statistics)
            fields = {"space", "tissue_only", "independent", "mixture"}
            drawn.append((name, statistics.model_dump(mode="json", include=fields)))
    return short_hash(drawn, "" if mpp is None else hashlib.sha256(mpp.tobytes()).hexdigest())


def tiles_hash(tiles: Tiles) -> str:
    """Identify which tiles there are, in which order; their pixels are not read."""
    digest = hashlib.sha256()
    for name in tiles.names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()
