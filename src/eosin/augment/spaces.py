"""Color spaces of stain augmentation, on batches of float images: CIE L*a*b*, HSV and hematoxylin-eosin-DAB.

Values are in the units of RandStainNA's statistics files, so that its published statistics can be used as they are:

* `lab`: CIE 1976 L*a*b* of sRGB (IEC 61966-2-1) under D65, scaled as OpenCV scales it to 8 bits but not rounded:
  L·255/100, a + 128, b + 128.
* `hsv`: OpenCV's 8-bit scaling, not rounded: hue in half degrees 0..180, saturation and value 0..255.
* `hed`: the stains of Ruifrok and Johnston (2001) as scikit-image ≥ 0.18 scales them: ln(max(rgb, 1e-6)) / ln(1e-6)
  times the inverse of the stain matrix. The clamp at 0 that scikit-image adds is left out: with it, colors that are no
  mixture of the three stains do not come back.

The functions that end in an underscore work in `planes`: an affine map, channel by channel, of these units (`UNITS`).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.augment.curves import SLOPE, STEEP, constant, cube_, cube_root_, from_linear_, to_linear_
from eosin.augment.hed import HED_FROM_RGB, RGB_FROM_HED
from eosin.augment.logarithm import exp2_, log2_

__all__ = [
    "CHANNELS",
    "LEAST_CHROMA",
    "MATRICES",
    "UNITS",
    "XYZ_FROM_RGB",
    "Space",
    "from_planes_",
    "from_space",
    "tissue_weight",
    "to_planes_",
    "to_space",
]

Space = Literal["lab", "hsv", "hed"]

CHANNELS: dict[Space, tuple[str, str, str]] = {
    "lab": ("L", "A", "B"),
    "hsv": ("H", "S", "V"),
    "hed": ("H", "E", "D"),
}
"""Letters of the channels, in order, as RandStainNA's files name them."""

UNITS: dict[Space, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "lab": ((116 * 2.55 * STEEP, 500.0 * STEEP, 200.0 * STEEP), (-16 * 2.55, 128.0, 128.0)),
    "hsv": ((30.0, 255.0, 255.0), (0.0, 0.0, 0.0)),
    "hed": ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
}
"""Scale and offset of each channel: value = scale * plane + offset."""


XYZ_FROM_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
) / np.array([[0.950456], [1.0], [1.088754]])
"""Linear RGB to X, Y, Z over those of white: the sRGB primaries and D65 with the digits of OpenCV's documentation."""

_YXZ = XYZ_FROM_RGB[[1, 0, 2]]
_TO_YXZ = (_YXZ / SLOPE).astype(np.float32)
_FROM_YXZ = (np.linalg.inv(_YXZ) * SLOPE).astype(np.float32)

LEAST_CHROMA = 1e-5
"""Of 0..1. Below it rounding decides the hue, which goes to 0: a GPU rounds a product and a sum as one, so that a gray
pixel would get any hue, thousands of turns away, and take its image's mean hue with it."""
_DARKEST = 1e-6
# From and to the binary logarithm of RGB.
_TO_HED = (HED_FROM_RGB.T / math.log2(_DARKEST)).astype(np.float32, order="C")
_FROM_HED = (RGB_FROM_HED.T * math.log2(_DARKEST)).astype(np.float32, order="C")

MATRICES: dict[Space, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = {
    "lab": (_TO_YXZ, _FROM_YXZ),
    "hsv": (np.zeros((3, 3), dtype=np.float32),) * 2,
    "hed": (_TO_HED, _FROM_HED),
}
"""What the channels are multiplied by on the way to planes and back; HSV has no matrix."""

_GLASS_SATURATION = 0.055
_RAMP = (0.005, 0.03)


def _mix(source: Tensor, matrix: npt.NDArray[np.float32], out: Tensor) -> Tensor:
    """Multiply the channels by a 3 x 3 matrix, in float32 whatever a training script allows for its own products."""
    if source.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest":
        rows = torch.from_numpy(matrix).expand(len(source), 3, 3)
        torch.bmm(rows, source.flatten(2), out=out.view(len(source), 3, -1))
        return out
    for row, target in zip(matrix.tolist(), out.unbind(1), strict=True):
        torch.mul(source[:, 0], row[0], out=target)
        target.add_(source[:, 1], alpha=row[1]).add_(source[:, 2], alpha=row[2])
    return out


def _lab_to_planes_(images: Tensor) -> Tensor:
    planes = cube_root_(_mix(to_linear_(images), _TO_YXZ, images))
    planes[:, 1].sub_(planes[:, 0])
    torch.sub(planes[:, 0], planes[:, 2], out=planes[:, 2])
    return planes


def _lab_from_planes_(planes: Tensor) -> Tensor:
    planes[:, 1].add_(planes[:, 0])
    torch.sub(planes[:, 0], planes[:, 2], out=planes[:, 2])
    cubes = cube_(planes)
    return from_linear_(_mix(cubes, _FROM_YXZ, torch.empty_like(cubes)))


def _hsv_to_planes_(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    value = torch.maximum(red, green)
    torch.maximum(value, blue, out=value)
    smallest = torch.minimum(red, green)
    torch.minimum(smallest, blue, out=smallest)
    chroma = value - smallest
    # The hue in sixths of a turn as in `adjust_hue`: on 0..3, with the sign of green - blue; a gray pixel has hue 0.
    hue = (green + blue).sub_(red).add_(chroma).sub_(smallest)
    divisor = chroma.clamp(min=LEAST_CHROMA)
    hue.div_(divisor)
    turned = torch.where((green < blue) & (chroma >= LEAST_CHROMA), 6.0 - hue, hue)
    images[:, 0] = turned
    torch.div(chroma, value.clamp(min=1e-12), out=images[:, 1])
    images[:, 2] = value
    return images


def _hsv_from_planes_(planes: Tensor) -> Tensor:
    hue, saturation, value = planes.unbind(1)
    hue = hue - torch.floor(hue * (1 / 6)).mul_(6.0)
    value = value.clamp(0.0, 1.0)
    chroma = saturation.clamp(0.0, 1.0).mul_(value)
    smallest = value - chroma
    red = torch.sub(hue, 3.0).abs_().clamp_(1.0, 2.0).sub_(1.0)
    green = torch.sub(hue, 2.0).abs_().clamp_(1.0, 2.0).neg_().add_(2.0)
    blue = torch.sub(hue, 4.0).abs_().clamp_(1.0, 2.0).neg_().add_(2.0)
    for place, channel in enumerate((red, green, blue)):
        torch.addcmul(smallest, channel, chroma, out=planes[:, place])
    return planes.clamp_(0.0, 1.0)


def _hed_to_planes_(images: Tensor) -> Tensor:
    return _mix(log2_(images.clamp_(min=_DARKEST)), _TO_HED, torch.empty_like(images))


def _hed_from_planes_(planes: Tensor) -> Tensor:
    return exp2_(_mix(planes, _FROM_HED, torch.empty_like(planes))).clamp_(0.0, 1.0)


def to_planes_(images: Tensor, space: Space) -> Tensor:
    """Convert float32 [B, 3, h, w] RGB in 0..1 to planes; the images are overwritten."""
    return {"lab": _lab_to_planes_, "hsv": _hsv_to_planes_, "hed": _hed_to_planes_}[space](images)


def from_planes_(planes: Tensor, space: Space) -> Tensor:
    """Convert planes back to RGB, clamped to 0..1; the planes are overwritten."""
    return {"lab": _lab_from_planes_, "hsv": _hsv_from_planes_, "hed": _hed_from_planes_}[space](planes)


def to_space(images: Tensor, space: Space) -> Tensor:
    """Convert RGB to a color space.

    Args:
        images: float32 [B, 3, h, w] RGB in 0..1; left as they are.
        space: "lab", "hsv" or "hed".

    Returns:
        float32 [B, 3, h, w] in the units of RandStainNA's files (see the module).
    """
    planes = to_planes_(images.clone(), space)
    for plane, scale, offset in zip(planes.unbind(1), *UNITS[space], strict=True):
        plane.mul_(scale).add_(offset)
    return planes


def from_space(values: Tensor, space: Space) -> Tensor:
    """Convert a color space back to RGB.

    Args:
        values: float32 [B, 3, h, w] in the units of RandStainNA's files; left as they are. Values that no color has
            are allowed: a hue beyond 0..180 wraps, everything else is clamped.
        space: "lab", "hsv" or "hed".

    Returns:
        float32 [B, 3, h, w] RGB in 0..1.
    """
    planes = values.clone()
    for plane, scale, offset in zip(planes.unbind(1), *UNITS[space], strict=True):
        plane.sub_(offset).mul_(1 / scale)
    return from_planes_(planes, space)


def tissue_weight(images: Tensor) -> Tensor:
    """Say how much each pixel is stained tissue, by its color alone.

    A ramp over `largest - smallest - 0.055 * largest` of the channels, from 0.005 to 0.03. Glass, white or tinted by
    the lamp, has a saturation of at most about 0.055; pale eosin and dark nuclei have more; gray and black have none.

    Args:
        images: float32 [B, 3, h, w] RGB in 0..1.

    Returns:
        float32 [B, 1, h, w]: 0 on glass and in black borders, 1 on tissue, a ramp between.
    """
    red, green, blue = images.unbind(1)
    weight = torch.maximum(red, green)
    torch.maximum(weight, blue, out=weight)
    smallest = torch.minimum(red, green)
    torch.minimum(smallest, blue, out=smallest)
    slope = 1.0 / (_RAMP[1] - _RAMP[0])
    weight.mul_(constant(slope * (1.0 - _GLASS_SATURATION))).sub_(smallest, alpha=slope)
    return weight.sub_(constant(slope * _RAMP[0])).clamp_(0.0, 1.0).unsqueeze(1)
