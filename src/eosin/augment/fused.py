"""The color operations of a view as one function of pixels and parameters, for a compiler to make few kernels of.

On a GPU the operations one by one read and write every pixel dozens of times. Written as expressions without branches,
without changes in place and without shapes that depend on what was drawn, `torch.compile` joins them: a kernel up to
each mean over an image (RandStainNA's statistics, contrast), and one for the rest. The laws are those of the
operations' own modules, which remain the reference, and the path that is taken where nothing can be compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType

import numpy as np
import torch
from torch import Tensor

from eosin.augment.color import LUMA, ORDERS, ColorJitter, Grayscale
from eosin.augment.hed import DARKEST, HED_FROM_RGB, RGB_FROM_HED, HEDJitter
from eosin.augment.image_statistics import LEAST_WEIGHT
from eosin.augment.operations import Operation, Parameters
from eosin.augment.randstainna import LEAST_TISSUE, MOST_GAIN, RandStainNA
from eosin.augment.spaces import LEAST_CHROMA, XYZ_FROM_RGB, Space
from eosin.core.console import warn
from eosin.core.transfer import upload

__all__ = ["FUSED", "FusedColors"]

FUSED = (HEDJitter, RandStainNA, ColorJitter, Grayscale)
"""Operations that are joined."""

Rows = Sequence[Sequence[float]]


class FusedColors:
    """Operations that follow each other in a view, as one function.

    Args:
        operations: By name, in their order; all of kinds in `FUSED`.
        compiled: Join them with `torch.compile`; where it fails, a warning says why and they run as they are.
        backend: The compiler.
    """

    def __init__(self, operations: Mapping[str, Operation], compiled: bool, backend: str = "inductor") -> None:
        self.operations = operations
        self._run: Callable[[Tensor, Tensor], Tensor] = self._apply
        if compiled and operations:
            # What is compiled is kept, and counted against a limit of 8, by code object: each gets one of its own.
            body = FusedColors._apply
            own = FunctionType(body.__code__.replace(), body.__globals__).__get__(self)
            self._run = torch.compile(own, fullgraph=True, backend=backend)

    def __call__(self, crops: Tensor, parameters: Mapping[str, Parameters]) -> Tensor:
        """Apply drawn parameters.

        Args:
            crops: uint8 [B, 3, h, w], or float32 in 0..1.
            parameters: By operation, as their `sample` returned them.

        Returns:
            float32 [B, 3, h, w] in 0..1.
        """
        columns = [_columns(operation, parameters[name]) for name, operation in self.operations.items()]
        # One copy to the device for all of them.
        table = upload(np.concatenate([np.empty((len(crops), 0)), *columns], axis=1).astype(np.float32), crops.device)
        try:
            return self._run(crops, table)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self._run == self._apply:
                raise
            self._run = self._apply
            warn(f"color operations are not compiled ({type(error).__name__}: {str(error).splitlines()[0]})")
            return self._apply(crops, table)

    def _apply(self, crops: Tensor, table: Tensor) -> Tensor:
        images = crops.to(torch.float32) * (1 / 255) if crops.dtype == torch.uint8 else crops
        first = 0
        for operation in self.operations.values():
            width = _width(operation)
            values = table[:, first : first + width, None, None, None]
            first += width
            images = torch.where(values[:, 0] > 0, _changed(operation, images, values), images)
        return images


def _width(operation: Operation) -> int:
    """Numbers an image of an operation: whether it is applied, and its parameters."""
    if isinstance(operation, HEDJitter):
        return 13
    if isinstance(operation, RandStainNA):
        return 7
    return 9 if isinstance(operation, ColorJitter) else 1


def _columns(operation: Operation, parameters: Parameters) -> np.ndarray:
    """Return those numbers: float64 [B, `_width`]."""
    if isinstance(operation, ColorJitter):
        order = np.asarray(parameters["order"], dtype=np.int64)
        factors = [parameters[name] for name in ("brightness", "contrast", "saturation", "hue")]
        return np.column_stack([order >= 0, ORDERS[order], *factors]).astype(np.float64)
    on = np.asarray(parameters["on"], dtype=np.float64)[:, None]
    if isinstance(operation, HEDJitter):
        alpha, beta = (np.asarray(parameters[name], dtype=np.float64) for name in ("alpha", "beta"))
        slope = (HED_FROM_RGB * (alpha - 1.0)[:, None, :]) @ RGB_FROM_HED
        return np.concatenate([on, slope.reshape(-1, 9), -beta @ RGB_FROM_HED], axis=1)
    if isinstance(operation, RandStainNA):
        return np.concatenate([on, np.asarray(parameters["target"], dtype=np.float64)], axis=1)
    return on


def _changed(operation: Operation, images: Tensor, values: Tensor) -> Tensor:
    if isinstance(operation, HEDJitter):
        return _hed(images, values)
    if isinstance(operation, RandStainNA):
        return _randstainna(operation, images, values)
    if isinstance(operation, ColorJitter):
        return _jitter(operation, images, values)
    return _luma(images).expand_as(images)


def _luma(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _jitter(operation: ColorJitter, images: Tensor, values: Tensor) -> Tensor:
    """Four places of the order, in each of which an image takes one of the four adjustments."""
    strengths = operation.config
    for place in range(4):
        number, before = values[:, 1 + place], images
        if strengths.brightness:
            images = torch.where(number == 0, (before * values[:, 5]).clamp(max=1.0), images)
        if strengths.contrast:
            mean = _luma(before.mean(dim=(2, 3), keepdim=True))
            images = torch.where(number == 1, torch.lerp(mean, before, values[:, 6]).clamp(0.0, 1.0), images)
        if strengths.saturation:
            blended = torch.lerp(_luma(before), before, values[:, 7]).clamp(0.0, 1.0)
            images = torch.where(number == 2, blended, images)
        if strengths.hue:
            hue, saturation, value = _to_hsv(before)
            images = torch.where(number == 3, _from_hsv(hue + 6.0 * values[:, 8], saturation, value), images)
    return images


def _hed(images: Tensor, values: Tensor) -> Tensor:
    logs = images.clamp(min=DARKEST).log()
    slope, offset = values[:, 1:10], values[:, 10:13, 0]
    exponent = [
        sum((slope[:, 3 * row + column] * logs[:, row : row + 1] for row in range(3)), offset[:, column, None])
        for column in range(3)
    ]
    return (images * torch.cat(exponent, dim=1).clamp(max=80.0).exp()).clamp(0.0, 1.0)


def _randstainna(operation: RandStainNA, images: Tensor, values: Tensor) -> Tensor:
    config, statistics = operation.config, operation.statistics
    if config.strength == 0.0:
        return images
    space: Space = statistics.space
    target = values[:, 1:7, 0]
    weight = _tissue_weight(images)
    pixels = _TO[space](images)
    counted = weight + LEAST_WEIGHT if statistics.tissue_only else torch.ones_like(weight)
    total = counted.sum(dim=(2, 3), keepdim=True)
    mean = (pixels * counted).sum(dim=(2, 3), keepdim=True) / total
    std = ((pixels - mean).square() * counted).sum(dim=(2, 3), keepdim=True).div(total).sqrt()
    enough = (weight.mean(dim=(2, 3), keepdim=True) >= LEAST_TISSUE).float() * config.strength
    gain = (target[:, 3:] / std.clamp(min=1e-9)).clamp(max=MOST_GAIN)
    change = ((pixels - mean) * (gain - 1.0) + (target[:, :3] - mean)) * enough
    stained = pixels + (change * weight if config.keep_background else change)
    return _FROM[space](_within(stained, pixels, space, keep_background=config.keep_background))


def _within(stained: Tensor, before: Tensor, space: Space, *, keep_background: bool) -> Tensor:
    """Clip to the ends of the 8-bit encodings; hue wraps, optical density has no ends. None turns green (`restain`)."""
    if space == "lab":
        lightness, a, b = stained.split(1, dim=1)
        if keep_background:
            a = torch.maximum(a, before[:, 1:2].clamp(max=128.0))
        return torch.cat([lightness, a, b], dim=1).clamp(0.0, 255.0)
    if space == "hsv":
        return torch.cat([stained[:, :1], stained[:, 1:].clamp(0.0, 255.0)], dim=1)
    return stained


def _tissue_weight(images: Tensor) -> Tensor:
    largest, smallest = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    return ((0.945 * largest - smallest - 0.005) * 40.0).clamp(0.0, 1.0)


def _mix(images: Tensor, matrix: Rows) -> Tensor:
    first, second, third = images.split(1, dim=1)
    return torch.cat([row[0] * first + row[1] * second + row[2] * third for row in matrix], dim=1)


def _rows(matrix: np.ndarray) -> Rows:
    return [[float(value) for value in row] for row in matrix]


_TO_XYZ, _FROM_XYZ = _rows(XYZ_FROM_RGB), _rows(np.linalg.inv(XYZ_FROM_RGB))
_KNEE = 6 / 29


def _to_lab(images: Tensor) -> Tensor:
    linear = torch.where(images <= 0.04045, images / 12.92, ((images + 0.055) / 1.055).clamp(min=0.01) ** 2.4)
    light = _mix(linear, _TO_XYZ)
    root = torch.where(light > _KNEE**3, light.clamp(min=1e-6) ** (1 / 3), light / (3 * _KNEE**2) + 4 / 29)
    x, y, z = root.split(1, dim=1)
    return torch.cat([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], dim=1)


def _from_lab(values: Tensor) -> Tensor:
    lightness, a, b = values.split(1, dim=1)
    y = (lightness / 2.55 + 16) / 116
    root = torch.cat([y + (a - 128) / 500, y, y - (b - 128) / 200], dim=1)
    light = torch.where(root > _KNEE, root**3, 3 * _KNEE**2 * (root - 4 / 29))
    linear = _mix(light, _FROM_XYZ)
    curve = 1.055 * linear.clamp(0.0031308, 1.0) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curve).clamp(0.0, 1.0)


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in sixths of a turn, saturation and value in 0..1."""
    red, green, blue = images.split(1, dim=1)
    value, smallest = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - smallest
    hue = (value - 2 * smallest - red + green + blue) / chroma.clamp(min=LEAST_CHROMA)
    turned = (green < blue) & (chroma >= LEAST_CHROMA)
    return torch.where(turned, 6.0 - hue, hue), chroma / value.clamp(min=1e-12), value


def _from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    hue = hue - 6.0 * torch.floor(hue / 6.0)
    chroma = saturation * value
    red = ((hue - 3.0).abs() - 1.0).clamp(0.0, 1.0)
    green = (2.0 - (hue - 2.0).abs()).clamp(0.0, 1.0)
    blue = (2.0 - (hue - 4.0).abs()).clamp(0.0, 1.0)
    return (torch.cat([red, green, blue], dim=1) * chroma + (value - chroma)).clamp(0.0, 1.0)


def _to_hsv_units(images: Tensor) -> Tensor:
    hue, saturation, value = _to_hsv(images)
    return torch.cat([30.0 * hue, 255.0 * saturation, 255.0 * value], dim=1)


def _from_hsv_units(values: Tensor) -> Tensor:
    hue, saturation, value = values.split(1, dim=1)
    return _from_hsv(hue / 30.0, saturation / 255.0, value / 255.0)


_LOG_DARKEST = math.log(1e-6)
_TO_STAINS, _FROM_STAINS = _rows(HED_FROM_RGB.T), _rows(RGB_FROM_HED.T)


def _to_hed(images: Tensor) -> Tensor:
    return _mix(images.clamp(min=1e-6).log() / _LOG_DARKEST, _TO_STAINS)


def _from_hed(values: Tensor) -> Tensor:
    return (_mix(values, _FROM_STAINS) * _LOG_DARKEST).exp().clamp(0.0, 1.0)


_TO = {"lab": _to_lab, "hsv": _to_hsv_units, "hed": _to_hed}
_FROM = {"lab": _from_lab, "hsv": _from_hsv_units, "hed": _from_hed}
