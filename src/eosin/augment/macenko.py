"""Macenko's stains: what an image's hematoxylin and eosin look like, and the image with others.

Macenko et al., "A method for normalizing histology slides for quantitative analysis" (ISBI 2009), with the constants
and the reference of torchstain (`MacenkoNormalizer`, `MacenkoAugmentor`; NumPy backend), to which the results are
equal up to its rounding down to 8 bits. With I in 0..255 and white at 240,

1. optical density D = -ln((I + 1) / 240); tissue is where all three channels reach 0.15;
2. the plane of the two largest eigenvectors of the tissue's covariance of D;
3. in it the 1st and 99th percentile of the angle are the stains, the redder density being hematoxylin;
4. concentrations C by least squares, and their 99th percentiles over all pixels.

The plane is found from its normal, the third eigenvector, and angles are counted from the tissue's mean: where the
tissue spans less than half a turn, that gives the published stains whatever signs the eigenvectors come with; where it
spans more, the published ones depend on those signs.

An image without stains to be found keeps its pixels: less than 100 pixels of tissue, a single color or shades of
one, stains less than 1° apart, or a stain whose 99th percentile is not positive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from eosin.augment.chunks import chunks
from eosin.augment.hed import combine
from eosin.augment.logarithm import exp2_, log2_
from eosin.augment.operations import Parameters, Probability, on_rows, stain_parameters
from eosin.augment.percentiles import percentiles
from eosin.augment.sums import pixel_sums
from eosin.core.config import Config
from eosin.core.draws import Draws
from eosin.core.transfer import upload

__all__ = [
    "REFERENCE",
    "Macenko",
    "MacenkoConfig",
    "Reference",
    "Stains",
    "macenko_augment",
    "macenko_normalize",
    "stain_matrix",
]

LN2 = math.log(2.0)
WHITE = 240.0
TISSUE_DENSITY = 0.15
PERCENTILES = (1.0, 99.0)
# A first percentile of less than a hundred pixels is one of them.
FEWEST_PIXELS = 100
# Of the density along the tissue's second direction: what rounding to 8 bits alone makes of shades of one color.
LEAST_VARIANCE = 1e-5
LEAST_SINE = math.sin(math.radians(1.0))
LEAST_MAXIMUM = 1e-3
# float32 holds 2 to the 100, and 1 / 255 times that is far above white.
LARGEST_EXPONENT = 100.0


class Reference(NamedTuple):
    """The stains to normalise to."""

    matrix: npt.ArrayLike
    """[3, 2], optical density in R, G, B of a unit of hematoxylin and of eosin."""
    maximum: npt.ArrayLike
    """[2], 99th percentile of the concentration of each."""


REFERENCE = Reference([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]], [1.9705, 1.0308])
"""torchstain's, from Macenko's own code."""


@dataclass(frozen=True)
class Stains:
    """The stains of a batch of images, on the images' device."""

    matrix: Tensor
    """float32 [B, 3, 2], optical density in R, G, B of hematoxylin and of eosin, columns of length 1; the reference's
    where none were found."""
    maximum: Tensor
    """float32 [B, 2], 99th percentile of the concentration of each."""
    found: Tensor
    """bool [B]."""


class MacenkoConfig(Config):
    """Augmentation in the concentrations of the image's own stains; the defaults are torchstain's augmentor's."""

    probability: Probability = 0.0
    """Share of the images that are changed."""
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """Factor of each concentration ~ U(1 - alpha, 1 + alpha) (torchstain's sigma1)."""
    beta: Annotated[float, Field(ge=0.0, le=10.0)] = 0.2
    """Shift of each concentration ~ U(-beta, beta), in natural-log optical density (torchstain's sigma2)."""
    normalize: bool = False
    """First replace the stains by torchstain's reference; with alpha 0 and beta 0 that is Macenko's normalisation."""
    residual: bool = True
    """Keep what two stains do not explain (pigment, ink, DAB), so that strengths of 0 change nothing; `false` drops it
    as torchstain does. A normalised image has none."""


def stain_matrix(images: Tensor) -> Stains:
    """Find hematoxylin and eosin in each image.

    Args:
        images: float32 [B, 3, H, W] RGB in 0..1, on any device; left as they are.
    """
    empty = torch.zeros(0, 3, dtype=torch.float64, device=images.device)
    parts = [(empty.view(0, 2, 3), empty[:, :2], empty[:, 0] > 0)]
    parts += [_find(*_workspace(images[rows]))[1:] for rows in chunks(images)]
    vectors, maximum, found = (torch.cat(values) for values in zip(*parts, strict=True))
    reference = upload(np.asarray(REFERENCE.matrix), images.device)
    matrix = torch.where(found[:, None, None], vectors.mT, reference)
    maximum = torch.where(found[:, None], maximum, upload(np.asarray(REFERENCE.maximum), images.device))
    return Stains(matrix.float(), maximum.float(), found)


def macenko_normalize(images: Tensor, reference: Reference = REFERENCE) -> Tensor:
    """Give each image the stains of the reference.

    Args:
        images: float32 [B, 3, H, W] RGB in 0..1, on any device; left as they are.
        reference: Stains and the maxima of their concentrations.

    Returns:
        float32 [B, 3, H, W] in 0..1; an image in which no stains are found is returned as it is.
    """
    return _changed(images, None, None, reference, residual=False)


def macenko_augment(images: Tensor, alpha: npt.ArrayLike, beta: npt.ArrayLike, *, residual: bool = True) -> Tensor:
    """Scale and shift the concentrations of each image's own stains, C' = alpha · C + beta.

    Args:
        images: float32 [B, 3, H, W] RGB in 0..1, on any device; left as they are.
        alpha: [B, 2] on the host, factor of hematoxylin and eosin.
        beta: [B, 2] on the host, shift of each in natural-log optical density.
        residual: Keep what the two stains do not explain; without it, equal to torchstain.

    Returns:
        float32 [B, 3, H, W] in 0..1; an image in which no stains are found is returned as it is.

    Raises:
        ValueError: If `alpha` or `beta` is not finite or not of that shape.
    """
    return _changed(images, alpha, beta, None, residual=residual)


def _changed(
    images: Tensor,
    alpha: npt.ArrayLike | None,
    beta: npt.ArrayLike | None,
    reference: Reference | None,
    *,
    residual: bool,
) -> Tensor:
    alpha = stain_parameters("alpha", np.ones((len(images), 2)) if alpha is None else alpha, len(images), "HE")
    beta = stain_parameters("beta", np.zeros((len(images), 2)) if beta is None else beta, len(images), "HE")
    changed = images.clone(memory_format=torch.contiguous_format)
    for rows in chunks(images):
        _change(changed[rows], alpha[rows], beta[rows], reference, residual)
    return changed


def _change(
    images: Tensor,
    alpha: npt.NDArray[np.float64],
    beta: npt.NDArray[np.float64],
    reference: Reference | None,
    residual: bool,
) -> Tensor:
    """RGB' = 240/255 exp(-C' M') or, with the residual, RGB · exp(C M - C' M), C' = alpha · C + beta, in place.

    M has a stain a row. Of an image without stains all values here may be NaN; its pixels are kept.
    """
    device = images.device
    log, scratch = _workspace(images)
    unmix, vectors, maximum, found = _find(log, scratch)
    factor, shift = upload(alpha, device), upload(beta, device)
    mix = vectors
    if reference is not None:
        mix = upload(np.asarray(reference.matrix, dtype=np.float64).T, device)[None]
        factor = factor * (upload(np.asarray(reference.maximum, dtype=np.float64), device) / maximum)
    if residual:
        factor = factor - 1.0
    # [B, 3, 3] and [B, 3, 1], summed term by term so that the batch's size does not change their bits.
    slopes = (mix[..., None] * (factor[..., None] * unmix)[:, :, None]).sum(1).float()
    offsets = (mix * shift[..., None]).sum(1) / -LN2
    if not residual:
        offsets += math.log2(WHITE / 255.0)
    offsets = offsets.float()[..., None]
    value = combine(log, slopes, out=scratch).add_(offsets).clamp_(max=LARGEST_EXPONENT)
    value = exp2_(value).view_as(images)
    if residual:
        value.mul_(images)
    if device.type == "cpu" and bool(found.all()):
        return torch.clamp(value, 0.0, 1.0, out=images)
    return torch.where(found[:, None, None, None], value.clamp_(0.0, 1.0), images, out=images)


def _workspace(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return log2((I + 1) / 240), minus the optical density in bits, and room for as much: float32 [B, 3, N].

    One piece of memory, because the host's allocator gives larger sums of pieces back to the system each time.
    """
    memory = torch.empty((2, len(images), 3, images.shape[2] * images.shape[3]), device=images.device)
    return log2_(torch.mul(images.flatten(2), 255.0 / WHITE, out=memory[0]).add_(1.0 / WHITE)), memory[1]


def _find(log: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the stains.

    Args:
        log: float32 [B, 3, N], log2((I + 1) / 240).
        scratch: float32 [B, 3, N], contiguous, overwritten.

    Returns:
        float64 [B, 2, 3] from optical density to concentrations, float64 [B, 2, 3] the stains as rows, float64 [B, 2]
        the 99th percentiles of their concentrations, and bool [B]; where that is false the others may be NaN.
    """
    count, _, size = log.shape
    planes = scratch.view(-1)[: count * 2 * size].view(count, 2, size)
    tissue = log.amax(1) <= -TISSUE_DENSITY / LN2
    mean, covariance, pixels = _moments(log, tissue, planes)
    normal, middle = _smallest_direction(covariance)
    # The mean density, laid into the plane, and the direction at right angles to it.
    along = (mean * normal).sum(1, keepdim=True) * normal - mean
    along = along / along.square().sum(1, keepdim=True).sqrt()
    axes = torch.stack([along, torch.linalg.cross(normal, along)], dim=1)
    x, y = combine(log, axes.neg().float(), out=planes).unbind(1)
    angles = percentiles(torch.atan2(y, x, out=x), PERCENTILES, tissue)
    turned = torch.stack([angles.cos(), angles.sin()], dim=2)
    vectors = (turned[..., None] * axes[:, None]).sum(2)
    vectors = torch.where(vectors[:, :1, :1] > vectors[:, 1:, :1], vectors, vectors.flip(1))

    cosine = vectors.prod(1).sum(1)[:, None, None]
    squared_sine = 1.0 - cosine.square()
    unmix = (vectors - cosine * vectors.flip(1)) / squared_sine
    concentrations = combine(log, (unmix * -LN2).float(), out=planes)
    maximum = percentiles(concentrations.view(-1, size), PERCENTILES[1:]).view(count, 2)
    found = (pixels >= FEWEST_PIXELS) & (middle > LEAST_VARIANCE / LN2**2)
    found &= (squared_sine[:, 0, 0] > LEAST_SINE**2) & (maximum.amin(1) > LEAST_MAXIMUM)
    return unmix, vectors, maximum, found


def _moments(log: Tensor, tissue: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [B, 3], covariance [B, 3, 3] (float64) and number [B] of the pixels of [B, 3, N] that are tissue, [B, N]."""
    # A view as bytes, because that conversion to floats is the fast one.
    weight = tissue.view(torch.uint8).float()
    pixels = pixel_sums(weight)
    planes = log.unbind(1)
    weighted, product = scratch.unbind(1)
    first: list[Tensor] = []
    second: dict[tuple[int, int], Tensor] = {}
    for i in range(3):
        torch.mul(planes[i], weight, out=weighted)
        first.append(pixel_sums(weighted))
        for j in range(i, 3):
            second[i, j] = second[j, i] = pixel_sums(torch.mul(weighted, planes[j], out=product))
    sums = torch.stack(first + [second[i, j] for i in range(3) for j in range(3)], dim=1).double()
    mean, square = (sums / pixels.clamp(min=1.0)[:, None]).split((3, 9), dim=1)
    return mean, square.view(-1, 3, 3) - mean[:, :, None] * mean[:, None], pixels


def _smallest_direction(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit eigenvector [B, 3] of the smallest eigenvalue, and the middle eigenvalue [B].

    Args:
        matrices: float64 [B, 3, 3], symmetric.
    """
    if matrices.device.type != "cpu":
        return _smallest_direction_in_closed_form(matrices)
    values, vectors = torch.linalg.eigh(matrices)
    return vectors[:, :, 0], values[:, 1]


def _smallest_direction_in_closed_form(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`_smallest_direction` for devices whose solver makes the host wait.

    Smith, "Eigenvalues of a symmetric 3 × 3 matrix" (Comm. ACM 1961); (A - largest)(A - middle) is a multiple of the
    eigenvector's outer product with itself.
    """
    identity = torch.eye(3, dtype=matrices.dtype, device=matrices.device)
    center = matrices.diagonal(dim1=1, dim2=2).mean(1)
    shifted = matrices - center[:, None, None] * identity
    spread = (shifted.square().sum((1, 2)) / 6.0).sqrt().clamp(min=1e-30)
    a, b, c = (shifted / spread[:, None, None]).unbind(1)
    half_determinant = (torch.linalg.cross(a, b) * c).sum(1) / 2.0
    angle = half_determinant.clamp(-1.0, 1.0).acos() / 3.0
    largest = center + 2.0 * spread * angle.cos()
    smallest = center + 2.0 * spread * (angle + 2.0 * math.pi / 3.0).cos()
    middle = 3.0 * center - largest - smallest
    left = matrices - largest[:, None, None] * identity
    right = matrices - middle[:, None, None] * identity
    outer = (left[:, :, :, None] * right[:, None]).sum(2)
    column = outer.diagonal(dim1=1, dim2=2).abs().argmax(1)
    vector = outer.gather(2, column[:, None, None].expand(-1, 3, 1))[:, :, 0]
    return vector / vector.square().sum(1, keepdim=True).sqrt().clamp(min=1e-300), middle


class Macenko:
    """Random factor and shift of the concentrations of each image's own stains, or of the reference's."""

    def __init__(self, config: MacenkoConfig) -> None:
        self.config = config

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw the changes.

        Returns:
            `on`, bool [B]; `alpha` (factors) and `beta` (shifts in natural-log optical density) of hematoxylin and
            eosin, float64 [B, 2].
        """
        uniforms = draws.uniform("macenko", 5)
        signed = 2.0 * uniforms[:, 1:] - 1.0
        return {
            "on": uniforms[:, 0] < self.config.probability,
            "alpha": 1.0 + self.config.alpha * signed[:, :2],
            "beta": self.config.beta * signed[:, 2:],
        }

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Change the chosen images of float32 [B, 3, H, W], in place."""
        chosen = np.asarray(parameters["on"], dtype=bool)
        alpha = np.asarray(parameters["alpha"], dtype=np.float64)[chosen]
        beta = np.asarray(parameters["beta"], dtype=np.float64)[chosen]
        reference = REFERENCE if self.config.normalize else None
        residual = self.config.residual and not self.config.normalize
        on_rows(images, chosen, lambda part: _change(part, alpha, beta, reference, residual))
        return images
