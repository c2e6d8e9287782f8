"""Outlines of nuclei over their image, to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from eosin.core.files import atomic_file
from eosin.nuclei.colors import color_of
from eosin.nuclei.found import Nuclei

__all__ = ["draw_outlines", "write_overlay"]

# Below this side an image is drawn at twice its size: a line of one pixel would hide what it surrounds.
_SMALL = 1024
_LEGEND = 26


def draw_outlines(pixels: npt.NDArray[np.uint8], parts: Iterable[Nuclei], factor: float = 1.0) -> Image.Image:
    """Draw outlines by the color of their type: a line inside the nucleus's border, a spot where it is too small.

    Args:
        pixels: uint8 [h, w, 3], R, G, B.
        parts: The nuclei.
        factor: px of the nuclei per px of the image.

    Returns:
        The image, twice as large where it is small, a legend below it where there are types.
    """
    return _drawn(pixels, parts, factor, ())


def write_overlay(
    pixels: npt.NDArray[np.uint8],
    parts: Iterable[Nuclei],
    path: Path,
    factor: float = 1.0,
    classes: Sequence[str] = (),
) -> None:
    """Write what `draw_outlines` draws, whole or not at all; arguments as there, and types 1 to n by name."""
    image = _drawn(pixels, parts, factor, classes)
    with atomic_file(path) as file:
        image.save(file, "PNG", compress_level=1)


def _drawn(
    pixels: npt.NDArray[np.uint8], parts: Iterable[Nuclei], factor: float, classes: Sequence[str]
) -> Image.Image:
    image = Image.fromarray(pixels)
    if max(image.size) <= _SMALL:
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
        factor /= 2
    pen = ImageDraw.Draw(image)
    seen = Counter[int]()
    for part in parts:
        seen.update(part.types.tolist())
        for place in range(len(part)):
            color = color_of(int(part.types[place]))
            # Corners lie between pixels; a line is drawn through pixels.
            ring = (part.outline(place) / factor - 0.5).round().astype(int)
            corners = [(x, y) for x, y in ring.tolist()]
            if np.ptp(ring, axis=0).max() < 4:
                pen.polygon(corners, fill=color)
            else:
                pen.line([*corners, corners[0]], fill=color, width=1 if factor > 0.75 else 2)
    return _with_legend(image, seen, classes) if classes else image


def _with_legend(image: Image.Image, seen: Counter[int], classes: Sequence[str]) -> Image.Image:
    canvas = Image.new("RGB", (image.width, image.height + _LEGEND), (40, 40, 40))
    canvas.paste(image)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    x, y = 8, image.height + 5
    for kind, name in enumerate(["background", *classes]):
        if not kind and not seen[0]:
            continue
        pen.rectangle((x, y + 2, x + 12, y + 14), fill=color_of(kind))
        text = f"{name} {seen[kind]:,}"
        pen.text((x + 18, y), text, fill=(255, 255, 255), font=font)
        x += 34 + int(pen.textlength(text, font=font))
    return canvas
