"""A contact sheet: every tissue on several slides, side by side, to look at."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from eosin.synthetic.collection import NOTICE
from eosin.synthetic.tiles import TISSUES, check_whole, render_tile

_GAP, _CAPTION = 2, 14


def contact_sheet(*, slides: int = 4, size: int = 128, mpp: float = 0.5, seed: int = 0) -> Image.Image:
    """Draw one column a tissue, one row a slide, under a line that says the tissue is synthetic.

    Args:
        slides: How many rows.
        size: Side of a tile in pixels.
        mpp: µm per pixel.
        seed: Seed of the collection.

    Returns:
        An RGB picture.

    Raises:
        EosinError: An argument is out of its range.
    """
    check_whole("slides", slides, 1, 100)
    step = size + _GAP
    rows = []
    for slide in range(slides):
        tiles = [render_tile(name, size=size, mpp=mpp, seed=seed, slide=slide, index=slide) for name in TISSUES]
        padded = [np.pad(tile.image, ((0, 0), (0, _GAP), (0, _GAP)), constant_values=255) for tile in tiles]
        rows.append(np.concatenate(padded, axis=2))
    grid = Image.fromarray(np.ascontiguousarray(np.concatenate(rows, axis=1).transpose(1, 2, 0)))
    sheet = Image.new("RGB", (grid.width, grid.height + 2 * _CAPTION), "white")
    sheet.paste(grid, (0, 2 * _CAPTION))
    pen = ImageDraw.Draw(sheet)
    pen.text((2, 1), f"eosin.synthetic: {NOTICE}; mpp {mpp:g}, one slide a row", fill="black")
    for column, name in enumerate(TISSUES):
        pen.text((column * step + 2, _CAPTION + 1), name, fill="black")
    return sheet
