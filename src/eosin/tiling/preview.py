"""Pictures to check a tiling by: the tissue found on a slide and the tiles kept, and many slides on one sheet."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from eosin.slides import Grid, Tissue

__all__ = ["SLIDES_PER_SHEET", "contact_sheet", "preview"]

SLIDES_PER_SHEET = 200
"""Slides that one contact sheet shows at most: more make several pages."""

_TISSUE, _PEN = (0, 110, 60), (0, 190, 230)
# One color a µm/px, from the first; further ones begin again.
_TILES = ((25, 70, 210), (225, 95, 0), (130, 30, 150), (95, 95, 95))
# Largest side of each of the two panels, and how far a small thumbnail is blown up.
_PANEL_WIDTH, _PANEL_HEIGHT, _BLOWN_UP = 590, 700, 4.0
_MARGIN, _GAP, _HEAD, _FOOT = 10, 12, 46, 28
# Colors of the palette: what a pathologist looks for does not need more, and the file has a fifth of the bytes.
_COLORS = 96
_CELL, _LABEL, _COLUMNS = 300, 20, 5

BoolArray = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]
Color = tuple[int, int, int]


def preview(
    thumbnail: UInt8Array,
    tissue: Tissue,
    grids: Sequence[tuple[Grid, BoolArray]],
    slide_size: tuple[int, int],
    title: str,
) -> Image.Image:
    """Draw a slide beside itself with its tissue outlined, pen marks filled, and the kept tiles.

    Args:
        thumbnail: The whole slide, uint8 [h, w, 3].
        tissue: What was found on it.
        grids: Each grid of tiles with bool [N]: which tiles are kept. A color a grid; tiles that are a few pixels wide
            are filled, larger ones outlined.
        slide_size: Width and height of the slide in level-0 px.
        title: What stands above; long ones take two lines.

    Returns:
        A palette picture, at most 1,212 px wide and 774 px high, with a scale bar in mm or µm.
    """
    height, width = thumbnail.shape[:2]
    scale = min(_PANEL_WIDTH / width, _PANEL_HEIGHT / height, _BLOWN_UP)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    plain = Image.fromarray(np.ascontiguousarray(thumbnail))
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    plain = plain.resize(size, resample, reducing_gap=2.0)
    marked = _marked(plain, tissue, grids, slide_size)
    entries = _legend(tissue, grids)
    legend_at = max(size[0] + _GAP, 170)
    legend = [30 + int(_font(12).getlength(text)) for text, _ in entries]
    inner = max(2 * size[0] + _GAP, legend_at + sum(legend), 360)
    sheet = Image.new("RGB", (inner + 2 * _MARGIN, _HEAD + size[1] + _FOOT), "white")
    brush = ImageDraw.Draw(sheet)
    for number, line in enumerate(_wrapped(title, inner)):
        brush.text((_MARGIN, 6 + 19 * number), line, fill="black", font=_font(14))
    sheet.paste(plain, (_MARGIN, _HEAD))
    sheet.paste(marked, (_MARGIN + size[0] + _GAP, _HEAD))
    if grids:
        grid = grids[0][0]
        slide_mpp = grid.mpp * grid.size / grid.level0_width
        _scale_bar(brush, size[0], slide_mpp * slide_size[0] / size[0], _HEAD + size[1] + 9)
    left = _MARGIN + legend_at
    for (text, color), length in zip(entries, legend, strict=True):
        brush.rectangle((left, _HEAD + size[1] + 9, left + 11, _HEAD + size[1] + 20), fill=color)
        brush.text((left + 16, _HEAD + size[1] + 7), text, fill="black", font=_font(12))
        left += length
    return _few_colors(sheet)


def contact_sheet(previews: Iterable[tuple[str, Image.Image]], title: str = "", columns: int = _COLUMNS) -> Image.Image:
    """Lay out previews of many slides in labeled cells.

    Args:
        previews: Label and preview of each slide; at most `SLIDES_PER_SHEET` make a page that is still easy to open.
            Each is shrunk as it comes, so a generator keeps one in memory.
        title: What stands above.
        columns: Cells in a row, as far as there are as many slides.

    Returns:
        A palette picture, 310 px a column wide.
    """
    cells = [(label, _shrunk(picture)) for label, picture in previews]
    columns = max(1, min(columns, len(cells)))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(picture.height for _, picture in row) + _LABEL + _GAP for row in rows]
    head = 30 if title else _GAP
    sheet = Image.new("RGB", (columns * (_CELL + _MARGIN) + _MARGIN, head + sum(heights) + _MARGIN), "white")
    brush = ImageDraw.Draw(sheet)
    brush.text((_MARGIN, 6), _fitting(title, sheet.width - 2 * _MARGIN, 14), fill="black", font=_font(14))
    top = head
    for row, height in zip(rows, heights, strict=True):
        for column, (label, picture) in enumerate(row):
            left = _MARGIN + column * (_CELL + _MARGIN)
            brush.text((left, top), _fitting(label, _CELL, 12), fill="black", font=_font(12))
            sheet.paste(picture, (left, top + _LABEL))
        top += height
    return _few_colors(sheet)


def _few_colors(sheet: Image.Image) -> Image.Image:
    """Reduce to a palette: the colors drawn with as they are, and those that a ninth of the pixels ask for."""
    sample = sheet.resize((max(1, sheet.width // 3), max(1, sheet.height // 3)), Image.Resampling.NEAREST)
    asked = sample.quantize(_COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette() or []
    fixed = [channel for color in (_TISSUE, _PEN, *_TILES, (255, 255, 255), (0, 0, 0)) for channel in color]
    palette = Image.new("P", (1, 1))
    palette.putpalette(fixed + asked[: 3 * _COLORS])
    return sheet.quantize(palette=palette, dither=Image.Dither.NONE)


def _shrunk(picture: Image.Image) -> Image.Image:
    """The panels of a preview, without title and legend, in a cell's size."""
    panels = picture.convert("RGB").crop((0, _HEAD, picture.width, max(picture.height - _FOOT, _HEAD + 1)))
    scale = min(_CELL / panels.width, _CELL / panels.height, 1.0)
    return panels.resize(
        (max(1, round(panels.width * scale)), max(1, round(panels.height * scale))), Image.Resampling.BOX
    )


def _marked(
    plain: Image.Image,
    tissue: Tissue,
    grids: Sequence[tuple[Grid, BoolArray]],
    slide_size: tuple[int, int],
) -> Image.Image:
    size = plain.size
    inside, pen = _at_size(tissue.mask, size), _at_size(tissue.pen, size)
    pixels = np.array(plain, np.float32)
    # What is no tissue steps back, so that the rest is what one looks at.
    pixels[~inside] = 0.45 * pixels[~inside] + 0.55 * 255
    pixels[pen] = 0.3 * pixels[pen] + 0.7 * np.array(_PEN, np.float32)
    across, down = size[0] / slide_size[0], size[1] / slide_size[1]
    fine = []
    for number, (grid, kept) in enumerate(grids):
        color = _TILES[number % len(_TILES)]
        if min(grid.level0_width * across, grid.level0_height * down) < 5:
            where = np.zeros(inside.shape, bool)
            for left, top, right, bottom in _boxes(grid, kept, (across, down), 0):
                where[top : bottom + 1, left : right + 1] = True
            pixels[where] = 0.65 * pixels[where] + 0.35 * np.array(color, np.float32)
        else:
            fine.append((grid, kept, color))
    edge = _outline(inside)
    pixels[edge] = _TISSUE
    picture = Image.fromarray(pixels.astype(np.uint8))
    brush = ImageDraw.Draw(picture)
    # Coarse fields first, so that finer ones are not hidden; each a pixel further in.
    for step, (grid, kept, color) in enumerate(sorted(fine, key=lambda item: -item[0].level0_width)):
        for box in _boxes(grid, kept, (across, down), step):
            brush.rectangle(box, outline=color)
    return picture


def _boxes(grid: Grid, kept: BoolArray, scale: tuple[float, float], inset: int) -> list[tuple[int, int, int, int]]:
    """First and last column and row of each kept tile on the picture."""
    left, top = grid.x[kept] * scale[0], grid.y[kept] * scale[1]
    right, bottom = left + grid.level0_width * scale[0], top + grid.level0_height * scale[1]
    first = np.floor(left).astype(int) + inset, np.floor(top).astype(int) + inset
    last = (
        np.maximum(np.ceil(right).astype(int) - 1 - inset, first[0]),
        np.maximum(np.ceil(bottom).astype(int) - 1 - inset, first[1]),
    )
    return list(zip(first[0].tolist(), first[1].tolist(), last[0].tolist(), last[1].tolist(), strict=True))


def _at_size(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    if not mask.any():
        return np.zeros((size[1], size[0]), bool)
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, Image.Resampling.BOX)) >= 128


def _outline(mask: BoolArray) -> BoolArray:
    """The pixels of a mask at its edge, two wide."""
    wide = np.pad(mask, 2, constant_values=False)
    height, width = mask.shape
    core = mask.copy()
    for shift in (0, 1, 3, 4):
        core &= wide[shift : shift + height, 2 : 2 + width] & wide[2 : 2 + height, shift : shift + width]
    return mask & ~core


def _legend(tissue: Tissue, grids: Sequence[tuple[Grid, BoolArray]]) -> list[tuple[str, Color]]:
    entries: list[tuple[str, Color]] = [("tissue", _TISSUE)] if tissue.mask.any() else []
    if tissue.pen.any():
        entries.append(("pen, left out", _PEN))
    for number, (grid, kept) in enumerate(grids):
        entries.append((f"{int(kept.sum()):,} tiles, {grid.mpp:.4g} µm/px", _TILES[number % len(_TILES)]))
    return entries


def _scale_bar(brush: ImageDraw.ImageDraw, width: int, mpp: float, top: int) -> None:
    """Draw a bar of a round length, about a fifth of the panel, with its length in mm or µm."""
    wanted = 0.25 * width * mpp
    power = 10.0 ** math.floor(math.log10(wanted))
    length = max(step for step in (1, 2, 5) if step * power <= wanted) * power
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    brush.rectangle((_MARGIN, top + 3, _MARGIN + max(1, round(length / mpp)), top + 6), fill="black")
    brush.text((_MARGIN + max(1, round(length / mpp)) + 6, top - 3), text, fill="black", font=_font(12))


def _wrapped(title: str, width: int) -> list[str]:
    """Break a title into at most two lines."""
    font = _font(14)
    if font.getlength(title) <= width:
        return [title]
    words = title.split(" ")
    count = 1
    while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
        count += 1
    return [_fitting(" ".join(words[:count]), width, 14), _fitting(" ".join(words[count:]), width, 14)]


def _fitting(text: str, width: int, size: int) -> str:
    """Cut a text to a width, in the middle: names of slides differ most at their ends."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    keep = len(text)
    while keep > 2 and font.getlength(text[: keep // 2] + "…" + text[-(keep - keep // 2) :]) > width:
        keep -= 1
    return text[: keep // 2] + "…" + text[-(keep - keep // 2) :]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings, found without importing it: Pillow's own lacks letters such as µ."""
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    fonts = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), size)
