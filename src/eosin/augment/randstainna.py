"""RandStainNA: give every image the stain statistics of a random template.

Shen et al., "RandStainNA: Learning Stain-Agnostic Features from Histology Slides by Bridging Stain Augmentation and
Normalization", MICCAI 2022; the transfer is that of Reinhard et al. 2001. With a Gaussian mixture for the template, all
six statistics are drawn together, so that they go with each other as in real stains.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from eosin.augment.image_statistics import LEAST_WEIGHT, center_, tissue_share
from eosin.augment.kernels import Kernel, in_place, kernel
from eosin.augment.operations import Parameters, Probability, on_rows
from eosin.augment.spaces import CHANNELS, MATRICES, UNITS, Space, from_planes_, tissue_weight, to_planes_
from eosin.augment.stain_statistics import SIZE, StainStatistics, load_statistics
from eosin.core.config import Config
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.core.transfer import upload

__all__ = ["RandStainNA", "RandStainNAConfig", "draw_targets", "restain"]

MOST_GAIN = 10.0
"""The most by which a channel's deviation is multiplied: an image of one color keeps its noise small."""

LEAST_TISSUE = 0.02
"""Share of tissue below which an image is left as it is: its statistics say nothing about a stain."""

# Below and above every value.
_HUGE = 3e38

# A smaller deviation, in planes, is that of an image of one color.
_LEAST_DEVIATION = 1e-9

# Ends of each channel in the published law's 8-bit encodings; hue wraps instead, optical density has no ends.
_ENDS: dict[Space, tuple[tuple[float, float] | None, ...]] = {
    "lab": ((0.0, 255.0), (0.0, 255.0), (0.0, 255.0)),
    "hsv": (None, (0.0, 255.0), (0.0, 255.0)),
    "hed": (None, None, None),
}


class RandStainNAConfig(Config):
    """Random stain templates."""

    probability: Probability = 0.0
    """Share of the images that are stained anew."""
    statistics: str = "synthetic-lab"
    """A name that comes with eosin, a .json of `eosin stain fit`, or a .yaml of RandStainNA."""
    model: Literal["independent", "gmm"] = "gmm"
    """"independent" draws each of the six statistics on its own, "gmm" all of them from the mixture."""
    spread: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """Factor of the drawn deviations from the mean (of its component, in a mixture): RandStainNA's 1 + std_hyper."""
    distribution: Literal["file", "normal", "laplace"] = "file"
    """Law of independent draws; "file" takes the one that fitted each of them best."""
    keep_background: bool = True
    """Leave glass as it is; the published law stains it too."""
    strength: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """Blends the template (1) with the image's own statistics (0)."""


def draw_targets(statistics: StainStatistics, config: RandStainNAConfig, draws: Draws) -> npt.NDArray[np.float64]:
    """Draw a template for each image.

    A drawn standard deviation below 0 becomes 0. The published code keeps it, which inverts the channel.

    Args:
        statistics: What to draw from.
        config: `model`, `spread` and `distribution` are read.
        draws: The batch's draws; streams "stain".

    Returns:
        float64 [B, 6]: averages of the three channels, then their standard deviations, in the space's units.
    """
    if config.model == "gmm":
        assert statistics.mixture is not None
        mixture = statistics.mixture
        ends = np.cumsum(mixture.weights)
        place = np.searchsorted(ends / ends[-1], draws.uniform("stain/component")[:, 0], side="right")
        factors = np.linalg.cholesky(np.array(mixture.covariances))[place]
        # A sum over each image's own six normals, in one order whatever the batch.
        shift = (factors * draws.normal("stain/template", SIZE)[:, None, :]).sum(axis=2)
        targets = np.array(mixture.means)[place] + config.spread * shift
    else:
        independent = statistics.independent
        if config.distribution == "file":
            laplace = np.array(independent.distribution) == "laplace"
        else:
            laplace = np.full(SIZE, config.distribution == "laplace")
        centered = draws.uniform("stain/laplace", SIZE) - 0.5
        # The inverse of the distribution function; the scale is the file's std, as the published code passes it.
        heavy = -np.sign(centered) * np.log1p(-2.0 * np.abs(centered) + 2.0**-53)
        shift = np.where(laplace, heavy, draws.normal("stain/template", SIZE))
        targets = np.array(independent.mean) + config.spread * np.array(independent.std) * shift
    targets[:, 3:] = np.maximum(targets[:, 3:], 0.0)
    return targets


def restain(
    images: Tensor,
    target: Tensor,
    *,
    space: Space,
    tissue_only: bool = False,
    keep_background: bool = True,
    strength: float = 1.0,
) -> Tensor:
    """Give images the channel averages and deviations of a target (Reinhard et al. 2001).

    Per channel, (x - mean) · gain + target mean, with gain = target deviation / deviation, at most `MOST_GAIN`; then
    clipped to the ends of the published law's 8-bit encoding, but not rounded to it. Hue wraps. An image with less
    tissue than `LEAST_TISSUE` comes back as it was, up to the round trip through the space (1e-4).

    Nothing waits for the device. On a CPU with numba, a compiled kernel does the same (within 1e-4).

    Args:
        images: float32 [B, 3, h, w] RGB in 0..1; overwritten.
        target: float32 [B, 6] on the images' device, in the units of `eosin.augment.spaces`.
        space: The target's color space.
        tissue_only: Take the image's own statistics over tissue, as the target's were.
        keep_background: Blend each pixel, in the space, with what it was, by its `tissue_weight`; and in L*a*b* let
            none turn green. Hematoxylin and eosin absorb green most, so pale tissue that a template shifts below
            a* = 0 is no stain that exists; it stops at gray, or where it was.
        strength: 1 for the target, 0 for the image's own statistics.

    Returns:
        float32 [B, 3, h, w] RGB in 0..1.
    """
    compiled = kernel("restain", images)
    if compiled is not None:
        return _restain_compiled(compiled, images, target, space, tissue_only, keep_background, strength)
    weight = tissue_weight(images)
    # Whether an image is stained at all, as a factor: a branch would wait for the device.
    blend = (tissue_share(weight) >= LEAST_TISSUE).to(images.dtype).mul_(strength).view(-1, 1, 1, 1)
    scale, offset = _units(space, images.device)
    wanted = target.view(-1, SIZE, 1, 1).sub(offset).div_(scale)
    planes = to_planes_(images, space)
    mean, std = center_(planes, weight + LEAST_WEIGHT if tissue_only else None)
    gain = wanted[:, 3:].div(std.clamp_(min=_LEAST_DEVIATION)).clamp_(max=MOST_GAIN).sub_(1.0).mul_(blend)
    shift = wanted[:, :3].sub(mean).mul_(blend)
    if keep_background:
        greenest = torch.add(planes[:, 1:2], mean[:, 1:2]).clamp_(max=0.0) if space == "lab" else None
        planes.addcmul_(torch.mul(planes, gain).add_(shift), weight).add_(mean)
        if greenest is not None:
            torch.maximum(planes[:, 1:2], greenest, out=planes[:, 1:2])
    else:
        planes.mul_(gain.add_(1.0)).add_(shift.add_(mean))
    for plane, ends in zip(planes.unbind(1), _ends(space), strict=True):
        if ends is not None:
            plane.clamp_(*ends)
    return from_planes_(planes, space)


def _ends(space: Space) -> list[tuple[float, float] | None]:
    """Return `_ENDS` in planes."""
    return [
        None if ends is None else ((ends[0] - zero) / factor, (ends[1] - zero) / factor)
        for ends, factor, zero in zip(_ENDS[space], *UNITS[space], strict=True)
    ]


def _restain_compiled(
    compiled: Kernel,
    images: Tensor,
    target: Tensor,
    space: Space,
    tissue_only: bool,
    keep_background: bool,
    strength: float,
) -> Tensor:
    """`restain` by `eosin.augment.compiled`."""
    scale, offset = _units(space, images.device)
    wanted = target.view(-1, SIZE).sub(offset.view(1, SIZE)).div_(scale.view(1, SIZE)).expand(len(images), SIZE)
    return in_place(
        compiled,
        images,
        wanted.contiguous().numpy(),
        strength,
        tissue_only,
        keep_background,
        list(CHANNELS).index(space),
        *MATRICES[space],
        np.array([ends or (-_HUGE, _HUGE) for ends in _ends(space)], dtype=np.float32),
        LEAST_WEIGHT,
        LEAST_TISSUE,
        MOST_GAIN,
    )


@lru_cache(maxsize=16)
def _units(space: Space, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return scale and offset from planes to the units of the six numbers, [1, 6, 1, 1]."""
    scales, offsets = UNITS[space]
    with torch.inference_mode(False):
        pair = torch.tensor([[*scales, *scales], [*offsets, 0.0, 0.0, 0.0]], dtype=torch.float32)
        scale, offset = upload(pair.view(2, 1, SIZE, 1, 1), device)
    return scale, offset


class RandStainNA:
    """Stain each image after a template drawn for it.

    Raises:
        EosinError: If the statistics cannot be read, or have no mixture where the model is "gmm".
    """

    def __init__(self, config: RandStainNAConfig) -> None:
        self.config = config
        self.statistics = load_statistics(config.statistics)
        if config.model == "gmm" and self.statistics.mixture is None:
            raise EosinError(
                f"stain statistics '{config.statistics}' hold no mixture; fit one with `eosin stain fit SOURCE --model "
                "gmm`, or set model independent"
            )

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw `on`, bool [B], and `target`, float64 [B, 6], the averages and deviations of the template."""
        on = draws.uniform("stain")[:, 0] < self.config.probability
        return {"on": on, "target": draw_targets(self.statistics, self.config, draws)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Stain the chosen images of float32 [B, 3, H, W] anew, in place."""
        chosen = np.asarray(parameters["on"], dtype=bool)
        if self.config.strength == 0.0 or not chosen.any():
            return images
        target = upload(np.asarray(parameters["target"], dtype=np.float32)[chosen], images.device)

        def change(part: Tensor) -> Tensor:
            return restain(
                part,
                target,
                space=self.statistics.space,
                tissue_only=self.statistics.tissue_only,
                keep_background=self.config.keep_background,
                strength=self.config.strength,
            )

        on_rows(images, chosen, change)
        return images
