"""The curves of sRGB and of CIE L*a*b*, in place and in few passes.

sRGB: IEC 61966-2-1. L*a*b*: CIE 15:2004. Each curve is a power with a straight line below a knee, computed as
`line(min(x, knee)) + power(max(x, knee))`.

Powers are exact on an accelerator, and on a CPU with AVX-512, where NumPy has fast ones. On other CPUs a power costs as
much as twenty multiplications; there it is a sum of a few poles, `c + d·x + Σ a / (x + b)`, that has the least largest
error and is exact at both ends: black stays black, white stays white. Errors are stated as what they move a displayed
sRGB value (0..1) by; half a step of 8 bits is 2e-3.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from eosin.augment.logarithm import VECTORISED, exp2_, log2_

__all__ = ["SLOPE", "STEEP", "constant", "cube_", "cube_root_", "from_linear_", "to_linear_"]

# Where sRGB turns from a line into a power: displayed and linear value. And the line's slope.
_DISPLAYED, _LINEAR, SLOPE = 0.04045, 0.0031308, 12.92
# The same for L*a*b*, whose line meets the cube root in value and slope.
_KNEE = 6 / 29
_CUBED = _KNEE**3
STEEP = 1 / (3 * _KNEE**2)
# Values are passed on in units in which both lines have the slope 1: that saves passes over the image.

# Coefficients of 1, x, x², x³ and pole (a, b) of ((x + 0.055) / 1.055)^2.4 on 0.04045..1: error 1.7e-5.
_TO_LINEAR = (0.3930764706, -0.4276273847, 1.037686988, 0.1768475251)
_TO_LINEAR_POLE = ((-0.3326204192, 0.8480596091),)
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


def _exact(values: Tensor) -> bool:
    return VECTORISED or values.device.type != "cpu"


def _power_(values: Tensor, exponent: float) -> Tensor:
    """Raise positive values to a power, in place, to bits that do not depend on what lies beside a value."""
    if values.device.type != "cpu":
        return values.pow_(exponent)
    if exponent != 1 / 3:
        return exp2_(log2_(values).mul_(constant(exponent)))
    array = values.numpy()
    np.cbrt(array, out=array)
    return values


@lru_cache(maxsize=256)
def constant(value: float) -> Tensor:
    """Return a number as a tensor: PyTorch takes longer to convert a Python float than to add it to a small image."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32)


def _add_poles_(
    total: Tensor, values: Tensor, poles: tuple[tuple[float, float], ...], scale: float, unit: float = 1.0
) -> None:
    """Add `scale · Σ a / (x + b)` of x = values / unit to a total; the values are overwritten."""
    shift = 0.0
    for numerator, place in poles:
        values.add_(constant(unit * place - shift))
        total.addcdiv_(constant(1.0), values, value=scale * numerator)
        shift = unit * place


def to_linear_(values: Tensor) -> Tensor:
    """Turn displayed sRGB into 12.92 times the linear one.

    Args:
        values: float32, 0..1 (a little beyond is allowed); overwritten.
    """
    total = torch.clamp(values, max=_DISPLAYED)
    values.clamp_(min=_DISPLAYED)
    if _exact(values):
        _power_(values.add_(constant(0.055)), 2.4)
        return total.sub_(constant(_DISPLAYED)).add_(values, alpha=SLOPE / 1.055**2.4)
    zero, one, two, three = _TO_LINEAR
    series = values + constant(two / three)
    torch.addcmul(constant(one / three), series, values, out=series)
    total.addcmul_(series, values, value=SLOPE * three)
    _add_poles_(total, values, _TO_LINEAR_POLE, SLOPE)
    return total.add_(constant(SLOPE * zero - _DISPLAYED))


def from_linear_(values: Tensor) -> Tensor:
    """Turn 12.92 times linear sRGB into the displayed one, clamped to 0..1: float32; the argument is overwritten."""
    knee = SLOPE * _LINEAR
    total = torch.clamp(values, 0.0, knee)
    values.clamp_(knee, SLOPE)
    if _exact(values):
        total.add_(_power_(values, 1 / 2.4), alpha=1.055 / SLOPE ** (1 / 2.4))
        return total.sub_(constant(knee + 0.055)).clamp_(0.0, 1.0)
    total.add_(values, alpha=_FROM_LINEAR[1] / SLOPE)
    _add_poles_(total, values, _FROM_LINEAR_POLES, SLOPE, SLOPE)
    return total.add_(constant(_FROM_LINEAR[0] - knee)).clamp_(0.0, 1.0)


def cube_root_(values: Tensor) -> Tensor:
    """Compute the f of L*a*b*, divided by `STEEP`: the cube root, a line below (6/29)³.

    Args:
        values: float32, 0..1; overwritten.
    """
    total = torch.clamp(values, max=_CUBED)
    values.clamp_(min=_CUBED)
    if _exact(values):
        return total.sub_(constant(_CUBED)).add_(_power_(values, 1 / 3), alpha=1 / STEEP)
    _add_poles_(total, values, _ROOT_POLES, 1 / STEEP)
    return total.add_(constant(_ROOT / STEEP - _CUBED))


def cube_(values: Tensor) -> Tensor:
    """Invert `cube_root_`: float32, any finite value (beyond ±1 it no longer grows); the argument is overwritten."""
    knee = _KNEE / STEEP
    total = torch.clamp(values, -1.0, knee)
    values.clamp_(knee, 1.0).pow_(3)
    return total.add_(values, alpha=STEEP**3).sub_(constant(knee))
