"""The curves of sRGB and of CIE L*a*b*: exact on an accelerator, by rational functions on a CPU.

A power costs a CPU as much as twenty multiplications. Each curve is a power with a straight line below a knee, so it is
computed as `min(x, knee) · slope + r(max(x, knee))`, where r is a sum of a few poles, `c + d·x + Σ a / (x + b)`, that
approximates the power with the least largest error and is exact at both ends: black stays black, white stays white.
Errors are stated as what they move a displayed sRGB value (0..1) by; half a step of 8 bits is 2e-3.

sRGB: IEC 61966-2-1. L*a*b*: CIE 15:2004.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["constant", "cube_", "cube_root_", "from_linear_", "to_linear_"]

# Where sRGB turns from a line into a power: displayed and linear value. And the line's slope.
_DISPLAYED, _LINEAR, _SLOPE = 0.04045, 0.0031308, 12.92
# The same for L*a*b*, whose line meets the cube root in value and slope.
_KNEE = 6 / 29
_CUBED = _KNEE**3
_STEEP = 1 / (3 * _KNEE**2)

# Coefficients of 1, x, x², x³ and pole (a, b) of ((x + 0.055) / 1.055)^2.4 on 0.04045..1: error 1.7e-5.
_TO_LINEAR = (0.3930764706, -0.4276273847, 1.037686988, 0.1768475251)
_TO_LINEAR_POLE = (-0.3326204192, 0.8480596091)
# Constant and poles (a, b) of x^(1/3) on the knee..1: its cube is within 1e-6 of x, as a dark channel beside bright
# ones is a small difference of large cubes.
_ROOT = 2.87914953
_ROOT_POLES = (
    (-0.0006935620407, 0.005666843789),
    (-0.006041683053, 0.03946599164),
    (-0.04059155371, 0.1797261683),
    (-0.3418049265, 0.8087391437),
    (-14.06446979, 7.527715491),
)
# Coefficients of 1, x and poles (a, b) of 1.055 x^(1/2.4) - 0.055: error 1.6e-5.
_FROM_LINEAR = (1.290622557, 0.1981780675)
_FROM_LINEAR_POLES = (
    (-0.0002365050112, 0.003140077602),
    (-0.003386661022, 0.02573410965),
    (-0.04329392875, 0.1580469874),
    (-0.9737264832, 1.1740893),
)


@lru_cache(maxsize=256)
def constant(value: float) -> Tensor:
    """Return a number as a tensor: PyTorch takes longer to convert a Python float than to add it to a small image."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32)


def _add_poles_(total: Tensor, values: Tensor, poles: tuple[tuple[float, float], ...]) -> None:
    """Add `Σ a / (x + b)` to a total; the values are left shifted by the last b."""
    shift = 0.0
    for numerator, place in poles:
        values.add_(constant(place - shift))
        total.addcdiv_(constant(1.0), values, value=numerator)
        shift = place


def to_linear_(values: Tensor) -> Tensor:
    """Turn displayed into linear sRGB: float32, 0..1 (a little beyond is allowed); the argument is overwritten."""
    total = torch.clamp(values, max=_DISPLAYED)
    values.clamp_(min=_DISPLAYED)
    if values.device.type != "cpu":
        values.add_(0.055).mul_(1 / 1.055).pow_(2.4)
        return values.add_(total.sub_(_DISPLAYED), alpha=1 / _SLOPE)
    zero, one, two, three = _TO_LINEAR
    total.mul_(constant(1 / _SLOPE))
    series = values + constant(two / three)
    torch.addcmul(constant(one / three), series, values, out=series)
    total.addcmul_(series, values, value=three)
    _add_poles_(total, values, (_TO_LINEAR_POLE,))
    return total.add_(constant(zero - _DISPLAYED / _SLOPE))


def from_linear_(values: Tensor) -> Tensor:
    """Turn linear into displayed sRGB, clamped to 0..1: float32; the argument is overwritten."""
    total = torch.clamp(values, 0.0, _LINEAR)
    values.clamp_(_LINEAR, 1.0)
    if values.device.type != "cpu":
        values.pow_(1 / 2.4).mul_(1.055).sub_(0.055)
        return values.add_(total.sub_(_LINEAR), alpha=_SLOPE).clamp_(0.0, 1.0)
    total.mul_(constant(_SLOPE))
    total.add_(values, alpha=_FROM_LINEAR[1])
    _add_poles_(total, values, _FROM_LINEAR_POLES)
    return total.add_(constant(_FROM_LINEAR[0] - _LINEAR * _SLOPE)).clamp_(0.0, 1.0)


def cube_root_(values: Tensor) -> Tensor:
    """Compute the f of L*a*b*: the cube root, a line below (6/29)³; float32, 0..1; the argument is overwritten."""
    total = torch.clamp(values, max=_CUBED)
    values.clamp_(min=_CUBED)
    if values.device.type != "cpu":
        return values.pow_(1 / 3).add_(total.sub_(_CUBED), alpha=_STEEP)
    total.mul_(constant(_STEEP))
    _add_poles_(total, values, _ROOT_POLES)
    return total.add_(constant(_ROOT - _CUBED * _STEEP))


def cube_(values: Tensor) -> Tensor:
    """Invert `cube_root_`: float32, any finite value (beyond ±8 it no longer grows); the argument is overwritten."""
    line = torch.clamp(values, -8.0, _KNEE).sub_(constant(_KNEE))
    return values.clamp_(_KNEE, 8.0).pow_(3).add_(line, alpha=1 / _STEEP)
