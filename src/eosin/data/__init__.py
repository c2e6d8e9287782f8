"""Tiles at rest and in motion: folders, manifests, the tile store, and the deterministic loader."""

from __future__ import annotations

from eosin.data.images import UnreadableImage, decode_image
from eosin.data.loader import Batch, MakeViews, TrainingLoader, iterate_tiles, tiles_at
from eosin.data.pack import PackSummary, pack
from eosin.data.prefetch import pinned
from eosin.data.quarantine import Quarantine
from eosin.data.sources import open_tiles
from eosin.data.store import StoreWriter
from eosin.data.tiles import Names, Tiles, load_square
from eosin.data.workers import default_workers

__all__ = [
    "Batch",
    "MakeViews",
    "Names",
    "PackSummary",
    "Quarantine",
    "StoreWriter",
    "Tiles",
    "TrainingLoader",
    "UnreadableImage",
    "decode_image",
    "default_workers",
    "iterate_tiles",
    "load_square",
    "open_tiles",
    "pack",
    "pinned",
    "tiles_at",
]
