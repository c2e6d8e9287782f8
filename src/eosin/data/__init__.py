"""Tiles at rest and in motion: folders, manifests, the tile store, slides on the fly, and the deterministic loader."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eosin.data.images import UnreadableImage, decode_image
    from eosin.data.loader import Batch, MakeViews, TrainingLoader, iterate_tiles, tiles_at
    from eosin.data.packing import PackSummary, pack
    from eosin.data.prefetch import pinned
    from eosin.data.quarantine import Quarantine
    from eosin.data.sources import open_tiles
    from eosin.data.store import StoreWriter
    from eosin.data.tiles import Names, Tiles, load_square
    from eosin.data.workers import default_workers

# Where each name is. torch takes seconds to import, and what only writes stores does without it.
_HOMES = {
    "Batch": "loader",
    "MakeViews": "loader",
    "Names": "tiles",
    "PackSummary": "packing",
    "Quarantine": "quarantine",
    "StoreWriter": "store",
    "Tiles": "tiles",
    "TrainingLoader": "loader",
    "UnreadableImage": "images",
    "decode_image": "images",
    "default_workers": "workers",
    "iterate_tiles": "loader",
    "load_square": "tiles",
    "open_tiles": "sources",
    "pack": "packing",
    "pinned": "prefetch",
    "tiles_at": "loader",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eosin.data' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"eosin.data.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
