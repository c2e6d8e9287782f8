"""Gaussian blur with a width drawn for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from eosin.augment.operations import Parameters, Probability, on_rows
from eosin.core.config import Config
from eosin.core.draws import Draws
from eosin.core.transfer import upload

__all__ = ["BlurConfig", "GaussianBlur", "gaussian_blur"]

# Outputs computed by one small matrix product: wide enough to keep the multiplier busy, narrow enough that few of its
# entries lie outside the kernel.
BLOCK = 48

# A wider one is no view but its mean, and its kernel grows with it.
Sigma = Annotated[float, Field(gt=0.0, le=100.0)]


class BlurConfig(Config):
    """Gaussian blur."""

    probability: Probability = 0.5
    """Share of the images that are blurred."""
    sigma: tuple[Sigma, Sigma] = (0.1, 2.0)
    """Standard deviation ~ U(low, high), in pixels of the view."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError(f"sigma must be given as low, high (got {self.sigma[0]}, {self.sigma[1]})")
        return self


@dataclass(frozen=True)
class _Block:
    """Outputs `first..last` of one axis, and the inputs `start..stop` they are made of."""

    first: int
    last: int
    start: int
    stop: int

    @property
    def entries(self) -> int:
        return (self.last - self.first) * (self.stop - self.start)


def gaussian_blur(images: Tensor, sigmas: Tensor, radius: int, out: Tensor | None = None) -> Tensor:
    """Convolve with a sampled Gaussian, truncated at `radius`, normalised to sum 1, edges mirrored without repeat.

    A true Gaussian, as torchvision's `gaussian_blur` with a kernel of `2 * radius + 1`; Pillow's `GaussianBlur`, which
    the MoCo, SwAV and DINO code calls, approximates it by box filters and so differs slightly.

    Each axis is multiplied by its convolution matrix, one block of the band at a time; the mirroring is part of the
    matrix, so nothing is padded, and an image smaller than the kernel is mirrored repeatedly.

    Args:
        images: float32 [B, C, H, W].
        sigmas: float32 [B], in pixels, above 0.
        radius: Taps on each side of the center.
        out: Where to write the result, of the images' shape; may be the images.

    Returns:
        float32 [B, C, H, W].
    """
    batch, channels, height, width = images.shape
    taps = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)
    kernels = torch.exp(-0.5 * (taps / sigmas[:, None]).square())
    kernels /= kernels.sum(dim=1, keepdim=True)
    down = _matrices(kernels, height, radius)
    across = down if width == height else _matrices(kernels, width, radius)
    result = torch.empty_like(images, memory_format=torch.contiguous_format) if out is None else out
    # On a CPU one image at a time, so that both passes stay in the cache.
    step = 1 if images.device.type == "cpu" else batch
    for start in range(0, batch, step):
        stop = start + step
        planes = images[start:stop].reshape(-1, height, width)
        rows = torch.empty_like(planes)
        blurred = result[start:stop].view(-1, height, width)
        for block, matrix in down:
            source = planes[:, block.start : block.stop]
            torch.bmm(_each(matrix[start:stop], channels), source, out=rows[:, block.first : block.last])
        for block, matrix in across:
            source = rows[:, :, block.start : block.stop]
            weights = _each(matrix[start:stop], channels).transpose(1, 2)
            torch.bmm(source, weights, out=blurred[:, :, block.first : block.last])
    return result


def _each(matrices: Tensor, channels: int) -> Tensor:
    """Repeat [n, outputs, inputs] for every channel: [n x channels, outputs, inputs], no copy where n is 1."""
    return matrices[:, None].expand(-1, channels, -1, -1).flatten(0, 1)


def _matrices(kernels: Tensor, size: int, radius: int) -> list[tuple[_Block, Tensor]]:
    """Return each block of an axis with its part of the convolution matrices: [B, outputs, inputs]."""
    blocks, places = _layout(size, radius, kernels.device)
    parts = (kernels @ places).split([block.entries for block in blocks], dim=1)
    return [
        (block, part.reshape(-1, block.last - block.first, block.stop - block.start))
        for block, part in zip(blocks, parts, strict=True)
    ]


@lru_cache(maxsize=16)
def _layout(size: int, radius: int, device: torch.device) -> tuple[list[_Block], Tensor]:
    """Cut an axis into blocks; say which tap lands where: [taps, entries of all blocks], 0 or a count."""
    blocks, places = [], []
    period = max(2 * (size - 1), 1)
    length = size if size <= 2 * BLOCK else BLOCK
    for first in range(0, size, length):
        last = min(first + length, size)
        outputs = np.arange(first, last)
        inputs = (outputs + np.arange(-radius, radius + 1)[:, None]) % period
        inputs = np.minimum(inputs, period - inputs) if size > 1 else np.zeros_like(inputs)
        block = _Block(first, last, int(inputs.min()), int(inputs.max()) + 1)
        place = np.zeros((2 * radius + 1, last - first, block.stop - block.start), dtype=np.float32)
        for tap, columns in enumerate(inputs):
            place[tap, np.arange(last - first), columns - block.start] = 1.0
        blocks.append(block)
        places.append(place.reshape(2 * radius + 1, -1))
    return blocks, torch.as_tensor(np.concatenate(places, axis=1), device=device)


class GaussianBlur:
    """Blur with sigma ~ U(low, high), the kernel truncated at three times the largest sigma (rounded up)."""

    def __init__(self, config: BlurConfig) -> None:
        self.config = config
        # One radius for all images: a view then does not depend on what its neighbours drew, not even by rounding.
        self.radius = math.ceil(3.0 * config.sigma[1])

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw `sigma`: float64 [B] in pixels, 0 where the image is not blurred."""
        uniforms = draws.uniform("blur", 2)
        low, high = self.config.sigma
        return {"sigma": np.where(uniforms[:, 0] < self.config.probability, low + (high - low) * uniforms[:, 1], 0.0)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Blur the chosen images of float32 [B, 3, H, W], in place."""
        sigma = np.asarray(parameters["sigma"], dtype=np.float32)
        chosen = sigma > 0
        widths = upload(sigma[chosen], images.device)
        on_rows(images, chosen, lambda part: gaussian_blur(part, widths, self.radius, out=part))
        return images
