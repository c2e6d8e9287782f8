"""HED jitter: more or less of each stain, in optical density.

Tellez et al., "Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train distilled
stain-invariant convolutional networks" (IEEE TMI 2018) and "Quantifying the effects of data augmentation and stain
color normalization" (Medical Image Analysis 2019); the stains are Ruifrok and Johnston's (Anal. Quant. Cytol. Histol.
2001). With D = -ln(RGB) the optical density of a pixel as a row, and M the stains' densities as rows,

    s = D M⁻¹,    s' = alpha · s + beta,    RGB' = exp(-s' M) = RGB · exp(D (1 - M⁻¹ diag(alpha) M) - beta M).

The last form is what is computed: one 3×3 matrix and three numbers an image. Nothing is clamped but the result, so
white stays white under alpha, black stays black, and alpha = 1, beta = 0 changes no bit.

**Units.** `beta` is in natural-log optical density: beta_H = 0.25 multiplies red by exp(-0.25 · 0.65) = 0.85. Other
programs count differently, and their numbers do not carry over:

| source | its scale | its strength | here |
|---|---|---|---|
| Tellez "light", "strong" | -ln(RGB + 2), scikit-image up to 0.17 | 0.05, 0.2 | same alpha, five times beta: 0.25, 1 |
| scikit-image 0.18 and later | ln(RGB) / ln(1e-6), stains clamped at 0 | beta | 13.8 beta, which is ln(1e6) beta |
| OpenMidnight `hed_mod` | the same | beta 0.05 | alpha 0, beta 0.69 |

The factor five is (RGB + 2) / RGB, the ratio of the two slopes, at RGB = 0.5, the mean of stained tissue.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from eosin.augment.chunks import chunks
from eosin.augment.kernels import in_place, kernel
from eosin.augment.logarithm import exp2_, log2_
from eosin.augment.operations import Parameters, Probability, on_rows, stain_parameters
from eosin.core.config import Config
from eosin.core.draws import Draws
from eosin.core.transfer import upload

__all__ = ["DARKEST", "RGB_FROM_HED", "HEDJitter", "HEDJitterConfig", "combine", "hed_jitter"]

RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density in R, G, B of a unit of hematoxylin, eosin and DAB (Ruifrok and Johnston), as printed and as in
scikit-image: the rows' lengths are 0.998, 0.999 and 1.003 and are not brought to 1."""

HED_FROM_RGB = np.linalg.inv(RGB_FROM_HED)

DARKEST = 1 / 255
"""Values below it have the density of this one; they are scaled like it, so 0 stays 0."""

# float32 holds 2 to the 100, and 1 / 255 times that is far above white.
LARGEST_EXPONENT = 100.0


class HEDJitterConfig(Config):
    """Strengths of the HED jitter; the defaults are Tellez' "light" in our units."""

    probability: Probability = 0.0
    """Share of the images that are jittered."""
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Factor of each stain ~ U(1 - alpha, 1 + alpha)."""
    beta: Annotated[float, Field(ge=0.0, le=10.0)] = 0.25
    """Shift of each stain ~ U(-beta, beta), in natural-log optical density (Tellez' number times 5, scikit-image's
    times 13.8)."""


def hed_jitter(images: Tensor, alpha: npt.ArrayLike, beta: npt.ArrayLike) -> Tensor:
    """Scale and shift hematoxylin, eosin and DAB.

    Args:
        images: float32 [B, 3, H, W] RGB in 0..1, on any device; left as they are.
        alpha: [B, 3] on the host, factor of H, E, D; 1 leaves it alone.
        beta: [B, 3] on the host, shift of H, E, D in natural-log optical density; 0 leaves it alone.

    Returns:
        float32 [B, 3, H, W] in 0..1.

    Raises:
        ValueError: If `alpha` or `beta` is not finite or not of that shape.
    """
    alpha = stain_parameters("alpha", alpha, len(images), "HED")
    beta = stain_parameters("beta", beta, len(images), "HED")
    jittered = images.clone(memory_format=torch.contiguous_format)
    for rows in chunks(images):
        _jitter(jittered[rows], alpha[rows], beta[rows])
    return jittered


def _jitter(images: Tensor, alpha: npt.NDArray[np.float64], beta: npt.NDArray[np.float64]) -> Tensor:
    """`hed_jitter` in place."""
    slope, offset = _exponent(alpha, beta)
    compiled = kernel("hed_jitter", images)
    if compiled is not None:
        return in_place(compiled, images, slope.astype(np.float32), offset.astype(np.float32), DARKEST)
    largest = (np.abs(slope).sum(axis=1) * -math.log2(DARKEST) + np.abs(offset)).max(initial=0.0)
    slopes = upload(slope.astype(np.float32), images.device)
    offsets = upload(offset.astype(np.float32), images.device)[..., None]
    memory = torch.empty((2, *images.flatten(2).shape), device=images.device)
    log = torch.clamp(images.flatten(2), min=DARKEST, out=memory[0])
    exponent = combine(log2_(log), slopes.mT.contiguous(), out=memory[1]).add_(offsets)
    if largest > LARGEST_EXPONENT:
        exponent.clamp_(max=LARGEST_EXPONENT)
    return images.mul_(exp2_(exponent).view_as(images)).clamp_(0.0, 1.0)


def combine(planes: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    """Return `weights @ planes`, each image with weights of its own.

    On a CPU one call does it in a third of the time. Elsewhere a product of matrices may be rounded to fewer bits
    (TF32), so it is written out.

    Args:
        planes: float32 [B, 3, N].
        weights: float32 [B, K, 3].
        out: float32 [B, K, N], overwritten and returned.
    """
    if planes.device.type == "cpu":
        return torch.bmm(weights, planes, out=out)
    return _combine_written_out(planes, weights, out)


def _combine_written_out(planes: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    first, second, third = (plane[:, None] for plane in planes.unbind(1))
    one, two, three = weights[..., None].unbind(2)
    return torch.mul(first, one, out=out).addcmul_(second, two).addcmul_(third, three)


def _exponent(
    alpha: npt.NDArray[np.float64], beta: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the slopes [B, 3, 3] and offsets [B, 3] of log2(RGB' / RGB) = log2(RGB) @ slope + offset."""
    # Beyond a million everything is black or white, and float32 must not overflow.
    slope = np.clip((HED_FROM_RGB * (alpha - 1.0)[:, None, :]) @ RGB_FROM_HED, -1e6, 1e6)
    return slope, np.clip(-beta @ RGB_FROM_HED / math.log(2.0), -1e6, 1e6)


class HEDJitter:
    """Random factor and shift of hematoxylin, eosin and DAB."""

    def __init__(self, config: HEDJitterConfig) -> None:
        self.config = config

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw the jitter.

        Returns:
            `on`, bool [B]; `alpha` (factors) and `beta` (shifts in natural-log optical density) of H, E, D,
            float64 [B, 3].
        """
        uniforms = draws.uniform("hed", 7)
        signed = 2.0 * uniforms[:, 1:] - 1.0
        return {
            "on": uniforms[:, 0] < self.config.probability,
            "alpha": 1.0 + self.config.alpha * signed[:, :3],
            "beta": self.config.beta * signed[:, 3:],
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Jitter the chosen images of float32 [B, 3, H, W], in place."""
        chosen = np.asarray(parameters["on"], dtype=bool)
        alpha = np.asarray(parameters["alpha"], dtype=np.float64)[chosen]
        beta = np.asarray(parameters["beta"], dtype=np.float64)[chosen]
        on_rows(images, chosen, lambda part: _jitter(part, alpha, beta))
        return images
