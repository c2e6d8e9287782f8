"""Slides to a tile store: many slides, many processes, many hosts."""

from __future__ import annotations

from eosin.tiling.config import TilingConfig
from eosin.tiling.display import slide_table
from eosin.tiling.jobs import Extras
from eosin.tiling.run import TilingSummary, parse_shard, tile_slides

__all__ = ["Extras", "TilingConfig", "TilingSummary", "parse_shard", "slide_table", "tile_slides"]
