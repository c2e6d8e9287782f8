"""A contact sheet: each row a tile and what training would see of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.augment import AugmentConfig, Views
from eosin.core.draws import Draws

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["Column", "draw_sheet", "sample_views", "stacked"]

UInt8Array = npt.NDArray[np.uint8]

# Views of a tile to show: those of as many steps as fill a row of this many.
_VIEWS = 8
_CELL, _GAP, _MARGIN = 176, 4, 14


@dataclass(frozen=True)
class Column:
    """One column of the sheet.

    Attributes:
        title: Heading.
        images: uint8 [rows, 3, side, side] RGB.
        share: Side relative to the largest view's.
    """

    title: str
    images: UInt8Array
    share: float = 1.0


def sample_views(tiles: Tensor, augment: AugmentConfig, seed: int) -> list[Column]:
    """Make the views that training would, in color again.

    Args:
        tiles: uint8 [B, 3, H, W].
        augment: The views; steps are drawn until a row holds about eight.
        seed: Seed of the draws, as of a run.

    Returns:
        A column a view, in the order in which a method gets them.
    """
    views = Views(augment)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (augment.mean, augment.std))
    largest = max(kind.size for kind in augment.views.values() if kind.count)
    names = [
        f"{name} {number + 1}" if kind.count > 1 else name
        for name, kind in augment.views.items()
        for number in range(kind.count)
    ]
    columns = []
    steps = max(1, _VIEWS // len(views))
    for step in range(steps):
        for name, view in zip(names, views(tiles, Draws(seed, step, range(len(tiles)))), strict=True):
            pixels = view.mul(std).add(mean).clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
            title = name if steps == 1 else f"{name}, step {step}"
            columns.append(Column(title, pixels, view.shape[-1] / largest))
    return columns


def draw_sheet(title: str, columns: Sequence[Column]) -> Image.Image:
    """Draw the columns under a line that says what they are.

    Args:
        title: The first line.
        columns: At least one, all with the same number of rows.

    Returns:
        An RGB picture.
    """
    from PIL import Image, ImageDraw

    rows = len(columns[0].images)
    sides = [max(1, round(_CELL * column.share)) for column in columns]
    head = _MARGIN + 28 + 24
    width = 2 * _MARGIN + sum(sides) + _GAP * (len(columns) - 1)
    height = head + rows * (_CELL + _GAP) + _MARGIN
    heading = _font(18)
    sheet = Image.new("RGB", (max(width, 2 * _MARGIN + int(heading.getlength(title)) + 1), height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), title, fill="black", font=heading)
    left = _MARGIN
    for column, side in zip(columns, sides, strict=True):
        caption = _fitting(column.title, side)
        pen.text((left, head - 20), caption, fill="black", font=_font(13))
        for row, image in enumerate(column.images):
            cell = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            cell = cell if cell.width == side else cell.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(cell, (left, head + row * (_CELL + _GAP) + (_CELL - side) // 2))
        left += side + _GAP
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Stack pictures from top to bottom on white, centered."""
    from PIL import Image

    width = max(picture.width for picture in pictures)
    sheet = Image.new("RGB", (width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        sheet.paste(picture, ((width - picture.width) // 2, top))
        top += picture.height
    return sheet


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The plots' font, which matplotlib brings: Pillow's own lacks letters such as µ."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _fitting(text: str, width: int) -> str:
    """Cut a caption to the width of its column."""
    font = _font(13)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
