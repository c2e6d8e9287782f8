"""What a view's colors become: jitter, grayscale, solarize.

Laws and formulas are torchvision's (`ColorJitter`, `RandomGrayscale`, `RandomSolarize` and their tensor functionals),
with every parameter drawn for each image on its own.
"""

from __future__ import annotations

from itertools import permutations
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from eosin.augment.kernels import in_place, kernel
from eosin.augment.operations import Parameters, Probability, on_rows, per_image
from eosin.core.config import Config
from eosin.core.draws import Draws

__all__ = [
    "ColorJitter",
    "Grayscale",
    "JitterConfig",
    "Solarize",
    "SolarizeConfig",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "luma",
]

# ITU-R BT.601 luma, with the digits torchvision uses.
LUMA = (0.2989, 0.587, 0.114)

ORDERS = np.array(list(permutations(range(4))), dtype=np.int64)
"""The 24 orders of brightness (0), contrast (1), saturation (2) and hue (3)."""

Strength = Annotated[float, Field(ge=0.0)]


class JitterConfig(Config):
    """Strengths of the color jitter; a strength of 0 leaves that property alone."""

    brightness: Strength = 0.4
    """Factor ~ U(max(0, 1 - b), 1 + b)."""
    contrast: Strength = 0.4
    """Factor ~ U(max(0, 1 - c), 1 + c)."""
    saturation: Strength = 0.4
    """Factor ~ U(max(0, 1 - s), 1 + s)."""
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    """Shift ~ U(-h, h), in turns of the color circle."""
    probability: Probability = 0.8
    """Share of the images that are jittered."""


class SolarizeConfig(Config):
    """Inversion of bright values."""

    probability: Probability = 0.0
    """Share of the images that are solarized."""
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 128 / 255
    """Values at or above it are inverted."""


def luma(images: Tensor) -> Tensor:
    """Return the ITU-R BT.601 luma: float32 [B, 1, H, W] from float32 [B, 3, H, W]."""
    red, green, blue = images.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).unsqueeze(1)


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply by `factors` [B, 1, 1, 1] (>= 0) and clamp to 1, in place."""
    return images.mul_(factors).clamp_(max=1.0)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the mean of each image's luma, `factor * x + (1 - factor) * mean`, and clamp to 0..1, in place."""
    channels = images.mean(dim=(2, 3), keepdim=True)
    mean = luma(channels)
    return torch.lerp(mean, images, factors, out=images).clamp_(0.0, 1.0)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the luma of each pixel, `factor * x + (1 - factor) * luma`, and clamp to 0..1, in place."""
    return torch.lerp(luma(images), images, factors, out=images).clamp_(0.0, 1.0)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue in HSV space, in place.

    With v the largest, m the smallest channel and c = v - m, the hue in sixths of a turn is
    ±(v - 2m - r + g + b) / c, with the sign of g - b: on 0..3 (red to cyan through green) that quotient rises by one
    in every sixth. Going back, a channel is m + c·clamp(2 - d, 0, 1), where d is the hue's distance on the circle from
    the channel's own (red 0, green 2, blue 4). This equals the usual case-by-case conversion and needs no branches.

    Args:
        images: float32 [B, 3, H, W] in 0..1.
        shifts: float32 [B, 1, 1, 1] in turns of the color circle, within -1..1.

    Returns:
        The same tensor, changed; in 0..1 up to rounding (1e-6).
    """
    red, green, blue = images.unbind(1)
    largest = torch.maximum(red, green)
    torch.maximum(largest, blue, out=largest)
    smallest = torch.minimum(red, green)
    torch.minimum(smallest, blue, out=smallest)
    chroma = largest.sub_(smallest)
    hue = (green + blue).sub_(red).add_(chroma).sub_(smallest)
    # A gray pixel has no hue: its numerator is 0, and any small divisor keeps it so.
    scratch = chroma.clamp(min=1e-12)
    hue.div_(scratch).copysign_(torch.sub(green, blue, out=scratch))
    hue.mul_(1 / 6).add_(shifts[:, 0])
    hue.sub_(torch.floor(hue, out=scratch)).mul_(6.0)
    # m + c·clamp(|h - 3| - 1, 0, 1) for red, m + c·clamp(2 - |h - k|, 0, 1) for green (k = 2) and blue (k = 4), with
    # the constants moved out of the clamp to save passes over the image.
    torch.sub(hue, 3.0, out=red).abs_().clamp_(1.0, 2.0)
    red.sub_(1.0).mul_(chroma).add_(smallest)
    for channel, place in ((green, 2.0), (blue, 4.0)):
        torch.sub(hue, place, out=channel).abs_().clamp_(1.0, 2.0)
        channel.neg_().add_(2.0).mul_(chroma).add_(smallest)
    return images


ADJUSTMENTS = (
    ("brightness", adjust_brightness),
    ("contrast", adjust_contrast),
    ("saturation", adjust_saturation),
    ("hue", adjust_hue),
)


class ColorJitter:
    """Random brightness, contrast, saturation and hue, in an order drawn for each image."""

    def __init__(self, config: JitterConfig) -> None:
        self.config = config

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw the jitter.

        Returns:
            `order`, int64 [B]: row of `ORDERS`, -1 where the image is not jittered; `brightness`, `contrast`,
            `saturation` (factors) and `hue` (turns), float64 [B].
        """
        uniforms = draws.uniform("jitter", 6)
        order = np.floor(uniforms[:, 1] * len(ORDERS)).astype(np.int64)
        order[uniforms[:, 0] >= self.config.probability] = -1
        parameters: dict[str, npt.NDArray[np.generic]] = {"order": order}
        for column, name in enumerate(("brightness", "contrast", "saturation"), start=2):
            strength = getattr(self.config, name)
            low, high = max(0.0, 1.0 - strength), 1.0 + strength
            parameters[name] = low + (high - low) * uniforms[:, column]
        parameters["hue"] = self.config.hue * (2.0 * uniforms[:, 5] - 1.0)
        return parameters

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Jitter float32 [B, 3, H, W] in place."""
        order = np.asarray(parameters["order"], dtype=np.int64)
        steps = np.where(order[:, None] >= 0, ORDERS[order], -1)
        active = [getattr(self.config, name) > 0 for name, _ in ADJUSTMENTS]
        compiled = kernel("jitter", images)
        if compiled is not None:
            steps = np.where(np.array(active)[steps], steps, -1)
            drawn = np.column_stack([parameters[name] for name, _ in ADJUSTMENTS]).astype(np.float32)
            return in_place(compiled, images, steps, drawn)
        for place in range(4):
            for number, (name, adjust) in enumerate(ADJUSTMENTS):
                chosen = steps[:, place] == number
                if active[number] and chosen.any():
                    values = per_image(np.asarray(parameters[name])[chosen], images)
                    on_rows(images, chosen, lambda part, a=adjust, v=values: a(part, v))  # type: ignore[misc]
        return images


class Grayscale:
    """Replace all three channels by the luma.

    Args:
        probability: Share of the images that lose their color.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw `on`: bool [B]."""
        return {"on": draws.uniform("grayscale")[:, 0] < self.probability}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Turn the chosen images of float32 [B, 3, H, W] gray, in place."""
        on_rows(images, np.asarray(parameters["on"], dtype=bool), lambda part: part.copy_(luma(part)))
        return images


class Solarize:
    """Invert the values at or above a threshold."""

    def __init__(self, config: SolarizeConfig) -> None:
        self.config = config

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw `on`: bool [B]."""
        return {"on": draws.uniform("solarize")[:, 0] < self.config.probability}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Solarize the chosen images of float32 [B, 3, H, W], in place."""
        chosen = np.asarray(parameters["on"], dtype=bool)
        on_rows(images, chosen, lambda part: torch.where(part >= self.config.threshold, 1.0 - part, part))
        return images
