"""Stain and scanner of a synthetic slide, and the Beer-Lambert law that turns dye into color."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eosin.synthetic.frame import Array, mix

_STAIN_KEY = 0x57A1

# Ends of the range of hues seen in hematoxylin (blue to purple) and eosin (magenta to salmon), as optical density in
# R, G, B. Typical values lie between them, for instance Macenko et al. 2009: (0.56, 0.72, 0.41), (0.22, 0.80, 0.56).
_HEMATOXYLIN = np.array([[0.72, 0.64, 0.26], [0.52, 0.77, 0.37]])
_EOSIN = np.array([[0.30, 0.90, 0.30], [0.12, 0.83, 0.54]])


@dataclass(frozen=True)
class SlideStain:
    """How one synthetic slide was stained and scanned.

    Attributes:
        vectors: Optical density per unit of hematoxylin and of eosin in R, G, B: two unit vectors.
        hematoxylin: Strength of the hematoxylin, 1 is typical.
        eosin: Strength of the eosin, 1 is typical.
        white: R, G, B of empty glass, 0 to 255.
        noise: Standard deviation of the sensor noise in gray levels.
        blur: Standard deviation of the point spread in µm.
    """

    vectors: tuple[tuple[float, float, float], tuple[float, float, float]]
    hematoxylin: float
    eosin: float
    white: tuple[float, float, float]
    noise: float
    blur: float

    @property
    def matrix(self) -> NDArray[np.float32]:
        """Optical density per unit of dye, strength included, float32 [2, 3]."""
        return np.asarray(self.vectors, np.float32) * np.array([[self.hematoxylin], [self.eosin]], np.float32)


def _unit(vector: NDArray[np.float64]) -> tuple[float, float, float]:
    vector = np.clip(vector, 0.02, None)
    red, green, blue = vector / np.linalg.norm(vector)
    return float(red), float(green), float(blue)


def slide_stain(seed: int, slide: int) -> SlideStain:
    """Draw the stain of a slide: a pure function of the two numbers.

    Args:
        seed: Seed of the collection.
        slide: Number of the slide in it.
    """
    rng = np.random.Generator(np.random.Philox(key=mix(_STAIN_KEY, seed, slide)))
    blend = rng.random(2)
    hematoxylin = _HEMATOXYLIN[0] + blend[0] * (_HEMATOXYLIN[1] - _HEMATOXYLIN[0]) + rng.normal(0, 0.03, 3)
    eosin = _EOSIN[0] + blend[1] * (_EOSIN[1] - _EOSIN[0]) + rng.normal(0, 0.03, 3)
    strength = np.exp(rng.uniform(np.log([0.55, 0.42]), np.log([1.55, 1.5])))
    white = np.clip(rng.uniform(208, 250) + rng.normal(0, 5, 3), 195, 254)
    return SlideStain(
        vectors=(_unit(hematoxylin), _unit(eosin)),
        hematoxylin=float(strength[0]),
        eosin=float(strength[1]),
        white=(float(white[0]), float(white[1]), float(white[2])),
        noise=float(rng.uniform(1.0, 3.5)),
        blur=float(rng.uniform(0.15, 0.45)),
    )


def beer_lambert(hematoxylin: Array, eosin: Array, stain: SlideStain) -> Array:
    """Light that passes the section: white · exp(-(h · H + e · E)), the Beer-Lambert law for two dyes.

    The same mixing model, read backwards, is the color deconvolution of Ruifrok and Johnston (2001).

    Args:
        hematoxylin: Amount of hematoxylin, float32 [h, w], 1 in a typical nucleus.
        eosin: Amount of eosin, float32 [h, w].
        stain: The slide's vectors, strengths and white.

    Returns:
        float32 [3, h, w], 0 to 255, R, G, B.
    """
    rows = stain.matrix
    light = np.empty((3, *hematoxylin.shape), np.float32)
    for channel in range(3):
        density = hematoxylin * -rows[0, channel] - eosin * rows[1, channel]
        np.exp(density, out=density)
        np.multiply(density, np.float32(stain.white[channel]), out=light[channel])
    return light


def scan(light: Array, stain: SlideStain, mpp: float, key: int) -> NDArray[np.uint8]:
    """What the scanner makes of the light: point spread, sensor noise, 8 bits.

    Args:
        light: float32 [3, h, w], 0 to 255; overwritten.
        stain: Its blur, its noise.
        mpp: µm per pixel.
        key: 64-bit key of the noise.

    Returns:
        uint8 [3, h, w].
    """
    from scipy.ndimage import gaussian_filter

    spread = stain.blur / mpp
    if spread > 0.2:
        for channel in range(3):
            gaussian_filter(light[channel], spread, output=light[channel], mode="nearest", truncate=3.0)
    rng = np.random.Generator(np.random.SFC64(key))
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    noise *= np.float32(stain.noise)
    light += noise
    light += np.float32(0.5)
    np.clip(light, 0, 255, out=light)
    return light.astype(np.uint8)
