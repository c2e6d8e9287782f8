"""Tile thumbnails joined into one picture per task, so that hundreds of them cost little of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

__all__ = ["Sprite"]

_COLUMNS = 30
_LADDER = ((64, 80), (64, 65), (64, 50), (48, 60), (48, 40), (32, 50), (32, 25))
"""Side in pixels and JPEG quality, from the best to the smallest."""


class Sprite:
    """A grid of equal squares in one JPEG.

    Thumbnails are added as they come and each distinct one is kept once: the maps of several encoders show the same
    tiles.

    Args:
        most: Thumbnails kept at most; those after them have no picture.
    """

    def __init__(self, most: int = 10**6) -> None:
        self._most = most
        self._numbers: dict[bytes, int] = {}

    def add(self, thumbnail: bytes | None) -> int:
        """Return a JPEG or PNG thumbnail's position in the grid, -1 for one missing, unreadable or too many."""
        if not thumbnail:
            return -1
        if thumbnail not in self._numbers:
            if len(self._numbers) >= self._most:
                return -1
            try:
                _open(thumbnail)
            except (UnidentifiedImageError, OSError, ValueError):
                return -1
            self._numbers[thumbnail] = len(self._numbers)
        return self._numbers[thumbnail]

    def encode(self, budget: int) -> dict[str, Any] | None:
        """Draw the grid.

        Args:
            budget: Bytes of the data URI to stay below, if the smallest rendering allows.

        Returns:
            `src` (data URI), `side` (pixels of a square), `columns`; None when there are no thumbnails.
        """
        if not self._numbers:
            return None
        thumbnails = list(self._numbers)
        for side, quality in _LADDER:
            source = _uri(_grid(thumbnails, side), quality)
            if len(source) <= budget:
                break
        return {"src": source, "side": side, "columns": min(_COLUMNS, len(thumbnails)), "count": len(thumbnails)}


def _open(thumbnail: bytes) -> Image.Image:
    with Image.open(io.BytesIO(thumbnail), formats=("JPEG", "PNG")) as image:
        return image.convert("RGB")


def _grid(thumbnails: Sequence[bytes], side: int) -> Image.Image:
    columns = min(_COLUMNS, len(thumbnails))
    grid = Image.new("RGB", (columns * side, -(-len(thumbnails) // columns) * side), "white")
    for number, thumbnail in enumerate(thumbnails):
        tile = _open(thumbnail)
        if tile.size != (side, side):
            tile = tile.resize((side, side), Image.Resampling.BILINEAR)
        grid.paste(tile, (number % columns * side, number // columns * side))
    return grid


def _uri(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
