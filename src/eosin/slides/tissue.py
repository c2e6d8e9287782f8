"""Where the tissue of a slide is, and where somebody drew on it with a pen.

Glass, dust, shadows and scanner padding are gray once the color of the glass is taken out; stained tissue is not. So a
pixel is tissue when its saturation 1 - min/max of R, G, B exceeds a threshold. By the law of Beer and Lambert that is a
difference of optical densities, log(max/min), so pale and dark tissue of one stain have it alike in proportion.

Ink is told by what hematoxylin and eosin cannot do. Both absorb green most: in every mixture of them red is absorbed
at most about as strongly as green, and blue less (Ruifrok and Johnston 2001 give 0.65, 0.70, 0.29 for hematoxylin and
0.07, 0.99, 0.11 for eosin as optical densities in R, G, B). Blue and green pens absorb red clearly more than green; red
and black pens absorb blue nearly as much as green. Where a thin layer of red ink lies on eosin the two cannot be told
apart by color, and the tissue stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field

from eosin.core.config import Config

__all__ = ["Tissue", "TissueConfig", "find_tissue", "tissue_scale"]

# Bounds of the threshold on saturation. JPEG noise and the steps where fields of view were stitched stay below the
# lower one; faint stroma and mucus stay above the upper one.
_LOWEST, _HIGHEST = 0.05, 0.07
# Brightest channel (0 to 255) of a black fill, and of what is too dark to have a color.
_BLACK = 30
# What glass can look like: at least so bright, at most so saturated, and flat from one pixel to the next.
_GLASS_DARKEST, _GLASS_TINT, _GLASS_STEP = 150, 0.1, 4
# Share of the slide that must look like glass for its color to be taken from there.
_GLASS_SHARE = 0.02
# µm/px at which ink is looked for, and how far its faint rim may reach from where it is clear, in µm.
_INK_MPP, _INK_RIM = 24.0, 200.0
# Share of a tinted part that must be clear ink for all of it to be taken for ink.
_CORE_SHARE = 0.3

# Pixels that a thumbnail has at most, and those of its longer side at least.
_THUMBNAIL_PIXELS, _THUMBNAIL_SIDE = 1 << 24, 128
# A speck is never a larger share of the image than this.
_SPECK_SHARE = 0.05

BoolArray = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]


class TissueConfig(Config):
    """How tissue is found."""

    mpp: float = Field(8.0, ge=1, le=64)
    """µm/px of the thumbnail on which tissue is looked for."""
    smallest_tissue: float = Field(10_000.0, ge=0)
    """Pieces of tissue smaller than this are left out as specks, in µm²; at most a twentieth of the image, so that a
    small region is not all specks."""
    smallest_hole: float = Field(20_000.0, ge=0)
    """Holes in tissue smaller than this count as tissue, in µm². Fat cells are such holes: at the default fat belongs
    to the tissue as far as its membranes can be seen."""
    gap: float = Field(12.0, ge=0)
    """Clefts up to about twice as wide as this are closed, in µm."""
    pen: bool = True
    """Leave out what was drawn with a pen. Turn it off for stains other than H&E: another dye can look like ink."""
    smallest_pen: float = Field(20_000.0, ge=0)
    """Ink on a smaller area than this is no pen, in µm²; at most a twentieth of the image."""


@dataclass(frozen=True)
class Tissue:
    """What was found on a slide.

    Attributes:
        mask: Tissue, bool [h, w] spanning the whole slide.
        pen: Pen marks, bool [h, w]; the mask leaves them out.
        threshold: Saturation, 0 to 1, above which a pixel was taken for tissue.
        notes: What is worth knowing, such as how much a pen hides.
    """

    mask: BoolArray
    pen: BoolArray
    threshold: float
    notes: tuple[str, ...]


def tissue_scale(slide_size: tuple[int, int], slide_mpp: tuple[float, float], config: TissueConfig) -> float:
    """Return the µm/px of the thumbnail on which a slide's tissue is sought.

    That of the configuration; coarser for slides of more than 16.8 megapixels there, and finer, as far as the slide is,
    for images that would be less than 128 px long.

    Args:
        slide_size: Width and height in level-0 px.
        slide_mpp: µm per level-0 px along x and y.
        config: How tissue is found.
    """
    width, height = slide_size[0] * slide_mpp[0], slide_size[1] * slide_mpp[1]
    fine = max(*slide_mpp, min(config.mpp, max(width, height) / _THUMBNAIL_SIDE))
    return float(max(fine, (width * height / _THUMBNAIL_PIXELS) ** 0.5))


def find_tissue(thumbnail: UInt8Array, mpp: tuple[float, float], config: TissueConfig) -> Tissue:
    """Find the tissue on a thumbnail of an H&E slide.

    The color of the glass is taken from the brightest gray that is common; the threshold is Otsu's (1979) on the
    saturation, held between 0.05 and 0.07 so that a slide of nothing but glass has no tissue, and one without glass is
    all tissue. Black and gray fills are not tissue.

    Args:
        thumbnail: The whole slide, uint8 [h, w, 3], R, G, B.
        mpp: µm per px of the thumbnail along x and y.
        config: Sizes and choices.

    Returns:
        The mask and the pen marks, each bool [h, w].
    """
    area = mpp[0] * mpp[1]
    notes = []
    glass = _glass_color(thumbnail)
    if glass is None:
        notes.append("no bare glass seen")
    picture = Image.fromarray(np.ascontiguousarray(thumbnail))
    balanced = picture if glass is None else picture.point(_balance(glass))
    red, green, blue = (np.asarray(plane) for plane in balanced.split())
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    threshold = _threshold(high, low)
    # Saturation above the threshold, as one comparison of bytes; nothing that dark has a color.
    bound = np.floor(np.arange(256) * (1 - threshold)).astype(np.uint8)
    bound[:_BLACK] = 0
    mask = low < bound[high]
    pen = np.zeros(mask.shape, bool)
    if config.pen:
        pen = _pen(balanced, mpp, config)
        mask &= ~pen
    mask = _closed(mask, round(config.gap / mpp[0]), round(config.gap / mpp[1]))
    mask = _without_small(mask, min(config.smallest_tissue / area, _SPECK_SHARE * mask.size))
    mask = ~_without_small(~mask, config.smallest_hole / area, keep_outer=True)
    if pen.any():
        mask &= ~pen
        notes.append(f"pen on {pen.sum() * area / 1e6:.2g} mm²")
    if not mask.any():
        notes.append("no tissue")
    return Tissue(mask, pen, threshold, tuple(notes))


def _glass_color(thumbnail: UInt8Array) -> tuple[int, int, int] | None:
    """R, G, B of bare glass: the brightest common gray that is flat; None where there is none."""
    stride = max(1, int((thumbnail.shape[0] * thumbnail.shape[1] / 30_000) ** 0.5))
    sample = thumbnail[::stride, :-1:stride].astype(np.int16)
    right = thumbnail[::stride, 1::stride].astype(np.int16)
    flat = _over_channels(np.maximum, np.abs(sample - right)) <= _GLASS_STEP
    high, low = _over_channels(np.maximum, sample), _over_channels(np.minimum, sample)
    likely = flat & (low >= _GLASS_DARKEST) & (high - low <= _GLASS_TINT * high)
    if likely.sum() < max(1, _GLASS_SHARE * likely.size):
        return None
    # White itself is what scanners fill up with: it tells nothing where there is other glass.
    scanned = likely & (low < 254)
    colors = sample[scanned if scanned.sum() >= max(1, _GLASS_SHARE * likely.size) else likely]
    counts = np.convolve(np.bincount(colors[:, 1], minlength=256), [1, 2, 3, 2, 1], mode="same")
    peak = int(np.flatnonzero(counts >= 0.2 * counts.max())[-1])
    while peak > 0 and counts[peak - 1] > counts[peak]:
        peak -= 1
    near = colors[np.abs(colors[:, 1] - peak) <= 2]
    red, green, blue = np.median(near, axis=0)
    return int(red), int(green), int(blue)


def _over_channels(what: np.ufunc, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Maximum or minimum over R, G, B: several times faster than a reduction over so short an axis."""
    extreme: npt.NDArray[Any] = what(what(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
    return extreme


def _balance(glass: tuple[int, int, int]) -> list[int]:
    """Table that makes glass white in each channel, 3 · 256 entries."""
    return [min(255, round(value * 255 / channel)) for channel in glass for value in range(256)]


def _threshold(high: UInt8Array, low: UInt8Array) -> float:
    """Otsu's threshold on the saturation, held within bounds."""
    stride = max(1, int((high.size / 100_000) ** 0.5))
    top, bottom = high[::stride, ::stride], low[::stride, ::stride]
    seen = top >= _BLACK
    if not seen.any():
        return _HIGHEST
    saturation = 1 - bottom[seen] / top[seen].astype(np.float32)
    counts = np.bincount((saturation * 255).astype(np.intp), minlength=256).astype(np.float64)
    weight, moment = counts.cumsum(), (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * weight - moment * weight[-1]) ** 2 / (weight * (weight[-1] - weight))
    best = float(np.argmax(np.nan_to_num(between, nan=-1.0, posinf=-1.0)) + 1) / 255
    return min(max(best, _LOWEST), _HIGHEST)


def _pen(balanced: Image.Image, mpp: tuple[float, float], config: TissueConfig) -> BoolArray:
    """Pen marks on a thumbnail whose glass is white, bool [h, w]."""
    factors = [max(1, round(_INK_MPP / value)) for value in mpp]
    small = balanced.reduce((factors[0], factors[1]))
    coarse = mpp[0] * factors[0], mpp[1] * factors[1]
    pixels = np.asarray(small)
    red, green, blue = (_DENSITY[pixels[:, :, channel]] for channel in range(3))
    core = red > np.float32(1.2) * green + np.float32(0.12)
    # Blue as much as green: the more red is absorbed, the less of this could be hematoxylin. Brown pigment and DAB
    # absorb blue most.
    strong = (green > 0.7) & (blue < np.float32(1.15) * green + np.float32(0.1))
    dark = (blue > np.float32(0.76) * green) & (blue + np.float32(0.4) * red > np.float32(0.98) * green)
    core |= strong & ((blue > np.float32(0.84) * green) | dark)
    if not core.any():
        return np.zeros((balanced.height, balanced.width), bool)
    core &= ~_black_fill(pixels)
    smallest = min(config.smallest_pen / (coarse[0] * coarse[1]), _SPECK_SHARE * core.size)
    core = _without_small(core, smallest)
    if not core.any():
        return np.zeros((balanced.height, balanced.width), bool)
    rim = red > np.float32(1.05) * green + np.float32(0.03)
    rim |= (blue > np.float32(0.75) * green) & (blue < np.float32(1.2) * green + np.float32(0.05)) & (green > 0.06)
    near = _dilated(core, round(_INK_RIM / coarse[0]), round(_INK_RIM / coarse[1]))
    pen = _grown(core, rim | core, near)
    pen = ~_without_small(~_dilated(pen, 1, 1), smallest, keep_outer=True)
    pen = pen.repeat(factors[1], axis=0)[: balanced.height].repeat(factors[0], axis=1)[:, : balanced.width]
    return np.ascontiguousarray(pen)


def _grown(core: BoolArray, rim: BoolArray, near: BoolArray) -> BoolArray:
    """The connected parts of `rim` that hold enough `core`; of larger ones what lies `near` to it.

    Ink that thins out is a rim around its core. A small core in a large part is surrounded by tissue of that tint.
    """
    from scipy import ndimage

    parts, count = ndimage.label(rim, structure=np.ones((3, 3)))
    cores = np.bincount(parts[core], minlength=count + 1)
    whole = cores >= _CORE_SHARE * np.bincount(parts.ravel(), minlength=count + 1)
    whole[0] = False
    return whole[parts] | ((cores > 0)[parts] & rim & near)


# Optical density of a byte over white, float32 [256].
_DENSITY = -np.log(np.maximum(np.arange(256, dtype=np.float32), 2) / 255)


def _black_fill(pixels: UInt8Array) -> BoolArray:
    """Black areas that reach the edge of the slide: padding, not ink."""
    from scipy import ndimage

    black = _over_channels(np.maximum, pixels) < _BLACK
    if not black.any():
        return black
    parts, count = ndimage.label(black)
    # Where it ends, a pixel is part black, part glass: as gray as ink.
    return _dilated(_outer(parts, count)[parts], 1, 1)


def _without_small(mask: BoolArray, smallest: float, *, keep_outer: bool = False) -> BoolArray:
    """The mask without connected parts of fewer px than `smallest`; `keep_outer`: but for those at the slide's edge."""
    from scipy import ndimage

    if smallest <= 1 or not mask.any():
        return mask
    parts, count = ndimage.label(mask)
    large = np.bincount(parts[mask], minlength=count + 1) >= smallest
    if keep_outer:
        large |= _outer(parts, count)
    large[0] = False
    return large[parts]


def _outer(parts: npt.NDArray[np.integer], count: int) -> BoolArray:
    """Which of the labels 0 to `count` reach the edge of the slide."""
    outer = np.zeros(count + 1, bool)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        outer[edge] = True
    outer[0] = False
    return outer


def _closed(mask: BoolArray, across: int, down: int) -> BoolArray:
    """Morphological closing with a rectangle that reaches `across` and `down` px to each side."""
    wide = np.pad(mask, ((down, down), (across, across)))
    shrunk = ~_dilated(~_dilated(wide, across, down), across, down)
    return shrunk[down : down + mask.shape[0], across : across + mask.shape[1]]


def _dilated(mask: BoolArray, across: int, down: int) -> BoolArray:
    """Dilation by a rectangle that reaches `across` and `down` px to each side."""
    height, width = mask.shape
    run = np.pad(mask, ((down, down), (across, across)))
    # After `covered` steps a place holds whether any of the `covered` places up to it is set: few steps for any reach.
    for axis, reach in ((0, down), (1, across)):
        covered = 1
        while covered < 2 * reach + 1:
            step = min(covered, 2 * reach + 1 - covered)
            grown = run.copy()
            if axis == 0:
                grown[step:] |= run[:-step]
            else:
                grown[:, step:] |= run[:, :-step]
            run = grown
            covered += step
    return run[2 * down : 2 * down + height, 2 * across : 2 * across + width]
