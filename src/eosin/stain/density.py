"""The density that RandStainNA draws a tile's target from, two of its six numbers at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eosin.augment.randstainna import RandStainNAConfig
from eosin.augment.stain_statistics import StainStatistics
from eosin.core.errors import EosinError
from eosin.stain.plot import Density

__all__ = ["density_of"]

Array = npt.NDArray[np.float64]

# A channel that never changes, such as the hue of one color, still has a place on the plot.
_NARROWEST = 1e-9


def density_of(statistics: StainStatistics, config: RandStainNAConfig) -> Density:
    """Return the joint density of any two numbers, as configured and before negative deviations are clamped.

    Args:
        statistics: What is drawn from.
        config: Its model, distribution and spread.

    Raises:
        EosinError: If the model is a mixture and the statistics have none.
    """
    if config.model == "gmm":
        mixture = statistics.mixture
        if mixture is None:
            raise EosinError(f"{config.statistics}: has no mixture; fit one with --model gmm")
        parts = list(zip(*(np.asarray(x) for x in (mixture.weights, mixture.means, mixture.covariances)), strict=True))
        spread = config.spread**2

        def together(across: int, up: int, x: Array, y: Array) -> Array:
            pair = [across, up]
            parts_here = [(w, m[pair], c[np.ix_(pair, pair)] * spread) for w, m, c in parts]
            return sum((w * _gaussian(x, y, m, c) for w, m, c in parts_here), np.zeros_like(x))

        return together
    independent = statistics.independent

    def apart(across: int, up: int, x: Array, y: Array) -> Array:
        product = np.ones_like(x)
        for entry, values in ((across, x), (up, y)):
            kind = independent.distribution[entry] if config.distribution == "file" else config.distribution
            scale = max(independent.std[entry] * config.spread, _NARROWEST)
            away = np.abs(values - independent.mean[entry]) / scale
            product *= np.exp(-away if kind == "laplace" else -0.5 * away**2)
        return product

    return apart


def _gaussian(x: Array, y: Array, mean: Array, covariance: Array) -> Array:
    """Density of a bivariate normal distribution on a grid."""
    (a, b), (_, d) = covariance + np.eye(2) * _NARROWEST**2
    determinant = max(a * d - b * b, _NARROWEST**4)
    u, v = x - mean[0], y - mean[1]
    exponent = (d * u * u - 2 * b * u * v + a * v * v) / determinant
    density: Array = np.exp(-0.5 * exponent) / (2 * np.pi * np.sqrt(determinant))
    return density
