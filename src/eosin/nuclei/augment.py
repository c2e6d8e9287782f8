"""Augmentation of images with nuclei: what moves the pixels moves the nuclei, what changes the colors does not.

Geometry and blur are HoVer-Net's (Graham et al., MedIA 2019, and its code): an affine map with a scale of its own along
each axis, translation, shear and rotation; flips; then one of Gaussian blur, median blur and noise; then color. With
the angle a and the shear b, which leans the y axis alone, a pixel's place about the center goes to

    x' = sx cos(a) x - sy sin(a + b) y + tx,    y' = sx sin(a) x + sy cos(a + b) y + ty.

Here the map is applied once, from a window that is large enough to have no empty corners, by one `grid_sample` for the
pixels and one for the ids, along the same grid. Pixels are interpolated, which the reference does not do: it takes the
nearest for both.

Order: flips and quarter turns, affine map, stain, color, one of blur, median and noise.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from eosin.augment import HEDJitterConfig, JitterConfig, MacenkoConfig, RandStainNAConfig
from eosin.augment.chunks import chunks
from eosin.augment.color import ColorJitter
from eosin.augment.geometry import Flip, Rotate90
from eosin.augment.hed import HEDJitter
from eosin.augment.macenko import Macenko
from eosin.augment.operations import Operation, Probability
from eosin.augment.randstainna import RandStainNA
from eosin.core.config import Config
from eosin.core.draws import Draws, stream_seed
from eosin.core.transfer import upload
from eosin.nuclei.windows import WindowBatch, relabel_windows

__all__ = ["Augmentation", "NucleiAugment", "binomial_blur", "median_blur"]

Factor = Annotated[float, Field(gt=0.0, le=10.0)]
Degrees = Annotated[float, Field(ge=0.0, le=180.0)]
Kernel = Annotated[int, Field(ge=1, le=9)]


class NucleiAugment(Config):
    """How windows are augmented; the defaults are HoVer-Net's, without stain augmentation."""

    scale: tuple[Factor, Factor] = (0.8, 1.2)
    """Factor of each axis ~ U(low, high), drawn for each axis on its own."""
    translate: Annotated[float, Field(ge=0.0, le=0.5)] = 0.01
    """Shift along each axis ~ U(-t, t), as a share of the window's side."""
    shear: Annotated[float, Field(ge=0.0, le=45.0)] = 5.0
    """Shear ~ U(-s, s), in degrees."""
    rotation: Degrees = 179.0
    """Rotation ~ U(-r, r), in degrees."""
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    """How pixels are read between pixels; ids always are the nearest one's."""
    horizontal_flip: Probability = 0.5
    """Probability of a left-right flip."""
    vertical_flip: Probability = 0.5
    """Probability of a top-bottom flip."""
    rotate90: Probability = 0.0
    """Probability of a turn by 90°, 180° or 270°, which interpolates nothing."""
    blur: Kernel = 5
    """Largest side of the blur's kernel, odd; 1, 3, … are equally likely. Weights as in `binomial_blur`."""
    median: Kernel = 5
    """Largest side of the median's window, odd; 1, 3, … are equally likely."""
    noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Largest standard deviation of Gaussian noise in 0..1; half of the noisy images have one for all channels."""
    one_of: Probability = 1.0
    """Share of the images that get blur, median or noise, each equally likely."""
    macenko: MacenkoConfig = MacenkoConfig()
    hed: HEDJitterConfig = HEDJitterConfig()
    randstainna: RandStainNAConfig = RandStainNAConfig()
    jitter: JitterConfig = JitterConfig(
        brightness=26 / 255, contrast=0.25, saturation=0.2, hue=8 / 180, probability=1.0
    )
    """Brightness is a factor here; the reference adds up to 26 of 255."""

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be given as low, high (got {self.scale[0]}, {self.scale[1]})")
        for name in ("blur", "median"):
            if getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd (got {getattr(self, name)})")
        return self

    @classmethod
    def none(cls) -> Self:
        """Return a configuration that changes nothing."""
        return cls(
            scale=(1.0, 1.0),
            translate=0.0,
            shear=0.0,
            rotation=0.0,
            horizontal_flip=0.0,
            vertical_flip=0.0,
            one_of=0.0,
            jitter=JitterConfig(probability=0.0),
        )

    @property
    def warps(self) -> bool:
        """Whether there is an affine map at all."""
        return self.scale != (1.0, 1.0) or bool(self.translate or self.shear or self.rotation)

    def window(self, size: int) -> int:
        """Return the side of a window that holds all that a result of `size` px may show.

        Args:
            size: Side of the result in px.

        Returns:
            Side in px, as even or odd as `size`, so that the centers of both lie alike.
        """
        if not self.warps:
            return size
        # A row of the inverse has the length 1 / (scale cos(shear)) at most, and leans by rotation and shear at most.
        leaning = math.radians(min(self.rotation + self.shear, 45.0))
        row = (math.cos(leaning) + math.sin(leaning)) / (self.scale[0] * math.cos(math.radians(self.shear)))
        reach = size * (1.0 + 2.0 * self.translate) * row
        side = math.ceil(reach) + 2
        return side + (side - size) % 2


class Augmentation:
    """Augment batches of windows.

    What a window becomes is a pure function of its content and of its draws (seed, step, position): neither the rest of
    the batch nor the number of processes or workers matters.

    Example:
        >>> augment = Augmentation(NucleiAugment())
        >>> side = augment.config.window(64)
        >>> image = torch.zeros(2, 3, side, side, dtype=torch.uint8)
        >>> batch = WindowBatch(image=image, instances=torch.zeros(2, side, side, dtype=torch.int32), types=None)
        >>> augment(batch, Draws(seed=0, step=0, positions=[0, 1]), 64)["image"].shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(self, config: NucleiAugment) -> None:
        self.config = config
        self._flip = Flip(config.horizontal_flip, config.vertical_flip)
        self._turn = Rotate90(config.rotate90)
        self._colors: dict[str, Operation] = {}
        if config.macenko.probability:
            self._colors["macenko"] = Macenko(config.macenko)
        if config.hed.probability:
            self._colors["hed"] = HEDJitter(config.hed)
        if config.randstainna.probability:
            self._colors["randstainna"] = RandStainNA(config.randstainna)
        if config.jitter.probability:
            self._colors["jitter"] = ColorJitter(config.jitter)

    @torch.no_grad()
    def __call__(self, batch: WindowBatch, draws: Draws, size: int) -> WindowBatch:
        """Move, then color: `color(move(batch, draws, size), draws)`."""
        moved = self.move(batch, draws, size)
        moved["image"] = self.color(moved["image"], draws)
        return moved

    @torch.no_grad()
    def move(self, batch: WindowBatch, draws: Draws, size: int) -> WindowBatch:
        """Apply the geometry to pixels and nuclei, and give parts of nuclei ids of their own.

        Args:
            batch: Windows of at least `size` px, square; what the map reaches beyond them is mirrored. Left as it is.
            draws: The batch's draws.
            size: Side of the result in px.

        Raises:
            ValueError: If the windows are not square, are smaller than the result or are not as many as the draws.
        """
        image, instances = batch["image"], batch["instances"]
        side = image.shape[-1]
        if image.shape[-2] != side or side < size or instances.shape != (len(image), side, side):
            raise ValueError(f"expected square windows of at least {size} px, got {list(image.shape)}")
        if len(image) != len(draws):
            raise ValueError(f"{len(image)} windows but {len(draws)} draws")
        draws = draws.within("nuclei")
        turned, flipped = self._turn.sample(draws, image), self._flip.sample(draws, image)
        image, instances = image.clone(), instances.clone()
        for operation, parameters in ((self._turn, turned), (self._flip, flipped)):
            image = operation.apply(image, parameters)
            instances = operation.apply(instances[:, None], parameters)[:, 0]
        if self.config.warps:
            image, instances = _warp(image, instances, self.matrices(draws, size), size, self.config.interpolation)
        else:
            low = (side - size) // 2
            image = image[:, :, low : low + size, low : low + size].contiguous()
            instances = instances[:, low : low + size, low : low + size].contiguous()
        relabeled, types = relabel_windows(instances, batch["types"])
        return WindowBatch(image=image, instances=relabeled, types=types)

    def matrices(self, draws: Draws, size: int) -> npt.NDArray[np.float64]:
        """Draw the affine maps.

        Args:
            draws: The batch's draws.
            size: Side of the result in px; translations are shares of it.

        Returns:
            float64 [B, 2, 3]: from places about the center of the window, (x, y) in px, to places about the center of
            the result.
        """
        uniforms = draws.uniform("affine", 6)
        low, high = self.config.scale
        sx, sy = (low + (high - low) * uniforms[:, column] for column in (0, 1))
        tx, ty = (self.config.translate * size * (2.0 * uniforms[:, column] - 1.0) for column in (2, 3))
        angle = np.radians(self.config.rotation * (2.0 * uniforms[:, 4] - 1.0))
        leaning = angle + np.radians(self.config.shear * (2.0 * uniforms[:, 5] - 1.0))
        upper = [sx * np.cos(angle), -sy * np.sin(leaning), tx]
        lower = [sx * np.sin(angle), sy * np.cos(leaning), ty]
        return np.stack([np.stack(upper, axis=1), np.stack(lower, axis=1)], axis=1)

    @torch.no_grad()
    def color(self, images: Tensor, draws: Draws) -> Tensor:
        """Change stain and color, then blur or add noise.

        Args:
            images: uint8 [B, 3, S, S], on any device; left as they are.
            draws: The batch's draws.

        Returns:
            uint8 [B, 3, S, S].
        """
        draws = draws.within("nuclei")
        drawn = {name: operation.sample(draws, images) for name, operation in self._colors.items()}
        result = torch.empty_like(images, memory_format=torch.contiguous_format)
        for rows in chunks(images):
            part = images[rows]
            if self._colors:
                floats = part.to(torch.float32).mul_(1 / 255)
                for name, operation in self._colors.items():
                    floats = operation.apply(floats, {key: values[rows] for key, values in drawn[name].items()})
                part = _bytes(floats)
            result[rows] = part
        return self._soften(result, draws)

    def _soften(self, images: Tensor, draws: Draws) -> Tensor:
        """Blur, take medians or add noise, in place."""
        uniforms = draws.uniform("one of", 4)
        which = np.where(uniforms[:, 0] < self.config.one_of, np.floor(3 * uniforms[:, 1]).astype(np.int64), -1)
        for kind, largest, change in ((0, self.config.blur, binomial_blur), (1, self.config.median, median_blur)):
            sides = 2 * np.floor(uniforms[:, 2] * (largest + 1) / 2).astype(np.int64) + 1
            for side in range(3, largest + 1, 2):
                for row in np.flatnonzero((which == kind) & (sides == side)).tolist():
                    images[row : row + 1] = change(images[row : row + 1], side)
        for row in np.flatnonzero(which == 2).tolist():
            deviation, single = self.config.noise * uniforms[row, 2], bool(uniforms[row, 3] < 0.5)
            noise = _noise(draws, row, images.shape[1:], single)
            floats = images[row].to(torch.float32)
            images[row] = floats.add_(upload(noise, images.device), alpha=255 * deviation).round_().clamp_(0, 255)
        return images


def _warp(
    image: Tensor, instances: Tensor, matrices: npt.NDArray[np.float64], size: int, interpolation: str
) -> tuple[Tensor, Tensor]:
    """Move pixels and ids along one grid."""
    side = image.shape[-1]
    inverse = np.linalg.inv(matrices[:, :, :2])
    # In units of half a side, which is what grids are given in.
    theta = np.concatenate([inverse * (size / side), -(inverse @ matrices[:, :, 2:]) * (2.0 / side)], axis=2)
    shape = [len(image), 1, size, size]
    grid = functional.affine_grid(torch.from_numpy(theta).to(torch.float32), shape, align_corners=False)
    settings: dict[str, Any] = {"padding_mode": "reflection", "align_corners": False}
    # float32 holds every id up to 2 to the 24.
    moved = functional.grid_sample(instances[:, None].to(torch.float32), grid, mode="nearest", **settings)
    pixels = functional.grid_sample(image.to(torch.float32), grid.to(image.device), mode=interpolation, **settings)
    return pixels.round_().clamp_(0, 255).to(torch.uint8), moved[:, 0].to(torch.int32)


def _bytes(floats: Tensor) -> Tensor:
    return floats.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def binomial_blur(images: Tensor, side: int) -> Tensor:
    """Convolve each axis with the binomial weights of `side`, edges mirrored without repeat.

    These are the weights 1 2 1 and 1 4 6 4 1 that OpenCV's `GaussianBlur` takes for 3 and 5 when no deviation is given.
    The sum of two neighbors, taken `side` - 1 times along each axis, is exact in whole numbers.

    Args:
        images: uint8 [B, C, H, W], on any device.
        side: Odd.

    Returns:
        uint8 [B, C, H, W], halves rounded up.
    """
    sums = _bordered(images, side // 2, mirror=True).to(torch.int32)
    for _ in range(side - 1):
        sums = sums[:, :, 1:] + sums[:, :, :-1]
    for _ in range(side - 1):
        sums = sums[:, :, :, 1:] + sums[:, :, :, :-1]
    shift = 2 * (side - 1)
    return ((sums + (1 << (shift - 1))) >> shift).to(torch.uint8)


def _bordered(images: Tensor, margin: int, *, mirror: bool) -> Tensor:
    """Add a border: mirrored without repeat, or the last pixels repeated."""
    for axis in (2, 3):
        length = images.shape[axis]
        places = torch.arange(-margin, length + margin, device=images.device)
        if mirror and length > 1:
            places = places.remainder(2 * (length - 1))
            places = torch.minimum(places, 2 * (length - 1) - places)
        images = images.index_select(axis, places.clamp_(0, length - 1))
    return images


def median_blur(images: Tensor, side: int) -> Tensor:
    """Take the median of the `side` x `side` window of each pixel and channel; borders are repeated.

    Of k values the least and the largest are dropped, one more is taken in, and so on: what is left at the end is the
    median. Minima and maxima of whole images are all it needs.

    Args:
        images: uint8 [B, C, H, W], on any device.
        side: Odd.

    Returns:
        uint8 [B, C, H, W].
    """
    height, width = images.shape[-2:]
    padded = _bordered(images, side // 2, mirror=False)
    planes = [padded[:, :, top : top + height, left : left + width] for top in range(side) for left in range(side)]
    kept, waiting = planes[: len(planes) // 2 + 2], planes[len(planes) // 2 + 2 :]
    while True:
        kept = _without_extremes(kept)
        if not waiting:
            return kept[0].contiguous()
        kept.append(waiting.pop())


def _without_extremes(planes: list[Tensor]) -> list[Tensor]:
    """Drop the least and the largest value of each pixel."""
    rest, odd = [], len(planes) % 2
    lows = [torch.minimum(a, b) for a, b in zip(planes[odd::2], planes[odd + 1 :: 2], strict=True)]
    highs = [torch.maximum(a, b) for a, b in zip(planes[odd::2], planes[odd + 1 :: 2], strict=True)]
    if odd:
        lows.append(planes[0])
    least = lows[0]
    for plane in lows[1:]:
        rest.append(torch.maximum(least, plane))
        least = torch.minimum(least, plane)
    if odd:
        highs.append(rest.pop())
    largest = highs[0]
    for plane in highs[1:]:
        rest.append(torch.minimum(largest, plane))
        largest = torch.maximum(largest, plane)
    return rest


def _noise(draws: Draws, row: int, shape: torch.Size, single: bool) -> npt.NDArray[np.float32]:
    """Draw standard normal values of one image: float32 [C, H, W], or [1, H, W] for all channels."""
    key = stream_seed(draws.seed, draws.scope, "noise", draws.step, int(draws.positions[row]))
    generator = np.random.Generator(np.random.Philox(key=key))
    return generator.standard_normal((1 if single else shape[0], *shape[1:]), dtype=np.float32)
